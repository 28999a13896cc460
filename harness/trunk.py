"""Trunks: the steps that runs of different lengths share, because nothing in them depends on the length."""

from __future__ import annotations

import hashlib
import json
import shutil

from harness.checkpoint import found, open_checkpoint
from harness.config import RunConfig, ScheduleConfig
from harness.files import write_text
from harness.identity import canonical_json, identity
from harness.metrics import read_metrics
from harness.runfolder import RunFolder
from model.checked import ConfigError


def stable_steps(schedule: ScheduleConfig, steps: int) -> int:
    """Give the number of leading steps whose rates do not depend on `steps`; 0 where all of them do.

    That takes a trapezoid whose weight decay follows the learning rate or is constant. The trapezoid's
    factor falls below 1 at the first step s with steps - s < cooldown + 1.
    """
    if schedule.shape != "trapezoid" or schedule.weight_decay == "linear":
        return 0
    return max(0, steps - round(schedule.cooldown_fraction * steps))


def trunk_id(run: RunConfig, data_digest: str) -> str:
    """Name the trunk of a solved `run`: equal for runs that differ in length and cool-down alone; else ""."""
    assert run.steps is not None, "solve the run first"
    if not stable_steps(run.schedule, run.steps):
        return ""
    fields = identity(run, data_digest)
    schedule = {key: value for key, value in fields["schedule"].items() if key != "cooldown_fraction"}
    shared = {key: value for key, value in fields.items() if key != "steps"} | {"schedule": schedule}
    return hashlib.sha256(canonical_json(shared).encode()).hexdigest()[:8]


def branch(trunk: RunFolder, into: RunFolder) -> int:
    """Start run `into` from the newest checkpoint that it shares with `trunk`; gives its step.

    Continued, it ends with the same bits as if it had been trained from the start, its counts of FLOPs and
    time included. `training.checkpoint_at` keeps the trunk's checkpoint for this.

    Raises ConfigError when the two runs share no trunk, `trunk` kept no checkpoint of it, or `into` has
    begun; CheckpointError when that checkpoint is not whole.
    """
    runs = [folder.check() for folder in (trunk, into)]
    names = [trunk_id(run, folder.data_digest()) for run, folder in zip(runs, (trunk, into), strict=True)]
    if not names[0] or names[0] != names[1]:
        raise ConfigError(
            f"{into.run_id} and {trunk.run_id} share no steps: all but steps and cooldown_fraction must be "
            "equal, schedule.shape=trapezoid and schedule.weight_decay=follow or constant"
        )
    if found(into.checkpoints):
        raise ConfigError(f"{into.path} has checkpoints of its own: only a run not begun can branch")
    limit = min(stable_steps(run.schedule, run.steps or 0) for run in runs)
    shared = [path for path in found(trunk.checkpoints) if int(path.name.removeprefix("step_")) <= limit]
    if not shared:
        raise ConfigError(
            f"{trunk.path} has no checkpoint up to step {limit}: train it with "
            f"training.checkpoint_at=[{limit}]"
        )
    return _copy(trunk, into, shared[-1].name, names[0])


def _copy(trunk: RunFolder, into: RunFolder, name: str, shared_id: str) -> int:
    step = open_checkpoint(trunk.checkpoints / name).step
    lines = [json.dumps(line) for line in read_metrics(trunk.metrics) if line["step"] <= step]
    write_text(into.metrics, "".join(line + "\n" for line in lines))
    into.set_record(into.record() | {"trunk_id": shared_id})
    temporary = into.checkpoints / f".{name}.partial"
    shutil.copytree(trunk.checkpoints / name, temporary)
    temporary.rename(into.checkpoints / name)  # last, because its presence makes the run resume from it
    return step
