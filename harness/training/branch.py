"""Runs that start from a trunk's checkpoint and end with the same bits as independent ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from harness.run.folder import RunFolder
from harness.run.length import origin, stable_steps, trunk_id
from harness.run.metrics import read_metrics
from harness.storage.files import new_folder, write_text
from harness.training.checkpoint import checkpoint_folders, open_checkpoint
from model.config_validation import ConfigError


def start_from_trunk(folder: RunFolder) -> None:
    """Copy the checkpoint of the parent segment into a run that has one and has not begun.

    Raises the errors of `branch`.
    """
    parent = origin(folder).parent
    if parent and not checkpoint_folders(folder.checkpoints):
        branch(RunFolder(folder.path.with_name(parent)), folder)


def branch(trunk: RunFolder, into: RunFolder) -> int:
    """Start run `into` from the newest checkpoint that it shares with `trunk`; return its step.

    Raises
    ------
    ConfigError : the runs share no trunk, `trunk` kept no checkpoint of it, or `into` has begun.
    CheckpointError : that checkpoint is corrupt.

    Notes
    -----
    The run ends with the same bits as if trained from the start, its counts of FLOPs and time included. The
    record holds the shared steps. `training.checkpoint_at` keeps the trunk's checkpoint. Files are hard links
    where the file system supports them, so they use no further disk space.
    """
    runs = [folder.check() for folder in (trunk, into)]
    names = [trunk_id(run, folder.data_digest()) for run, folder in zip(runs, (trunk, into), strict=True)]
    if not names[0] or names[0] != names[1]:
        raise ConfigError(
            f"{into.run_id} and {trunk.run_id} share no steps: all but steps and cooldown_fraction must be "
            "equal, schedule.shape=trapezoid and schedule.weight_decay=follow or constant"
        )
    if checkpoint_folders(into.checkpoints):
        raise ConfigError(f"{into.path} has checkpoints of its own: only a run that has not begun can branch")
    limit = min(stable_steps(run.schedule, run.steps or 0) for run in runs)
    folders = checkpoint_folders(trunk.checkpoints)
    shared = [path for path in folders if int(path.name.removeprefix("step_")) <= limit]
    if not shared:
        raise ConfigError(
            f"{trunk.path} has no checkpoint up to step {limit}: train it with "
            f"training.checkpoint_at=[{limit}]"
        )
    return _copy_checkpoint(trunk, into, shared[-1].name, names[0])


def _copy_checkpoint(trunk: RunFolder, into: RunFolder, name: str, shared_id: str) -> int:
    stored = open_checkpoint(trunk.checkpoints / name)
    into.ensure_created()
    lines = [json.dumps(line) for line in read_metrics(trunk.metrics) if line["step"] <= stored.step]
    write_text(into.metrics, "".join(line + "\n" for line in lines))
    row = into.record()
    columns = {
        "trunk_id": shared_id,
        "trunk_steps": stored.step,
        "trunk_flops": stored.counters["totals"]["executed_flops"],
        "micro_batch_changed": max(folder.get("micro_batch_changed", 0) for folder in (row, trunk.record())),
    }
    into.set_record(row | columns)
    # Last, because the run resumes from the checkpoint as soon as it exists.
    with new_folder(into.checkpoints / name) as partial:
        shutil.copytree(trunk.checkpoints / name, partial, copy_function=_link, dirs_exist_ok=True)
    return stored.step


def _link(source: str, target: str) -> None:
    # The files of a checkpoint are never modified, so two folders can share them.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, Path(target))
