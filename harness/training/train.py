"""Training of one run, from its folder to its record; an interrupted run continues from its checkpoint."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable

from harness.data.dataset import Dataset
from harness.data.loader import Batch, TrainingRows, training_rows, validation_rows
from harness.distributed.process_group import ALONE, Ranks
from harness.optim.parameter_groups import learning_rate_factor, weight_decay_factor
from harness.run.config import RunConfig
from harness.run.folder import RunFolder
from harness.run.length import check_epochs
from harness.run.metrics import MetricsLog, live_run
from harness.run.record import Evaluation, depth_rows, finished_record
from harness.storage.files import write_json, write_text
from harness.training.checkpoint_writer import keep_only
from harness.training.device import device_name, peak_flops_per_s
from harness.training.diagnostics import Diverged, spectral_radius
from harness.training.hang import HangWatch, end_hung
from harness.training.session import Meter, Saver, Session, open_session
from harness.training.step import Draws, Gradient, GradientOfStep, Prefetch, draw
from harness.training.validation import evaluate
from model.config_validation import ConfigError

Line = dict[str, float | None]  # of the metrics; None for a value that is not finite
Watch = Callable[[Line], None]


def train(
    folder: RunFolder,
    dataset: Dataset,
    *,
    attempts: int,
    ranks: Ranks = ALONE,
    stop_requested: Callable[[], bool] = lambda: False,
    watch: Watch = lambda line: None,
) -> None:
    """Train the run of `folder` on `dataset` and write its record and depth curve; for a segment, its cost.

    Every process of `ranks` must call it.

    Parameters
    ----------
    attempts : number of this attempt, for the record.
    stop_requested : called once per step.
    watch : called with each line of the metrics, and while the trained model is evaluated with the fraction
        done as `evaluated`; in the first process.

    Raises
    ------
    Stopped : `stop_requested` returned True in any process; a checkpoint is saved.
    Diverged : see `harness.training.diagnostics`.
    CheckpointError : all checkpoints of earlier attempts are corrupt.
    ConfigError : the folder or the data set belongs to another configuration.
    """
    run = folder.check()
    check_dataset(run, dataset, folder.data_digest())
    session = open_session(folder, run, ranks)
    hung = functools.partial(end_hung, folder, attempts, ranks.rank)
    if not ranks.first:
        saver = Saver(folder, session)
        _take_steps(session, dataset, saver, stop_requested, write=lambda line: None, hung=hung)
    else:
        _show_groups(folder, session)
        live, every = live_run(folder, run.logger), run.training.log_every
        with MetricsLog(folder.metrics, resume_step=session.first_step, every=every, live=live) as log:

            def write(line: Line) -> None:
                log.write(line)
                watch(line)

            saver = Saver(folder, session, flush=log.sync)
            _take_steps(session, dataset, saver, stop_requested, write, hung)
    if session.segment:
        _close_segment(folder, session, attempts)
    else:
        _finish(folder, session, dataset, attempts, watch)


def _take_steps(
    session: Session,
    dataset: Dataset,
    saver: Saver,
    stop_requested: Callable[[], bool],
    write: Watch,
    hung: Callable[[str], None],
) -> None:
    """Take the remaining steps, with metrics and checkpoints where they are due."""
    run, ranks, counters = session.run, session.ranks, session.counters
    assert run.steps is not None
    counters.peak_flops_per_s = ranks.world * peak_flops_per_s(run.training, session.device)
    meter, rows = Meter(counters), _rows(run, dataset)
    gradient_of_step = GradientOfStep(run, session.replica, counters.micro_batch, rows.bos)
    steps = range(session.first_step, run.steps)
    with (
        Prefetch(_inputs(run, rows, ranks), steps) as inputs,
        HangWatch(run.guardrails.hang_s, hung) as progress,
        saver,
    ):
        for step in steps:
            saver.save_if_due(step, stop_requested)
            done = step + 1
            due = done % run.training.log_every == 0 or session.ends_at(done)
            with meter.step():
                with meter.waiting():
                    draws, batch = inputs.take()
                gradient = gradient_of_step.compute(draws, batch, probe=due)
                if session.guard.admits(run.guardrails, gradient.loss_nats, gradient.norm, done):
                    session.optimizer.set_schedule(
                        learning_rate_factor(run.schedule, step, run.steps),
                        weight_decay_factor(run.schedule, step, run.steps),
                    )
                    session.optimizer.step()
                session.optimizer.drop_gradients()
                counters.executed_flops += gradient.flops
            if due:
                figures = {"epoch": rows.epoch(done), **meter.window(run.batch_tokens)}
                write({**_line(session, gradient, done), **figures})
            progress.beat()
    saver.save(run.steps)


def _inputs(run: RunConfig, rows: TrainingRows, ranks: Ranks) -> Callable[[int], tuple[Draws, Batch]]:
    """Return the function that prepares a step: its draws and this process's sequences."""

    def make(step: int) -> tuple[Draws, Batch]:
        draws = draw(run, step, ranks.rank, ranks.world)
        return draws, rows.batch(step, draws.own)

    return make


def _rows(run: RunConfig, dataset: Dataset) -> TrainingRows:
    return training_rows(
        dataset,
        packing=run.training.packing,
        seed=run.seed,
        batch_sequences=run.training.batch_sequences,
        sequence_length=run.model.sequence_length,
    )


def _line(session: Session, gradient: Gradient, done: int) -> Line:
    """Return a step's line of the metrics, without its speed. Every process must call it."""
    run, guard = session.run, session.guard
    line: Line = {
        "step": done,
        "tokens": done * run.batch_tokens,
        "train_loss_nats": gradient.loss_nats,
        "train_loss_mean_nats": guard.mean_nats,
        "gradient_norm": gradient.norm,
        **{f"gradient_norm_{part}": norm for part, norm in gradient.norms.items()},
        "learning_rate_factor": learning_rate_factor(run.schedule, done - 1, run.steps or done),
        "skipped_steps": guard.skipped_steps,
        "loss_spikes": guard.loss_spikes,
        "executed_flops": session.counters.executed_flops,
    }
    if gradient.state_rms:
        rms = gradient.state_rms
        line |= {"state_rms_first": rms[0], "state_rms_last": rms[-1], "state_rms_max": max(rms)}
    looped = run.model.kind == "looped"
    if looped and (done % run.guardrails.spectral_radius_every == 0 or session.ends_at(done)):
        line["spectral_radius"] = spectral_radius(session.replica)
    # JSON has no infinities: a value that is not finite is null, as in every table.
    return {
        name: value if value is not None and math.isfinite(value) else None for name, value in line.items()
    }


def _show_groups(folder: RunFolder, session: Session) -> None:
    """Print the parameter groups to stderr and write them, with the names of tensors, to the run's logs."""
    logs = folder.path / "logs"
    logs.mkdir(exist_ok=True)
    write_text(logs / "parameter_groups.txt", session.optimizer.describe_groups() + "\n")
    print(session.optimizer.describe_groups(names=False), file=sys.stderr)


def _close_segment(folder: RunFolder, session: Session, attempts: int) -> None:
    """Keep the last checkpoint of a trunk's segment and those at marked steps, and record its cost."""
    counters, run = session.counters, session.run
    if session.ranks.first:
        keep_only(folder.checkpoints, [run.steps or 0, *run.training.checkpoint_at])
        cost = {name: getattr(counters, name) for name in ("executed_flops", "wall_s", "device_s")}
        row = folder.record() | cost | {"status": "done", "attempts": attempts, "kernels": session.kernels}
        folder.set_record(row | {"device": device_name(session.device), "devices": session.ranks.world})
    session.ranks.barrier()


def _finish(folder: RunFolder, session: Session, dataset: Dataset, attempts: int, watch: Watch) -> None:
    """Evaluate the trained model and write depth curve and record."""
    run, model = session.run, session.replica.full_model()
    evaluation = evaluate(
        model,
        run.model,
        dataset,
        run.evaluation,
        training=run.training,
        ranks=session.ranks,
        progress=lambda done: watch({"evaluated": done}) if session.ranks.first else None,
    )
    own_loss = evaluation.loss_nats[evaluation.at(run.model.own_depth)]
    if not math.isfinite(own_loss):
        raise Diverged(f"validation loss {own_loss} after {run.steps} steps")
    session.lap()
    if session.ranks.first:
        _record(folder, session, dataset, evaluation, attempts)
    session.ranks.barrier()  # every process returns after the record is written


def _record(
    folder: RunFolder, session: Session, dataset: Dataset, evaluation: Evaluation, attempts: int
) -> None:
    run = session.run
    write_json(folder.depth_curve, depth_rows(folder.run_id, evaluation))
    row = finished_record(
        folder.record(),
        evaluation,
        vars(session.counters),
        own_depth=run.model.own_depth,
        val_unigram_nats=dataset.unigram_nats,
        attempts=attempts,
        tokens_padded=_rows(run, dataset).padded_tokens(run.steps or 0),
        device=device_name(session.device),
        devices=session.ranks.world,
        kernels=session.kernels,
        skipped_steps=session.guard.skipped_steps,
        loss_spikes=session.guard.loss_spikes,
    )
    folder.set_record(row)


def check_dataset(run: RunConfig, dataset: Dataset, data_digest: str) -> None:
    """Raise ConfigError unless `dataset` is the one that the run was planned with, and fits it."""
    if dataset.digest != data_digest:
        raise ConfigError(
            f"the run was planned with data {data_digest}, but the data set is {dataset.digest}: "
            "prepare the planned data, or plan the run again"
        )
    check_epochs(run, dataset.unique_tokens)
    # Too little text to validate on raises an error now instead of after the training.
    validation_rows(
        dataset,
        packing=run.training.packing,
        sequence_length=run.model.sequence_length,
        blocks=run.evaluation.blocks,
    )
    if dataset.vocabulary_size > run.model.vocabulary_size:
        raise ConfigError(
            f"model.vocabulary_size={run.model.vocabulary_size} is smaller than the tokenizer's "
            f"{dataset.vocabulary_size}: set model.vocabulary_size={dataset.vocabulary_size}"
        )
