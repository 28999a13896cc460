"""Atomic writes of files and folders, reads that name a damaged file, and locks.

A lock is exclusive; the kernel releases it when the process that holds it dies.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from model.config_validation import ConfigError

PROBE_S = 0.2  # longer than another process takes in `is_held`, which locks for a moment
_held: set[IO[str]] = set()

_encode = json.JSONEncoder(sort_keys=True, allow_nan=False).encode  # json.dumps makes one for each value
_encode_lines = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",\n ", ": ")).encode
_NESTED = (dict, list, tuple)


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises ConfigError naming the file if it is damaged."""
    try:
        content = json.loads(read_text(path))
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: it holds no JSON object")
    return content


def read_text(path: str | Path) -> str:
    """Return the text in `path`. Raises ConfigError if it is a pipe or a device, which might have no end."""
    # Plain system calls, as in write_text.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path} is no regular file")
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is damaged: {error}") from None
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any], *, sync: bool = True) -> None:
    """Write JSON atomically, one line per key or item."""
    write_text(path, json_text(content), sync=sync)


def json_text(content: Mapping[str, Any] | Sequence[Any]) -> str:
    """Return JSON with one line per key or item."""
    # json's own indenting is written in Python and takes five times as long.
    if isinstance(content, Mapping):
        if any(isinstance(value, _NESTED) for value in content.values()):
            lines = ",\n ".join(f"{_encode(key)}: {_encode(value)}" for key, value in sorted(content.items()))
        else:  # all at once
            lines = _encode_lines(dict(content))[1:-1]
        first, last = "{", "}"
    else:
        lines = ",\n ".join(map(_encode, content))
        first, last = "[", "]"
    return f"{first}\n {lines}\n{last}\n"


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write a file atomically: a reader sees the old content or the new one.

    Without `sync` a power cut may lose the new content. A writer of thousands of files calls os.sync() once
    at the end.
    """
    os.replace(_write_aside(path, text, sync), path)  # noqa: PTH105


def write_once(path: Path, text: str, *, sync: bool = True) -> None:
    """Write a file atomically unless it exists; of several writers at once, on any node, one succeeds."""
    temporary = _write_aside(path, text, sync)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(temporary, path)  # noqa: PTH105
            return
    os.unlink(temporary)  # noqa: PTH108


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there replaces `path` if the block succeeds."""
    temporary = _aside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that becomes `path` if the block succeeds.

    A `path` that another process has made meanwhile stays as it is.
    """
    temporary = _aside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _write_aside(path: Path, text: str, sync: bool) -> str:
    """Write a temporary file beside `path` and return its name."""
    # Plain system calls: sweeps write and read tens of thousands of these files.
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}")  # noqa: PTH118
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        content = memoryview(text.encode())
        while content:
            content = content[os.write(descriptor, content) :]
        if sync:
            os.fsync(descriptor)
    except OSError as error:  # a full disk is reported without the file
        error.filename = str(path)
        os.unlink(temporary)  # noqa: PTH108
        raise
    finally:
        os.close(descriptor)
    return temporary


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Lock `path`, creating it if absent; yield False if another process holds it and `wait` is false."""
    with path.open("w", encoding="utf-8") as handle:
        if wait:
            fcntl.flock(handle, fcntl.LOCK_EX)
        elif not _try_lock(handle):
            time.sleep(PROBE_S)
            if not _try_lock(handle):
                yield False
                return
        _held.add(handle)
        try:
            yield True
        finally:
            _held.discard(handle)


@contextmanager
def locked_for_child(path: Path) -> Iterator[int | None]:
    """Lock `path` until all descriptors are closed: the yielded one, and what a child process inherits of it.

    Yields None if another process holds the lock.
    """
    with path.open("w", encoding="utf-8") as handle:
        yield handle.fileno() if _try_lock(handle) else None


def keep_inherited(descriptor: int) -> None:
    """Hold the lock of `locked_for_child` in the child until it ends."""
    _held.add(os.fdopen(descriptor, "w", encoding="utf-8"))


def is_held(path: Path) -> bool:
    """Return True if a process holds the lock `path`, which need not be writable."""
    try:
        handle = path.open(encoding="utf-8")
    except FileNotFoundError:
        return False
    with handle:  # shared, as the exclusive lock of some network file systems needs an open for writing
        return not _try_lock(handle, fcntl.LOCK_SH)


def drop_inherited() -> None:
    """Close the locks that a forked process has inherited, so that they are released with the parent."""
    for handle in _held:
        handle.close()
    _held.clear()


def _try_lock(handle: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
