"""A command entered as a user enters it."""

from __future__ import annotations

import loopscale


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    """Return the exit code of `loopscale ARGUMENTS`, what it prints and its errors."""
    code = 0
    try:
        loopscale.main(list(arguments))
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()
