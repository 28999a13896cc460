"""Trunks: the leading steps that runs of different lengths share, because they do not depend on the length.

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

SEGMENT = "trunk-"  # prefix of a segment's folder, which is beside the folders of its runs
ORIGIN = "trunk.json"  # in the folder of a run or segment that continues another segment


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Start of a run or segment: a checkpoint of the segment `parent`, or step 0 if that is "".

    A segment is a part of a trunk. Its last checkpoint is continued by others, and it is not evaluated.
    """

    parent: str = ""
    segment: bool = False


def stable_steps(schedule: ScheduleConfig, steps: int) -> int:
    """Return the number of leading steps whose rates do not depend on `steps`.

    Notes
    -----
    It is 0 unless the schedule is a trapezoid whose weight decay follows the learning rate or is constant.
    The trapezoid's factor falls below 1 at the first step s with steps - s < cooldown + 1.
    """
    if unshared_reason(schedule):
        return 0
    return max(0, steps - round(schedule.cooldown_fraction * steps))


def unshared_reason(schedule: ScheduleConfig) -> str:
    """Return why runs of this schedule share no steps and what to change, "" if they share some."""
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
    """Return the trunk's id, equal for runs that differ only in length and cool-down; "" without a trunk."""
    assert run.steps is not None, "solve the run first"
    if not stable_steps(run.schedule, run.steps):
        return ""
    fields = identity(run, data_digest)
    schedule = {key: value for key, value in fields["schedule"].items() if key != "cooldown_fraction"}
    shared = {key: value for key, value in fields.items() if key != "steps"} | {"schedule": schedule}
    return hashlib.sha256(canonical_json(shared).encode()).hexdigest()[:8]


def segment_run(run: RunConfig, end: int) -> RunConfig:
    """Return the run that trains the trunk of `run` up to step `end`, without a cool-down."""
    schedule = dataclasses.replace(run.schedule, cooldown_fraction=0.0)
    # Its metrics are logged by the runs that continue it.
    return dataclasses.replace(run, schedule=schedule, steps=end, budget_flops=None, logger=LoggerConfig())


def origin(folder: RunFolder) -> Origin:
    """Return the origin of the run in `folder`."""
    try:
        return Origin(**folder.content(ORIGIN))
    except FileNotFoundError:
        return Origin()


def set_origin(folder: RunFolder, begins: Origin, *, sync: bool = True) -> None:
    """Write the origin of the run in `folder`."""
    folder.ensure_created(sync=sync)
    write_json(folder.path / ORIGIN, dataclasses.asdict(begins), sync=sync)
