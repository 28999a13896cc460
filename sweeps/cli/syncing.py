"""`loopscale sync`: the wandb runs of a sweep, rebuilt from its metrics."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from model.config_validation import ConfigError, closest
from sweeps.cli.help import Command
from sweeps.cli.tables import as_json
from sweeps.config.commands import SyncConfig
from sweeps.config.compose import compose_table

if TYPE_CHECKING:
    import pandas as pd

    from harness.run.folder import RunFolder


def sync_sweep(settings: SyncConfig) -> pd.DataFrame:
    """Make the wandb history of every run that has changed; return run_id, status and wandb of each run.

    `wandb` is "rebuilt" or "uploaded", or the reason why it was not: "unchanged" or "nothing measured yet".

    Raises
    ------
    ConfigError : the sweep or run does not exist, or wandb refuses.
    """
    from concurrent.futures import ProcessPoolExecutor

    import pandas as pd

    from harness.data.encoding import available_cores, end_with_parent
    from sweeps.cli.progress import stage_progress

    runs = _runs(settings)
    synced = functools.partial(_synced, settings)
    rows = []
    with ExitStack() as stack:
        progress = stack.enter_context(stage_progress())
        workers = min(available_cores(), len(runs))
        if workers > 1:
            # Processes, as wandb's own Python takes most of the time.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, context, end_with_parent))
            outcomes: Iterable[str] = pool.map(synced, runs)
        else:
            outcomes = map(synced, runs)
        for number, (run, outcome) in enumerate(zip(runs, outcomes, strict=True), start=1):
            rows.append({"run_id": run.run_id, "status": str(run.status()), "wandb": outcome})
            progress("wandb histories", number / len(runs))
    return pd.DataFrame(rows)


def _synced(settings: SyncConfig, run: RunFolder) -> str:
    """Make the wandb history of a run if it has changed; return what was done."""
    from harness.run.metrics import rebuild_history

    logger = run.config().logger
    logger = dataclasses.replace(
        logger,
        name="wandb",
        mode=settings.mode,
        project=settings.project or logger.project,
        entity=settings.entity or logger.entity,
    )
    if rebuild_history(run, logger, settings.mode):
        return "uploaded" if settings.mode == "online" else "rebuilt"
    return "unchanged" if run.metrics.exists() else "nothing measured yet"


def _runs(settings: SyncConfig) -> list[RunFolder]:
    """Return the runs to synchronise; segments of trunks are left out, their steps are in the runs."""
    from harness.run.folder import RunFolder
    from harness.run.length import origin
    from harness.run.pending_runs import pending_lines

    names = {path.parent.name for path in settings.folder.glob("*/status.json")}
    folders = (RunFolder(settings.folder / name) for name in names | pending_lines(settings.folder).keys())
    runs = {run.run_id: run for run in folders if not origin(run).segment}
    if not runs:
        raise ConfigError(f"no runs in {settings.folder}: launch the sweep first, or set root")
    if settings.run is None:
        return [runs[name] for name in sorted(runs)]
    if settings.run not in runs:
        raise ConfigError(f"run={settings.run} is not in {settings.folder}{closest(settings.run, runs)}")
    return [runs[settings.run]]


def _sync(overrides: list[str]) -> str:
    settings = compose_table("sync", overrides)
    frame = sync_sweep(settings)
    if settings.format == "json":
        return as_json(frame)
    counts = frame["wandb"].value_counts().items()
    return f"{settings.folder}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts)


COMMANDS = {
    "sync": Command(
        run=_sync,
        summary="rebuild the wandb runs of a sweep from its metrics",
        example="loopscale sync sweep=demo mode=online",
        settings="table/sync",
    ),
}
