"""What is left of a sweep and when it ends, from the rows of its status table."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[Any, Any]  # by column, as pandas types its own
LOST = "lost"  # its process is gone; the next launch resumes it
SUSPENDED = "suspended"  # the scheduler has stopped its job for a while
STALLED = "stalled"  # its process is there and measures nothing
UNDER_WAY = ("submitted", "running", SUSPENDED, STALLED)
UNNEEDED = "unneeded"  # a segment from which nothing unfinished has yet to start


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is left of a sweep; None where nothing has been measured or nothing runs."""

    remaining_flops: float  # nominal
    remaining_run_hours: float | None  # at the measured speed
    ends_in_s: float | None
    running: int  # runs side by side now


def forecast(rows: Sequence[Row]) -> Forecast:
    """Return what is left of the runs and trunk segments in `rows`.

    The end assumes that as many runs go on side by side as do now, at the median speed of those that have
    one.
    """
    remaining = sum(flops_left(row) for row in rows if not has_ended(row["status"]))
    rates = [
        row["tokens_per_s"] * row["nominal_flops"] / row["tokens"]
        for row in rows
        if row["tokens_per_s"] is not None
    ]
    hours = remaining / statistics.median(rates) / 3600 if rates else None
    running = sum(row["status"] == "running" for row in rows)
    ends = hours * 3600 / running if hours is not None and running else None
    if remaining == 0:
        hours, ends = 0.0, 0.0
    return Forecast(remaining_flops=remaining, remaining_run_hours=hours, ends_in_s=ends, running=running)


def flops_left(row: Row) -> float:
    """Return what is left of a row in nominal FLOPs, without the steps of its trunk."""
    if row["status"] == UNNEEDED:
        return 0.0
    steps = max(row["steps"], 1)
    return float((steps - max(row["step"], row["first_step"])) / steps * row["nominal_flops"])


def flops_own(row: Row) -> float:
    """Return the nominal FLOPs that a row trains itself, without the steps of its trunk."""
    return float((1 - row["first_step"] / max(row["steps"], 1)) * row["nominal_flops"])


def has_ended(shown: str) -> bool:
    """Return True if a run of this status needs nothing more: it is done, or failed for good."""
    return shown == "done" or shown.startswith("failed")


def counts(statuses: Iterable[str]) -> dict[str, int]:
    """Return how many runs have each status, the most frequent first."""
    return dict(Counter(statuses).most_common())
