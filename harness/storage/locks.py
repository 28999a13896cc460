"""Exclusive locks on files, let go by the kernel when their holder dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PROBE_S = 0.2  # longer than another process takes to see whether a lock is held
_held: set[IO[str]] = set()


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold `path` (created if absent) alone; yields False when another process has it and `wait` is false."""
    with path.open("w") as handle:
        if wait:
            fcntl.flock(handle, fcntl.LOCK_EX)
        elif not _locks(handle):
            time.sleep(PROBE_S)
            if not _locks(handle):
                yield False
                return
        _held.add(handle)
        try:
            yield True
        finally:
            _held.discard(handle)


def is_held(path: Path) -> bool:
    """Say whether a process holds `path` now."""
    if not path.exists():
        return False
    with path.open("w") as handle:
        return not _locks(handle)


def drop_inherited() -> None:
    """Close, in a process just forked, the locks of its parent: they shall end with the parent alone."""
    for handle in _held:
        handle.close()
    _held.clear()


def _locks(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
