"""The live objects of one attempt of a run, and when their state is saved to a checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch

from harness.distributed.load_balance import check_divisible
from harness.distributed.matrix_exchange import row_range
from harness.distributed.parallel import Replica, local_rows, replicate
from harness.distributed.process_group import Ranks
from harness.optim.sharded_optimizer import ShardedOptimizer
from harness.run.config import RunConfig
from harness.run.folder import RunFolder
from harness.run.trunk import origin
from harness.storage.sharded_tensors import ShardReader, TensorShard, unsharded
from harness.training.checkpoint import Checkpoint, open_newest, save
from harness.training.guardrails import LossGuard
from harness.training.micro_batch import find_micro_batch, workload_of
from harness.training.throughput import Counters, peak_memory_bytes
from model.config_validation import ConfigError
from model.kernels import compile_blocks, keep_freed_memory, kernels_for, name_in_use
from model.transformer import build_model


@dataclass(kw_only=True)
class Session:
    """One attempt of a run: model, optimiser, processes and counters."""

    run: RunConfig
    ranks: Ranks
    device: torch.device
    replica: Replica
    optimizer: ShardedOptimizer
    kernels: str  # name of the implementation that computes the steps
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
    def restore(self, folder: RunFolder) -> None:
        """Load the newest intact checkpoint of `folder`, if it has one."""
        newest = open_newest(folder.checkpoints, self.ranks)
        if newest is None:
            return
        self._restore_model(newest.model)
        self.optimizer.load(newest.optimizer)
        self.optimizer.refresh_matrices()
        self.first_step = newest.step
        self.counters = Counters(**newest.counters["totals"])
        self.guard = LossGuard(**newest.counters["guard"])


class Stopped(RuntimeError):
    """The run was asked to stop and has saved a checkpoint, from which the next attempt continues."""


class Saver:
    """Save a session's checkpoints at the same steps in all its processes."""

    def __init__(self, folder: RunFolder, session: Session, flush: Callable[[], None] = lambda: None) -> None:
        self._folder, self._session, self._flush = folder, session, flush
        self._saved_at = time.monotonic()
        self._saved_step = session.first_step  # saved by the previous attempt

    def save_if_due(self, step: int, stop_requested: Callable[[], bool]) -> None:
        """Save after `step` steps on a stop request, on the timer, or at a step of `checkpoint_at`.

        Raises
        ------
        Stopped : `stop_requested` returned True in any process; the checkpoint is saved.
        """
        training = self._session.run.training
        timer = time.monotonic() - self._saved_at > training.checkpoint_every_s
        stopping, timer_due = self._session.ranks.any([stop_requested(), timer])
        if stopping or timer_due or step in training.checkpoint_at:
            self.save(step)
        if stopping:
            raise Stopped(f"stopped at step {step} of {self._session.run.steps}")

    def save(self, step: int) -> None:
        """Save after `step` steps, unless that checkpoint exists already."""
        if step == self._saved_step > 0:
            return
        training = self._session.run.training
        self._flush()  # the metrics must reach the disk before the checkpoint that continues them
        self._session.lap()
        save(
            self._folder.checkpoints,
            self._session.checkpoint(step),
            keep=training.keep_checkpoints,
            marked=training.checkpoint_at,
            ranks=self._session.ranks,
        )
        self._saved_at, self._saved_step = time.monotonic(), step


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
    demand_determinism(compiled=run.training.compile)
    workload = workload_of(run, device)
    kernels = kernels_for(run.training.kernels, workload)
    model = build_model(run.model, seed=run.seed, device=device, kernels=kernels)
    if run.training.compile:
        compile_blocks(model.all_blocks())
    replica = replicate(model, ranks, run.training.parallel)
    optimizer = ShardedOptimizer(replica, run.optimizer)
    session = Session(
        run=run,
        ranks=ranks,
        device=device,
        replica=replica,
        optimizer=optimizer,
        kernels=name_in_use(kernels, workload),
        segment=origin(folder).segment,
    )
    session.restore(folder)
    # The micro-batch of an earlier attempt is kept, because another one would round differently.
    if run.training.micro_batch is not None or not session.counters.micro_batch:
        session.counters.micro_batch = find_micro_batch(run, replica)
    if ranks.first:
        folder.set_micro_batch(session.counters.micro_batch)  # a retry after oom halves it
    return session


def demand_determinism(*, compiled: bool) -> None:
    """Make torch raise an error for every operation that is not deterministic.

    Notes
    -----
    `use_deterministic_algorithms` also covers compiled code, but imports the compiler, which takes seconds.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    if compiled:
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_deterministic_debug_mode("error")


def device_named(name: str, ranks: Ranks, *, key: str = "device") -> torch.device:
    """Return a device by name; "auto" is the GPU of this process's local rank where there is one.

    Raises
    ------
    ConfigError : `key` asks for a GPU and none is visible.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}=cuda: no GPU is visible here; use device=cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Modulo, because a launcher may make only one GPU visible to each process.
    return torch.device("cuda", ranks.local_rank % torch.cuda.device_count())


def prepare_process(device: torch.device) -> None:
    """Set the current GPU, or on a CPU let the allocator keep freed memory."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
