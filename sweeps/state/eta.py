"""What a status table says of a whole sweep: what is left, when it ends, what to do next; in words.

Works on the table's rows, so that a launch need not import pandas to say it.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[Any, Any]  # by column, as pandas types its own
LOST = "lost"  # its process is gone; the next launch resumes it
UNNEEDED = "unneeded"  # a segment from which nothing open has still to start


def with_trunks(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of all that is trained: runs, and the segments of their trunks."""
    import pandas as pd

    trunks = frame.attrs.get("trunks", [])
    return pd.concat([frame, pd.DataFrame(trunks)], ignore_index=True) if trunks else frame


def flops_left(row: Row) -> float:
    """Return what is left of a row in nominal FLOPs, the steps of its trunk left out."""
    if row["status"] == UNNEEDED:
        return 0.0
    steps = max(row["steps"], 1)
    return float((steps - max(row["step"], row["first_step"])) / steps * row["nominal_flops"])


def flops_own(row: Row) -> float:
    """Return what a row trains itself, in nominal FLOPs."""
    return float((1 - row["first_step"] / max(row["steps"], 1)) * row["nominal_flops"])


def counts(statuses: Iterable[str]) -> dict[str, int]:
    """Return how many runs have each status, the most frequent first."""
    return dict(Counter(statuses).most_common())


def has_ended(shown: str) -> bool:
    """Say whether a run shown like this needs nothing more: done, or failed for good."""
    return shown == "done" or shown.startswith("failed")


def forecast(rows: Sequence[Row]) -> dict[str, float | None]:
    """Return what is left: nominal FLOPs, run-hours at the measured speed, and seconds until the end.

    `rows` are those of the runs and of the segments of their trunks. The end supposes that as many runs go on
    side by side as do now, at the median speed of those that have one; None where nothing has been measured
    or nothing runs.
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
    return {"remaining_flops": remaining, "remaining_run_hours": hours, "ends_in_s": ends, "running": running}


def summary(
    statuses: Collection[str], attrs: Mapping[Any, Any], sweep: str, root: str, *, worked_on: bool
) -> str:
    """Return a line of counts and what to do next, one of what is left, and the remarks.

    `attrs` holds what `sweeps.state.status.status` says beside the runs' statuses.
    """
    text = ", ".join(f"{count} {name}" for name, count in counts(statuses).items())
    advice, at = "", f"sweep={sweep}" + ("" if root == "runs" else f" root={root}")
    if worked_on or {"submitted", "running"} & set(statuses):
        advice = f"; loopscale status {at} watch=true follows them"
    elif {"planned", LOST} & set(statuses):
        advice = f"; loopscale launch {at} continues what is missing"
    lines = [f"{len(statuses)} runs: {text}{advice}"]
    left = attrs["forecast"]
    if left["remaining_flops"]:
        hours, ends = left["remaining_run_hours"], left["ends_in_s"]
        cost = f", {hours:.3g} run-hours at the measured speed" if hours is not None else ""
        end = ""
        if ends is not None:
            clock = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + ends))
            end = f"; expected end {clock} with {left['running']} side by side"
        lines.append(f"remaining {left['remaining_flops']:.3g} nominal FLOPs{cost}{end}")
    if trunks := attrs["trunks"]:
        lines.append(_trunks_in_words(trunks, at))
    return "\n".join([*lines, *attrs["notes"]])


def _trunks_in_words(trunks: list[dict[str, Any]], at: str) -> str:
    shown = Counter(row["status"] for row in trunks)
    counted = ", ".join(f"{count} {name}" for name, count in shown.most_common())
    failed = [row["run_id"] for row in trunks if row["status"].startswith("failed")]
    text = f"{len(trunks)} trunk segments: {counted}"
    if failed:
        text += f"; what starts from {', '.join(failed[:3])} is held back"
        text += f": loopscale retry {at} failed=true"
    return text


def gaps(frame: pd.DataFrame) -> str:
    """Name the runs that are not done, at most five of them."""
    missing = frame.loc[frame["status"] != "done", ["run_id", "status"]]
    if missing.empty:
        return "all runs done"
    named = ", ".join(f"{row.run_id} ({row.status})" for row in missing.head(5).itertuples())
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return f"{len(missing)} of {len(frame)} runs are not done: {named}{more}"
