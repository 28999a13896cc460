"""SLURM's commands, and waiting for a controller that does not answer."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

from model.config_validation import ConfigError
from sweeps.backends.base import QueueFull, SchedulerError
from sweeps.backends.slurm.limits import FULL

T = TypeVar("T")
# What commands print when the controller is away or overloaded; any other error is final.
OUTAGE = re.compile(
    r"unable to contact|timed out|connection refused|connection reset|zero bytes|communication connection"
    r"|standby|temporarily|not respond|unable to connect|slurmdbd.*(down|error)|try again",
    re.IGNORECASE,
)
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0)  # and 15 s from then on


def patiently(action: Callable[[], T], patience_s: float) -> T:
    """Repeat `action` with growing pauses while the controller is away, for `patience_s` at most.

    Raises
    ------
    SchedulerError : it does not answer in that time.
    QueueFull : it takes no more jobs.
    ConfigError : it refuses.
    """
    until = time.monotonic() + patience_s
    for tried in range(10_000):
        try:
            return action()
        except SchedulerError as error:
            if FULL.search(str(error)):
                raise QueueFull(f"SLURM takes no more jobs now: {error}") from error
            if not OUTAGE.search(str(error)):
                raise ConfigError(f"SLURM refuses: {error}") from error
            pause = BACK_OFF_S[min(tried, len(BACK_OFF_S) - 1)]
            if time.monotonic() + pause > until:
                waited = f"{patience_s:g} s"
                raise SchedulerError(
                    f"SLURM does not answer for {waited} ({error}): run the same command again later"
                ) from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def run(*command: str) -> str:
    """Return what a command prints. Raises SchedulerError with what it says of its failure."""
    try:
        # A reason or a comment may hold bytes of any encoding.
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise ConfigError(f"{command[0]} is not on PATH: is this a login node of the cluster?") from None
    if done.returncode:
        raise SchedulerError(sentence(done.stderr or f"{command[0]} ended with code {done.returncode}"))
    return done.stdout


def require(program: str) -> None:
    """Raise ConfigError if a program is not there."""
    if shutil.which(program) is None:
        raise ConfigError(f"{program} is not on PATH: is this a login node of the cluster?")


def sentence(text: str) -> str:
    """Return the lines of an error that name it, as one line."""
    lines = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    return "; ".join(dict.fromkeys(lines)) or " ".join(text.split())
