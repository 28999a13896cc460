"""Sync: a sweep's wandb histories, made from the runs' own metrics; run again, it skips what is unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.run.folder import RunFolder
from harness.run.pending_runs import pending_lines
from harness.run.trunk import origin
from harness.run.wandb import rebuild_history
from model.config_validation import ConfigError, closest
from sweeps.config.study import SyncConfig

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[str, float], None]


def sync(settings: SyncConfig, progress: Progress = lambda stage, fraction: None) -> pd.DataFrame:
    """Make the wandb history of every run that has changed; returns run_id, status and wandb of each run.

    `wandb` is "rebuilt" or "uploaded", or why not: "unchanged" or "nothing measured yet". Raises ConfigError
    for a sweep or run that is not there, and where wandb refuses.
    """
    import pandas as pd

    runs = _runs(settings)
    rows = []
    for number, run in enumerate(runs):
        logger = run.config().logger
        logger = dataclasses.replace(
            logger,
            name="wandb",
            mode=settings.mode,
            project=settings.project or logger.project,
            entity=settings.entity or logger.entity,
        )
        done = rebuild_history(run, logger, settings.mode)
        told = "uploaded" if settings.mode == "online" else "rebuilt"
        if not done:
            told = "unchanged" if run.metrics.exists() else "nothing measured yet"
        rows.append({"run_id": run.run_id, "status": str(run.status()), "wandb": told})
        progress("wandb histories", (number + 1) / len(runs))
    return pd.DataFrame(rows)


def _runs(settings: SyncConfig) -> list[RunFolder]:
    names = {path.parent.name for path in settings.folder.glob("*/status.json")}
    found = (RunFolder(settings.folder / name) for name in names | pending_lines(settings.folder).keys())
    runs = {run.run_id: run for run in found if not origin(run).segment}  # their runs have all their steps
    if not runs:
        raise ConfigError(f"no runs in {settings.folder}: launch the sweep first, or set root")
    if settings.run is None:
        return [runs[name] for name in sorted(runs)]
    if settings.run not in runs:
        raise ConfigError(f"run={settings.run} is not in {settings.folder}{closest(settings.run, runs)}")
    return [runs[settings.run]]
