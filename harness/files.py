"""Files that are whole or absent: atomic writes, and reads that name what is damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.checked import ConfigError

_encode = json.JSONEncoder(sort_keys=True, allow_nan=False).encode  # json.dumps would make one for each value
_encode_lines = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",\n ", ": ")).encode
_NESTED = (dict, list, tuple)


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in `path`; raises ConfigError naming the file when it is damaged."""
    try:
        content = json.loads(_read(os.fspath(path)))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: it holds no JSON object")
    return content


def _read(path: str) -> str:
    # Plain system calls, as in write_text.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts).decode()
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any], *, sync: bool = True) -> None:
    """Write JSON atomically, one line per key or item: a reader sees the old file or the new one."""
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
    write_text(path, f"{first}\n {lines}\n{last}\n", sync=sync)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write a file atomically (temporary file, fsync, rename).

    Without `sync` it may be lost, not torn, when the machine loses power; a writer of thousands of files
    calls os.sync() once at their end.
    """
    # Plain system calls: sweeps write and read tens of thousands of these files.
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}")  # noqa: PTH118
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        content = memoryview(text.encode())
        while content:
            content = content[os.write(descriptor, content) :]
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)  # noqa: PTH105
