"""The live objects of one attempt of a run, its totals, and when its state is saved to a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Self

import torch

from harness.distributed.parallel import Replica, check_divisible, local_rows, replicate, row_range
from harness.distributed.process_group import Ranks
from harness.optim.sharded_optimizer import ShardedOptimizer
from harness.run.config import RunConfig, TrainingConfig
from harness.run.folder import RunFolder
from harness.run.length import origin
from harness.storage.sharded_tensors import ShardReader, TensorShard, unsharded
from harness.training.checkpoint import Checkpoint, OpenCheckpoint, open_newest
from harness.training.checkpoint_writer import PendingSave, begin_save, host_copy
from harness.training.device import (
    demand_determinism,
    device_named,
    peak_memory_bytes,
    prepare_process,
    workload_of,
)
from harness.training.diagnostics import LossGuard
from harness.training.micro_batch import find_micro_batch
from model.config_validation import ConfigError
from model.kernels import compile_blocks, kernels_for, name_in_use
from model.transformer import build_model


@dataclass(kw_only=True)
class Counters:
    """Totals over all attempts of a run; the fields are stored in its checkpoints."""

    executed_flops: float = 0.0  # by all devices
    train_s: float = 0.0
    data_wait_s: float = 0.0  # of train_s, waiting for a batch
    wall_s: float = 0.0
    device_s: float = 0.0  # wall_s summed over devices
    peak_memory_bytes: int = 0  # maximum over processes
    peak_flops_per_s: float = 0.0  # of all devices together, in the last attempt
    micro_batch: int = 0


class Meter:
    """Time the steps of a run; a window lasts from one line of the metrics to the next."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._steps = 0
        self._opened = replace(counters)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one step, including its wait for data."""
        began = time.perf_counter()
        yield
        self._counters.train_s += time.perf_counter() - began
        self._steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait for a batch."""
        began = time.perf_counter()
        yield
        self._counters.data_wait_s += time.perf_counter() - began

    def window(self, batch_tokens: int) -> dict[str, float]:
        """Close the window; return its tokens_per_s, mfu and data_wait_share."""
        now, opened, steps = self._counters, self._opened, self._steps
        self._opened, self._steps = replace(now), 0
        train_s = now.train_s - opened.train_s
        return {
            "tokens_per_s": steps * batch_tokens / train_s,
            "mfu": (now.executed_flops - opened.executed_flops) / train_s / now.peak_flops_per_s,
            "data_wait_share": (now.data_wait_s - opened.data_wait_s) / train_s,
        }


@dataclass(kw_only=True)
class Session:
    """One attempt of a run: model, optimiser, processes and counters."""

    run: RunConfig
    ranks: Ranks
    device: torch.device
    replica: Replica
    optimizer: ShardedOptimizer
    kernels: str  # how the steps are computed, for the record
    first_step: int = 0
    segment: bool = False  # of a trunk, which ends in the middle of the runs that it is trained for
    counters: Counters = field(default_factory=Counters)
    guard: LossGuard = field(default_factory=LossGuard)
    clock: float = field(default_factory=time.monotonic)

    def ends_at(self, step: int) -> bool:
        """Return True if the run ends after `step` steps; never for a trunk's segment."""
        return step == self.run.steps and not self.segment

    def lap(self) -> None:
        """Add the time since the last call to the counters, and update the peak memory. Collective."""
        now = time.monotonic()
        self.counters.wall_s += now - self.clock
        self.counters.device_s += (now - self.clock) * self.ranks.world
        self.clock = now
        held = max(self.ranks.all_gather(peak_memory_bytes(self.device)))
        self.counters.peak_memory_bytes = max(self.counters.peak_memory_bytes, held)

    def checkpoint(self, step: int) -> Checkpoint:
        """Return the state that this process saves after `step` steps."""
        return Checkpoint(
            step=step,
            model=self._model_shards(),
            optimizer=self.optimizer.shards(),
            counters={"totals": asdict(self.counters), "guard": asdict(self.guard)},
        )

    def _model_shards(self) -> dict[str, TensorShard]:
        parameters = self.replica.model.state_dict()
        if not self.replica.sharded:
            return (
                {name: unsharded(tensor) for name, tensor in parameters.items()} if self.ranks.first else {}
            )
        return {
            name: TensorShard(
                tensor=local_rows(tensor),
                first_row=row_range(tensor.shape[0], self.ranks.rank, self.ranks.world)[0],
                shape=tuple(tensor.shape),
            )
            for name, tensor in parameters.items()
        }

    def _restore_model(self, stored: ShardReader) -> None:
        parameters = self.replica.model.state_dict()
        if parameters.keys() != set(stored.names()):
            differing = sorted(parameters.keys() ^ set(stored.names()))
            raise ConfigError(f"the checkpoint is of another model: {', '.join(differing[:3])} not in both")
        for name, tensor in parameters.items():
            rows = (0, tensor.shape[0])
            if self.replica.sharded:
                rows = row_range(tensor.shape[0], self.ranks.rank, self.ranks.world)
            local_rows(tensor).copy_(stored.rows(name, *rows))

    @torch.no_grad()
    def restore(self, stored: OpenCheckpoint) -> None:
        """Load a checkpoint of this run."""
        self._restore_model(stored.model)
        self.optimizer.load(stored.optimizer)
        self.optimizer.refresh_matrices()
        self.first_step = stored.step
        self.counters = Counters(**stored.counters["totals"])
        self.guard = LossGuard(**stored.counters["guard"])


class Stopped(RuntimeError):
    """The run was asked to stop and has saved a checkpoint, from which the next attempt continues."""


class Saver:
    """Save a session's checkpoints at the same steps in all its processes.

    Those on the timer are written by a thread while the training goes on. A process that is killed meanwhile
    resumes from the checkpoint before. As a context manager it waits for the thread, so that none is left to
    write into the folder of a later attempt.
    """

    def __init__(self, folder: RunFolder, session: Session, flush: Callable[[], None] = lambda: None) -> None:
        self._folder, self._session, self._flush = folder, session, flush
        self._saved_at = time.monotonic()
        self._saved_step = session.first_step  # saved by the previous attempt
        self._pending: PendingSave | None = None  # in all processes or in none

    def save_if_due(self, step: int, stop_requested: Callable[[], bool]) -> None:
        """Save after `step` steps on a stop request, on the timer, or at a step of `checkpoint_at`.

        Raises
        ------
        Stopped : `stop_requested` returned True in any process; the checkpoint is saved.
        """
        training = self._session.run.training
        timer = time.monotonic() - self._saved_at > training.checkpoint_every_s
        writing = self._pending is not None and not self._pending.is_written()
        stopping, timer_due, writing = self._session.ranks.any([stop_requested(), timer, writing])
        if not writing:
            self._publish()
        if stopping or step in training.checkpoint_at:
            self.save(step)
        elif timer_due and self._pending is None and step != self._saved_step:
            self._begin(step, copy=True)
        if stopping:
            raise Stopped(f"stopped at step {step} of {self._session.run.steps}")

    def save(self, step: int) -> None:
        """Save after `step` steps, unless that checkpoint exists already."""
        self._publish()
        if step != self._saved_step or step == 0:
            self._begin(step, copy=False)
            self._publish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._pending is not None:
            wait([self._pending.written])

    def _begin(self, step: int, *, copy: bool) -> None:
        training = self._session.run.training
        self._flush()  # the metrics must reach the disk before the checkpoint that continues them
        self._session.lap()
        checkpoint = self._session.checkpoint(step)
        self._pending = begin_save(
            self._folder.checkpoints,
            host_copy(checkpoint) if copy else checkpoint,
            keep=training.keep_checkpoints,
            marked=training.checkpoint_at,
            ranks=self._session.ranks,
        )
        self._saved_at, self._saved_step = time.monotonic(), step

    def _publish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one, and make it the newest."""
        if self._pending is not None:
            self._pending.publish()
            self._pending = None


def open_session(folder: RunFolder, run: RunConfig, ranks: Ranks) -> Session:
    """Build model and optimiser of `run` on this process's device and load its newest intact checkpoint.

    Raises
    ------
    ConfigError : the device does not exist, or the batch does not divide over the processes.
    CheckpointError : all checkpoints of earlier attempts are corrupt.
    """
    check_divisible(run.training.batch_sequences, ranks.world)
    device = device_named(run.training.device, ranks, key="training.device")
    prepare_process(device)
    if run.training.threads is not None:
        torch.set_num_threads(run.training.threads)
    if run.training.deterministic:
        demand_determinism(compiled=run.training.compile)
    workload = workload_of(run, device)
    kernels = kernels_for(run.training.kernels, workload)
    newest = open_newest(folder.checkpoints, ranks)
    seed = run.seed if newest is None else None  # first weights take long, and a checkpoint replaces them
    model = build_model(run.model, seed=seed, device=device, kernels=kernels)
    model.checkpoint_loops = run.training.checkpoint_loops
    if run.training.compile:
        largest = max(run.training.batch_sequences // ranks.world, run.evaluation.batch_blocks)
        compile_blocks(model.all_blocks(), largest_batch=largest)
    # The micro-batch of an earlier attempt is kept, because another one would round differently.
    micro_batch = newest.counters["totals"]["micro_batch"] if newest is not None else 0
    if run.training.micro_batch is not None or not micro_batch:
        micro_batch = find_micro_batch(run, model, ranks)
    replica = replicate(model, ranks, run.training.parallel, run.training.precision)
    optimizer = ShardedOptimizer(replica, run.optimizer)
    session = Session(
        run=run,
        ranks=ranks,
        device=device,
        replica=replica,
        optimizer=optimizer,
        kernels=_kernels_in_words(name_in_use(kernels, workload), run.training),
        segment=origin(folder).segment,
    )
    if newest is not None:
        session.restore(newest)
    session.counters.micro_batch = micro_batch
    if ranks.first:
        folder.set_micro_batch(session.counters.micro_batch)  # a retry after oom halves it
    return session


def _kernels_in_words(name: str, training: TrainingConfig) -> str:
    """Return how the steps are computed, as the record says it."""
    compiled = ", compiled" if training.compile else ""
    return name + compiled + ("" if training.deterministic else ", not deterministic")
