"""The one place where a value becomes a word of a shell command."""

from __future__ import annotations

import shlex


def quote(value: object) -> str:
    """Return `value` as one shell word, which every POSIX shell reads back unchanged."""
    return shlex.quote(str(value))
