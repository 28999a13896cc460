"""`loopscale data` and `train`: prepare data sets, and train one run in the folder that a sweep would use."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from model.config_validation import ConfigError
from sweeps.backends.registry import current_job
from sweeps.cli.help import Command
from sweeps.cli.tables import clock
from sweeps.config.compose import compose_study, single_run
from sweeps.config.next_command import next_command
from sweeps.config.overrides import multirun
from sweeps.config.study import StudyConfig

SINGLE = "single"  # the folder of runs that belong to no sweep
MULTIRUN = ("-m", "--multirun")


def prepare_data(study: StudyConfig) -> None:
    """Prepare the data sets of the study with a progress bar."""
    from sweeps.cli.progress import stage_progress
    from sweeps.launch import launch

    with stage_progress() as progress:
        launch.prepare_data(study, progress)


def train_one(study: StudyConfig) -> dict[str, Any]:
    """Train (or resume) the study's one run and return its record.

    Raises
    ------
    ConfigError : the run did not end well; its folder keeps everything.
    """
    from harness.data.prepare import prepare
    from harness.run.folder import RunFolder, create
    from harness.run.length import check_epochs, solve
    from sweeps.cli.progress import stage_progress, step_progress

    if study.run:  # with the data set that it was planned with
        planned = RunFolder(Path(study.run))
        run, dataset = planned.check(), planned.dataset(Path(study.cache))
    else:
        run = solve(single_run(study))
        with stage_progress() as progress:
            dataset = prepare(run.data, Path(study.cache), progress)
    check_epochs(run, dataset.unique_tokens)
    from harness.distributed.process_group import connected
    from harness.training.job import BUSY, JOB_END, run_job

    if (job := current_job()) and job.ends_s is not None:
        os.environ.setdefault(JOB_END, str(job.ends_s))
    parent = Path(study.root) / (study.sweep.name or SINGLE)
    with connected(run.guardrails.peer_timeout_s) as ranks:
        folder = ranks.once(
            lambda: create(parent, run, data_digest=dataset.digest, unique_tokens=dataset.unique_tokens)
        )
        if folder.status().state == "done":
            if ranks.first:
                print(f"{folder.path} is done: nothing is trained again", file=sys.stderr)
            return folder.record()
        if ranks.first and (run.steps or 0) < study.sweep.min_steps:
            print(
                f"this run has {run.steps} steps, too few for a law: a sweep drops cells of fewer than "
                f"{study.sweep.min_steps} (sweep.min_steps)",
                file=sys.stderr,
            )
        with step_progress(folder.run_id, run.steps or 0) if ranks.first else nullcontext(_ignore) as watch:
            ended = run_job(folder.path, Path(study.cache), watch=watch)
    if ended == BUSY:
        raise ConfigError(
            f"{folder.path} is being trained by another process: wait for it, or stop that process"
        )
    if ended == "submitted":
        raise ConfigError(f"{folder.status().message}; run the same command again to continue")
    if ended != "done":
        raise ConfigError(f"{folder.path} ended as {ended}: {folder.status().message}")
    if ranks.first:
        print(f"{folder.path} is done", file=sys.stderr)
    return RunFolder(folder.path).record()


def _ignore(line: dict[str, float | None]) -> None:
    """Show no progress: only the first process of a run does."""


def _data(overrides: list[str]) -> str:
    from harness.data.dataset import open_dataset
    from harness.data.prepare import prepare
    from sweeps.launch.launch import data_sets

    study = compose_study(overrides)
    prepare_data(study)
    lines = []
    for config in data_sets(study):
        dataset = open_dataset(prepare(config, Path(study.cache)).folder, checksums=True)
        lines.append(
            f"{dataset.name} {dataset.digest}: {len(dataset.train):,} training and "
            f"{len(dataset.validation):,} validation tokens, vocabulary {dataset.vocabulary_size}, "
            f"in {dataset.folder}"
        )
        if dataset.left_out:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in dataset.left_out.items())
            lines.append(f"left out: {reasons}")
    if study.sweep.name:
        lines.append(next_command("plan", overrides))
    return "\n".join(lines)


def _train(overrides: list[str]) -> str:
    settings = [text for text in overrides if text not in MULTIRUN]
    several = settings != overrides
    studies = [compose_study(one) for one in (multirun(settings) if several else [settings])]
    records = [train_one(study) for study in studies]
    if studies[0].format == "json":
        return json.dumps(records if several else records[0], indent=1)
    return "\n".join(map(_summary, studies, records))


def _summary(study: StudyConfig, record: dict[str, Any]) -> str:
    """Return what a finished run was and reached, and where it lies."""
    folder = Path(study.root) / record["sweep"] / record["run_id"]
    return (
        f"{record['run_id']}: validation loss {record['val_loss_nats']:.4f} nats (standard error "
        f"{record['val_loss_se_nats']:.2g}), {record['val_bits_per_byte']:.4f} bits per byte at µ = "
        f"{record['mean_recurrence']:g}\n"
        f"{record['steps']:,} steps, {record['tokens']:,} tokens, {record['executed_flops']:.3g} FLOPs in "
        f"{clock(record['wall_s'])}; {folder} has record.json (format=json prints it) and depth_curve.json"
    )


COMMANDS = {
    "data": Command(
        run=_data,
        summary="read text, train the tokenizer, write token shards",
        example="loopscale data sweep=NAME, with the text and vocabulary of that sweep; launch does the same",
    ),
    "train": Command(
        run=_train,
        summary="train one run, or resume it; -m trains a product, key=a,b, one after the other",
        example="loopscale train model=looped_90k model.mean_recurrence=4 budget_flops=1e11",
    ),
}
