"""The processes that train one run: their ranks, their connection and the messages outside the gradient."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from harness.distributed.rendezvous import export_rendezvous
from model.config_validation import ConfigError

T = TypeVar("T")

# Messages of torch for a process of the group that is gone or silent; gloo has no error class of its own.
_PEER_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out")
PEER_TIMEOUT_S = 1800.0  # where no run says how long a process waits for another one


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The rank of this process among those that train one run; a single process by default."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among those of this machine

    @property
    def first(self) -> bool:
        """Return True for the process that writes status, metrics and record."""
        return self.rank == 0

    def once(self, work: Callable[[], T]) -> T:
        """Call `work` in the first process and return its result, or raise its error, in all."""
        if self.world == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def any(self, flags: list[bool]) -> list[bool]:
        """Return for each flag whether it is set in any process. Sends one small message."""
        if self.world == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` summed over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def all_gather(self, item: T) -> list[T]:
        """Return the items of all processes, by rank."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def barrier(self) -> None:
        """Return once every process has called this."""
        if self.world > 1:
            dist.barrier()


ALONE = Ranks()


def ranks_from_environment() -> Ranks:
    """Return the ranks in the environment of torchrun or of a submitit job, without connecting."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return Ranks(
            rank=int(os.environ["RANK"]),
            world=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        )
    if os.environ.get("SUBMITIT_EXECUTOR"):
        import submitit

        job = submitit.JobEnvironment()
        return Ranks(rank=job.global_rank, world=job.num_tasks, local_rank=job.local_rank)
    return ALONE


@contextmanager
def connected(timeout_s: float = PEER_TIMEOUT_S) -> Iterator[Ranks]:
    """Connect the processes of the run for the length of a block; none waits longer for another one.

    A single process connects nothing, and an existing connection is used and kept. On a CPU messages go
    through gloo. On GPUs they go through NCCL, and those in host memory through gloo.

    Raises
    ------
    ConfigError : the processes cannot find each other.
    """
    ranks = ranks_from_environment()
    if ranks.world == 1 or dist.is_initialized():
        yield ranks
        return
    export_rendezvous()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"process {ranks.rank} of {ranks.world} reaches no other at {where} ({reason}): "
            "start it with torchrun or as a submitit job of several tasks, with MASTER_PORT free"
        ) from error
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def is_peer_loss(error: BaseException) -> bool:
    """Return True if an error comes from the connection to another process and not from this one."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _PEER_GONE)
