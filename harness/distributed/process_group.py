"""The processes of one run: who they are, and the few things they tell each other outside the gradient."""

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

# What torch says when a process of the group is gone or silent; it has no class of its own for gloo.
_PEER_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out")
PEER_TIMEOUT = timedelta(minutes=30)  # a process that waits longer for another one gives up


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The place of this process among those that train one run; alone by default."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among those of this machine

    @property
    def first(self) -> bool:
        """Say whether this is the process that writes status, metrics and record."""
        return self.rank == 0

    def once(self, work: Callable[[], T]) -> T:
        """Do `work` in the first process and give every process its result, or raise its error in all."""
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
        """Say for each flag whether any process has raised it; costs one small message."""
        if self.world == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, item: T) -> list[T]:
        """Give every process the items of all, by rank."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()


ALONE = Ranks()


def started_ranks() -> Ranks:
    """Read this process's place from the environment of torchrun or of a submitit job; connects nothing."""
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
def connected() -> Iterator[Ranks]:
    """Connect the processes of the run for the length of a block; one process alone connects nothing.

    A connection that stands already is used and left standing. On a CPU the messages go through gloo; on
    GPUs through NCCL, and gloo carries what lies in host memory.

    Raises ConfigError when the processes cannot find each other.
    """
    ranks = started_ranks()
    if ranks.world == 1 or dist.is_initialized():
        yield ranks
        return
    export_rendezvous()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=PEER_TIMEOUT)
    except (ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"process {ranks.rank} of {ranks.world} reaches nobody at {where}: {reason}; "
            "start it with torchrun or as a submitit job of several tasks, with MASTER_PORT free"
        ) from error
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def is_peer_loss(error: BaseException) -> bool:
    """Say whether an error comes from the connection to another process and not from this one."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _PEER_GONE)
