"""What of a sweep is unfinished and may start: a trunk's segment before everything that starts from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from harness.run.folder import RunFolder, Status
from sweeps.grid.trunks import in_order
from sweeps.state.ledger import Ledger
from sweeps.state.retry import is_open

Unfinished = list[tuple[RunFolder, Status]]


def has_begun(run: RunFolder) -> bool:
    """Return True if a run has a checkpoint of its own, and so no longer needs its trunk."""
    return any(run.checkpoints.glob("step_*"))


def segments_below(
    runs: Iterable[str],
    parent_of: Callable[[str], str],
    *,
    is_done: Callable[[str], bool],
    needs_parent: Callable[[str], bool],
) -> set[str]:
    """Return the segments, not done, that must be trained before all of `runs` can start.

    `needs_parent` returns True for a run or segment, not done, that waits for what it starts from.
    """
    segments: set[str] = set()
    for run in runs:
        name = run
        while not is_done(name) and needs_parent(name):
            parent = parent_of(name)
            if not parent or parent in segments or is_done(parent):
                break
            segments.add(parent)
            name = parent
    return segments


def required_segments(
    ledger: Ledger, folder: Path, states: Mapping[str, Status], *, failed_too: bool = False
) -> set[str]:
    """Return the segments, not done, from which something open starts that has not begun.

    `states` holds the statuses by name; what is missing there is planned. With `failed_too`, what has failed
    for good counts as open: it may be opened again.
    """
    planned = Status(state="planned")

    def needs_parent(name: str) -> bool:
        status = states.get(name, planned)
        begun = status.attempts and has_begun(RunFolder(folder / name))
        return not begun and (failed_too or is_open(status, ledger.retry))

    return segments_below(
        ledger.run_ids,
        ledger.parent_of,
        is_done=lambda name: states.get(name, planned).state == "done",
        needs_parent=needs_parent,
    )


def unfinished_runs(ledger: Ledger, folder: Path, *, registered: bool = True) -> Unfinished:
    """Return what is not done and still needed, with its status: segments first, then runs.

    A segment is needed while something open that has not begun starts from it. One whose folder was deleted
    is left out; `registered=False` keeps it, for a ledger that is not written yet.
    """
    names = [*in_order(ledger.segments), *ledger.run_ids]
    states = {name: RunFolder(folder / name).status() for name in names}
    segments = required_segments(ledger, folder, states)
    return [
        (RunFolder(folder / name), states[name])
        for name in names
        if (name in segments and (not registered or (folder / name).exists()))
        or (name not in ledger.segments and states[name].state != "done")
    ]


def waits_for(ledger: Ledger, run: RunFolder) -> str:
    """Return the segment that must be done before this run or segment can start, "" if it can."""
    parent = ledger.parent_of(run.run_id)
    if not parent or RunFolder(run.path.with_name(parent)).status().state == "done" or has_begun(run):
        return ""
    return parent


def held_back_by(ledger: Ledger, run: RunFolder) -> str:
    """Return the segment whose failure for good keeps this run from starting, "" for none."""
    name = waits_for(ledger, run)
    while name:
        segment = RunFolder(run.path.with_name(name))
        if not is_open(segment.status(), ledger.retry):
            return name
        name = waits_for(ledger, segment)
    return ""
