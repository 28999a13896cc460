"""What is left of a sweep and what of it may start: a trunk's segment before all that begins from it."""

from __future__ import annotations

from pathlib import Path

from harness.runfolder import RunFolder, Status
from sweeps.ledger import Ledger
from sweeps.retry import is_open
from sweeps.trunks import in_order

Left = list[tuple[RunFolder, Status]]


def has_begun(run: RunFolder) -> bool:
    """Say whether a run has a checkpoint of its own, and so needs its trunk no more."""
    return any(run.checkpoints.glob("step_*"))


def left(ledger: Ledger, folder: Path) -> Left:
    """Return what is not done and still wanted, with its status: segments first, then runs.

    A segment is wanted while something open that has not begun starts from it.
    """
    segments = {name: RunFolder(folder / name) for name in ledger.segments}
    states = {name: segment.status() for name, segment in segments.items()}
    runs = [(run, run.status()) for run in ledger.runs(folder)]
    runs = [(run, status) for run, status in runs if status.state != "done"]
    wanted: set[str] = set()
    for run, status in runs:
        below, parent = (run, status), ledger.parent_of(run.run_id)
        while parent and parent not in wanted and states[parent].state != "done":
            if not is_open(below[1], ledger.retry) or (below[1].attempts and has_begun(below[0])):
                break
            wanted.add(parent)
            below, parent = (segments[parent], states[parent]), ledger.parent_of(parent)
    there = (name for name in in_order(ledger.segments) if name in wanted and segments[name].path.exists())
    return [*((segments[name], states[name]) for name in there), *runs]


def waits_for(ledger: Ledger, run: RunFolder) -> str:
    """Return the segment that must be done before this run or segment can start, "" where it can."""
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
