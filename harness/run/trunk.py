"""Trunks: the steps that runs of different lengths share, because nothing in them depends on the length.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

from harness.run.config import LoggerConfig, RunConfig, ScheduleConfig
from harness.run.folder import RunFolder
from harness.run.identity import canonical_json, identity
from harness.storage.files import write_json

SEGMENT = "trunk-"  # before the name of a segment's folder, which lies beside its runs
ORIGIN = "trunk.json"  # in the folder of a run or segment, where it does not begin at step 0 by itself


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run or segment begins: at a checkpoint of the segment `parent` beside it, at step 0 where "".

    A segment is a part of a trunk: it hands its last checkpoint on, and nothing is evaluated.
    """

    parent: str = ""
    segment: bool = False


def stable_steps(schedule: ScheduleConfig, steps: int) -> int:
    """Give the number of leading steps whose rates do not depend on `steps`; 0 where all of them do.

    That takes a trapezoid whose weight decay follows the learning rate or is constant. The trapezoid's
    factor falls below 1 at the first step s with steps - s < cooldown + 1.
    """
    if why_unshared(schedule):
        return 0
    return max(0, steps - round(schedule.cooldown_fraction * steps))


def why_unshared(schedule: ScheduleConfig) -> str:
    """Say why runs of this schedule share no steps, and what would change that; "" where they do."""
    if schedule.shape != "trapezoid":
        return (
            f"schedule.shape={schedule.shape} moves the learning rate over the whole run: "
            "set schedule.shape=trapezoid"
        )
    if schedule.weight_decay == "linear":
        return (
            "schedule.weight_decay=linear falls to 0 over the whole run, so its stable phase depends on the "
            "run's length: set schedule.weight_decay=follow, constant until the cool-down"
        )
    return ""


def trunk_id(run: RunConfig, data_digest: str) -> str:
    """Name the trunk of a solved `run`: equal for runs that differ in length and cool-down alone; else ""."""
    assert run.steps is not None, "solve the run first"
    if not stable_steps(run.schedule, run.steps):
        return ""
    fields = identity(run, data_digest)
    schedule = {key: value for key, value in fields["schedule"].items() if key != "cooldown_fraction"}
    shared = {key: value for key, value in fields.items() if key != "steps"} | {"schedule": schedule}
    return hashlib.sha256(canonical_json(shared).encode()).hexdigest()[:8]


def segment_run(run: RunConfig, end: int) -> RunConfig:
    """Return what trains the trunk of `run` up to step `end`: the same run without a cool-down."""
    schedule = dataclasses.replace(run.schedule, cooldown_fraction=0.0)
    # Its metrics are logged by the runs that it hands them to.
    return dataclasses.replace(run, schedule=schedule, steps=end, budget_flops=None, logger=LoggerConfig())


def origin(folder: RunFolder) -> Origin:
    """Return where the run in `folder` begins; an independent one begins at step 0."""
    try:
        return Origin(**folder.content(ORIGIN))
    except FileNotFoundError:
        return Origin()


def set_origin(folder: RunFolder, begins: Origin, *, sync: bool = True) -> None:
    """Write down where the run in `folder` begins."""
    folder.ensure_created(sync=sync)
    write_json(folder.path / ORIGIN, dataclasses.asdict(begins), sync=sync)
