"""Exclusive locks on files, let go by the kernel when their holder dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold `path` (created if absent) alone; yields False when another process has it and `wait` is false."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def is_held(path: Path) -> bool:
    """Say whether a process holds `path` now."""
    if not path.exists():
        return False
    with exclusive(path, wait=False) as free:
        return not free
