"""Branching: a run starts from a trunk's checkpoint and ends with the bits of an independent one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from harness.run.folder import RunFolder
from harness.run.metrics import read_metrics
from harness.run.trunk import origin, stable_steps, trunk_id
from harness.storage.files import write_text
from harness.training.checkpoint import found, open_checkpoint
from model.config_validation import ConfigError


def start_from_trunk(folder: RunFolder) -> None:
    """Give the run in `folder` the checkpoint of its parent segment, unless it has begun or has none.

    Raises as `branch` does.
    """
    parent = origin(folder).parent
    if parent and not found(folder.checkpoints):
        branch(RunFolder(folder.path.with_name(parent)), folder)


def branch(trunk: RunFolder, into: RunFolder) -> int:
    """Start run `into` from the newest checkpoint that it shares with `trunk`; gives its step.

    Continued, it ends with the same bits as if it had been trained from the start, its counts of FLOPs and
    time included. `training.checkpoint_at` keeps the trunk's checkpoint for this. The record says which steps
    were taken over. The files are linked where the file system can, so that they use no further disk.

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
    return _take_over(trunk, into, shared[-1].name, names[0])


def _take_over(trunk: RunFolder, into: RunFolder, name: str, shared_id: str) -> int:
    stored = open_checkpoint(trunk.checkpoints / name)
    into.ensure_created()
    lines = [json.dumps(line) for line in read_metrics(trunk.metrics) if line["step"] <= stored.step]
    write_text(into.metrics, "".join(line + "\n" for line in lines))
    row = into.record()
    taken = {
        "trunk_id": shared_id,
        "trunk_steps": stored.step,
        "trunk_flops": stored.counters["totals"]["executed_flops"],
        "micro_batch_changed": max(folder.get("micro_batch_changed", 0) for folder in (row, trunk.record())),
    }
    into.set_record(row | taken)
    temporary = into.checkpoints / f".{name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)  # left by an attempt that was killed here
    shutil.copytree(trunk.checkpoints / name, temporary, copy_function=_link)
    temporary.rename(into.checkpoints / name)  # last, because its presence makes the run resume from it
    return stored.step


def _link(source: str, target: str) -> None:
    # A checkpoint's files are written once and never changed, so two folders can have the same ones.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, Path(target))
