"""Train one run from its folder to its record; killed anywhere, it continues where its checkpoint stands."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from harness.budget import check_epochs
from harness.checkpoint import Checkpoint, load_newest, save
from harness.config import RunConfig
from harness.dataset import Dataset
from harness.evaluate import evaluate
from harness.files import write_json
from harness.loader import IGNORED, Batch, TrainingRows, training_rows, validation_rows
from harness.metrics import MetricsLog
from harness.optimizer import AdamW, MuonAdamW, build_optimizer
from harness.prefetch import Prefetch
from harness.record import depth_rows, finished_record
from harness.runfolder import RunFolder
from harness.schedule import learning_rate_factor, weight_decay_factor
from model.checked import ConfigError
from model.compilation import compile_blocks
from model.depth import counter_seed, draw_depths
from model.flops import executed_flops
from model.transformer import LoopedTransformer, build_model

Watch = Callable[[dict[str, float]], None]


class Diverged(RuntimeError):
    """The loss or the gradient is no longer a number; a result of the run, not an accident."""


class Stopped(RuntimeError):
    """The run was asked to stop and has saved a checkpoint; it continues when started again."""


@dataclass
class Counters:
    """What is counted over all attempts of a run and travels in its checkpoints."""

    executed_flops: float = 0.0
    train_s: float = 0.0
    wall_s: float = 0.0
    data_wait_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Session:
    """The live objects of one attempt."""

    run: RunConfig
    rows: TrainingRows
    model: LoopedTransformer
    optimizer: MuonAdamW | AdamW
    device: torch.device


def train(
    folder: RunFolder,
    dataset: Dataset,
    *,
    attempts: int,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch = lambda line: None,
) -> None:
    """Train the run of `folder` on `dataset` and write its record and depth curve.

    `stop` is asked once a step, `watch` is given each line of the metrics. Raises Stopped after `stop` said
    yes, Diverged when the loss is not finite, CheckpointError when no checkpoint of an earlier attempt is
    whole, ConfigError for a folder or data set that belong to another configuration.
    """
    started = time.monotonic()
    run = folder.check()
    check_fit(run, dataset, folder.data_digest())
    session, counters, first_step = _start(folder, run, dataset)
    earlier_wall_s = counters.wall_s
    assert run.steps is not None

    def checkpoint(step: int) -> None:
        if step == first_step > 0:  # stands already, from the attempt before
            return
        counters.wall_s = earlier_wall_s + time.monotonic() - started
        save(folder.checkpoints, _snapshot(session, counters, step), keep=run.training.keep_checkpoints)

    saved_at = time.monotonic()
    with (
        MetricsLog(
            folder.metrics,
            resume_step=first_step,
            logger=run.logger,
            run_id=folder.run_id,
            sweep=folder.sweep,
        ) as log,
        Prefetch(session.rows.batch, range(first_step, run.steps)) as batches,
    ):
        for step in range(first_step, run.steps):
            if stop():
                checkpoint(step)
                raise Stopped(f"stopped at step {step} of {run.steps}")
            line = _step(session, counters, step, batches)
            if line is not None:
                log.write(line)
                watch(line)
            if time.monotonic() - saved_at > run.training.checkpoint_every_s:
                checkpoint(step + 1)
                saved_at = time.monotonic()
    checkpoint(run.steps)
    evaluation = evaluate(session.model, run.model, dataset, run.evaluation, training=run.training)
    own_loss = evaluation.loss_nats[evaluation.at(round(run.model.mean_recurrence))]
    if not math.isfinite(own_loss):
        raise Diverged(f"validation loss {own_loss} after {run.steps} steps")
    counters.wall_s = earlier_wall_s + time.monotonic() - started
    write_json(folder.depth_curve, depth_rows(folder.run_id, evaluation))
    row = finished_record(
        folder.record(),
        evaluation,
        vars(counters),
        val_unigram_nats=dataset.unigram_nats,
        attempts=attempts,
        tokens_padded=session.rows.padded_tokens(run.steps),
        device=device_name(session.device),
    )
    folder.set_record(row)


def check_fit(run: RunConfig, dataset: Dataset, data_digest: str) -> None:
    """Raise ConfigError when `dataset` is not the one that the run was planned with, or does not fit."""
    if dataset.digest != data_digest:
        raise ConfigError(
            f"the run was planned with data {data_digest}, the data set found is {dataset.digest}: "
            "prepare the data that it names or plan it anew"
        )
    check_epochs(run, dataset.unique_tokens)
    # Raises now, not after the training, when there is too little text to validate on.
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


def pick_device(run: RunConfig) -> torch.device:
    """Return the device asked for; "auto" is the GPU where there is one."""
    name = run.training.device
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device=cuda: no GPU is visible here; use device=cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Return the device as the runs table names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x {torch.get_num_threads()}"


def _start(folder: RunFolder, run: RunConfig, dataset: Dataset) -> tuple[Session, Counters, int]:
    if run.training.threads is not None:
        torch.set_num_threads(run.training.threads)
    torch.use_deterministic_algorithms(True)
    device = pick_device(run)
    model = build_model(run.model, seed=run.seed, device=device)
    if run.training.compile:
        compile_blocks(model)
    optimizer = build_optimizer(model, run.optimizer)
    newest = load_newest(folder.checkpoints)
    rows = training_rows(
        dataset,
        packing=run.training.packing,
        seed=run.seed,
        batch_sequences=run.training.batch_sequences,
        sequence_length=run.model.sequence_length,
    )
    session = Session(run=run, rows=rows, model=model, optimizer=optimizer, device=device)
    if newest is None:
        return session, Counters(), 0
    model.load_state_dict(newest.model)
    optimizer.load_state_tensors(newest.optimizer)
    return session, Counters(**newest.counters), newest.step


def _snapshot(session: Session, counters: Counters, step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        model={name: tensor.contiguous() for name, tensor in session.model.state_dict().items()},
        optimizer=session.optimizer.state_tensors(),
        counters=dict(vars(counters)),
    )


def _step(
    session: Session, counters: Counters, step: int, batches: Prefetch[Batch]
) -> dict[str, float] | None:
    """Take one optimiser step; returns its line of the metrics where one is due."""
    run, began, waited_s = session.run, time.monotonic(), batches.waited_s
    assert run.steps is not None
    loss, depths = _accumulate_gradient(session, step, batches.take())
    counters.data_wait_s += batches.waited_s - waited_s
    norm = torch.nn.utils.clip_grad_norm_(session.model.parameters(), run.training.gradient_clip)
    factor = learning_rate_factor(run.schedule, step, run.steps)
    session.optimizer.set_schedule(factor, weight_decay_factor(run.schedule, step, run.steps))
    session.optimizer.step()
    session.optimizer.zero_grad(set_to_none=True)
    counters.executed_flops += executed_flops(run.model, depths, run.model.sequence_length)
    done = step + 1
    line = None
    if done % run.training.log_every == 0 or done == run.steps:
        loss_nats, gradient_norm = float(loss), float(norm)
        if not (math.isfinite(loss_nats) and math.isfinite(gradient_norm)):
            raise Diverged(f"loss {loss_nats}, gradient norm {gradient_norm} at step {done} of {run.steps}")
        line = {
            "step": done,
            "tokens": done * run.batch_tokens,
            "train_loss_nats": loss_nats,
            "gradient_norm": gradient_norm,
            "learning_rate_factor": factor,
            "executed_flops": counters.executed_flops,
            "epoch": session.rows.epoch(done),
            "data_wait_s": counters.data_wait_s,
            "tokens_per_s": run.batch_tokens / (time.monotonic() - began),
        }
    counters.train_s += time.monotonic() - began
    return line


def _accumulate_gradient(session: Session, step: int, batch: Batch) -> tuple[torch.Tensor, list[int]]:
    """Leave the gradient of the global batch's mean loss in the parameters; return that loss and the depths.

    Depths, data and initial states are functions of (seed, step, sequence), so micro-batches change nothing.
    """
    run, size = session.run, session.run.training.batch_sequences
    tokens, labels = (
        torch.from_numpy(part).to(session.device, non_blocking=True) for part in (batch.tokens, batch.labels)
    )
    depths = draw_depths(run.model, seed=run.seed, step=step, batch=size).tolist()
    seeds = [counter_seed("state", run.seed, step, index) for index in range(size)]
    total = torch.zeros((), device=session.device)
    documents = _documents(session, batch)
    valid = int((batch.labels != IGNORED).sum())
    micro_batch = run.training.micro_batch or size
    for start in range(0, size, micro_batch):
        part = slice(start, start + micro_batch)
        with _autocast(run, session.device):
            loss = session.model.loss(
                tokens[part],
                labels[part],
                depths[part],
                seeds[part],
                reduction="sum",
                documents=None if documents is None else documents[part],
            )
        (loss / valid).backward()
        total += loss.detach() / valid
    return total, depths


def _documents(session: Session, batch: Batch) -> torch.Tensor | None:
    if not session.run.training.document_mask:
        return None
    return torch.from_numpy(batch.documents(session.rows.bos)).to(session.device, non_blocking=True)


def _autocast(run: RunConfig, device: torch.device) -> AbstractContextManager[object]:
    if run.training.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
