"""The command that comes next, made of the overrides that the user wrote."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.config.folders import SEARCH_PATH
from sweeps.config.shell import quote

_STUDY = ("data", "plan", "launch")  # commands that take every key of a study, but for
_OF_ONE_CALL = (
    *("design", "suggest", "allowance", "assume", "calibrate", "format"),
    *("confirm", "dry_run", "retry_failed", "resubmit"),
)
_ANALYSIS = ("fit", "compare", "report")  # commands that also take the choice of the data
_SOURCE = ("data", "out", "columns", "where", "x", "unit", "max_epochs")


def command_line(command: str, overrides: Sequence[str], *more: str) -> str:
    """Return `loopscale COMMAND` with those of the overrides that it takes, and with `more`.

    The last override of a key counts.
    """
    words = {_key(text): text for text in [*overrides, *more] if text in more or _takes(command, _key(text))}
    written = (
        f"--config-dir {quote(text.partition('=')[2])}" if key == SEARCH_PATH else quote(text)
        for key, text in words.items()
    )
    return " ".join(["loopscale", command, *written])


def next_command(command: str, overrides: Sequence[str], *more: str) -> str:
    """Return the last line of a command's output, `next: loopscale COMMAND ...`; see `command_line`."""
    return f"next: {command_line(command, overrides, *more)}"


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+")


def _takes(command: str, key: str) -> bool:
    group = key.partition(".")[0]
    if command in _STUDY:
        return group not in _OF_ONE_CALL
    return key in ("sweep", "root", SEARCH_PATH) or (command in _ANALYSIS and group in _SOURCE)
