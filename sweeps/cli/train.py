"""One run by hand: `loopscale train`, with a progress bar; the folder is the one that a sweep would use."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness.data.dataset import Dataset, prepare
from harness.run.budget import check_epochs, solve
from harness.run.config import RunConfig
from harness.run.folder import RunFolder, create
from model.config_validation import ConfigError
from sweeps.cli.progress import stage_progress, step_progress
from sweeps.config.compose import single_run
from sweeps.config.study import StudyConfig

SINGLE = "single"  # the folder of runs that belong to no sweep


def _unseen(line: dict[str, float | None]) -> None:
    """Show nothing: one process of a run is enough to watch."""


def _asked_for(study: StudyConfig) -> tuple[RunConfig, Dataset]:
    run = solve(single_run(study))
    with stage_progress() as progress:
        return run, prepare(run.data, Path(study.cache), progress)


def _again(study: StudyConfig) -> tuple[RunConfig, Dataset]:
    """Return the run in the folder `study.run`, with the data set that it was planned with."""
    folder = RunFolder(Path(str(study.run)))
    return folder.check(), folder.dataset(Path(study.cache))


def train_one(study: StudyConfig) -> dict[str, Any]:
    """Train (or resume) the study's one run and return its record.

    Raises ConfigError when the run does not end well; its folder keeps everything.
    """
    run, dataset = _again(study) if study.run else _asked_for(study)
    check_epochs(run, dataset.unique_tokens)
    from harness.distributed.process_group import connected
    from harness.training.job import BUSY, run_job

    parent = Path(study.root) / (study.sweep.name or SINGLE)
    with connected() as ranks:
        folder = ranks.once(
            lambda: create(parent, run, data_digest=dataset.digest, unique_tokens=dataset.unique_tokens)
        )
        if folder.status().state == "done":
            if ranks.first:
                print(f"{folder.path} is done: nothing is trained again", file=sys.stderr)
            return folder.record()
        with step_progress(folder.run_id, run.steps or 0) if ranks.first else nullcontext(_unseen) as watch:
            ended = run_job(folder.path, Path(study.cache), watch=watch)
    if ended == BUSY:
        raise ConfigError(f"{folder.path} is being trained by another process: its metrics.jsonl grows there")
    if ended == "submitted":
        raise ConfigError(f"{folder.status().message}; run the same command again to continue")
    if ended != "done":
        raise ConfigError(f"{folder.path} ended as {ended}: {folder.status().message}")
    if ranks.first:
        print(f"{folder.path} is done", file=sys.stderr)
    return RunFolder(folder.path).record()
