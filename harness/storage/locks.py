"""Exclusive file locks, released by the kernel when the process that holds them dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PROBE_S = 0.2  # longer than another process takes in `is_held`, which locks for a moment
_held: set[IO[str]] = set()


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Lock `path`, creating it if absent; yield False if another process holds it and `wait` is false."""
    with path.open("w") as handle:
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


def is_held(path: Path) -> bool:
    """Return True if a process holds the lock `path`."""
    if not path.exists():
        return False
    with path.open("w") as handle:
        return not _try_lock(handle)


def drop_inherited() -> None:
    """Close the locks that a forked process has inherited, so that they are released with the parent."""
    for handle in _held:
        handle.close()
    _held.clear()


def _try_lock(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
