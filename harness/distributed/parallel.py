"""One model on one or several devices: plain, DDP or FSDP2, with equal work for each.

FSDP2 is imported only where a model is sharded, because its import takes longer than that of the rest of the
harness.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.distributed.process_group import Ranks
from model.config import ModelConfig, gated_layers, value_table_layers
from model.config_validation import ConfigError
from model.flops import flops_per_token
from model.kernels import autocast
from model.transformer import LoopedTransformer, build_model


class SummedLoss(nn.Module):
    """Module whose forward is the summed loss of a micro-batch in nats, for DDP and FSDP2 to wrap."""

    def __init__(self, model: LoopedTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor,
        depths: Sequence[int],
        seeds: Sequence[int],
        documents: Tensor | None = None,
    ) -> Tensor:
        """Return the summed nats of tokens [B, L]; one depth and one state seed per sequence."""
        return self.model.loss(tokens, labels, depths, seeds, reduction="sum", documents=documents)


@dataclass(frozen=True, kw_only=True)
class Replica:
    """The model of this process, whole or one shard of it, and the module that computes its loss."""

    model: LoopedTransformer
    forward: nn.Module
    ranks: Ranks
    sharded: bool = False  # this process holds only its rows of every parameter

    def backward(self, nats: Tensor, tokens: int) -> None:
        """Add the gradient of nats / tokens; `tokens` counts all processes' tokens of the whole step."""
        # DDP and FSDP2 average over the processes; the loss is a sum over them.
        (nats * (self.ranks.world / tokens)).backward()

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Run one forward and backward pass; the processes exchange gradients in the last one only."""
        if self.sharded:
            self.forward.set_requires_gradient_sync(last)
            self.forward.set_is_last_backward(last)
            self.forward.set_reshard_after_backward(last)
        elif isinstance(self.forward, DistributedDataParallel) and not last:
            with self.forward.no_sync():
                yield
            return
        yield

    def full_model(self) -> LoopedTransformer:
        """Return the model with all its weights; a copy if it is sharded. Every process must call it."""
        if not self.sharded:
            return self.model
        device = next(self.model.parameters()).device
        whole = build_model(self.model.config, seed=0, device="meta", kernels=self.model.kernels)
        whole = whole.to_empty(device=device)
        whole.rope.copy_(self.model.rope)
        with torch.no_grad():
            for target, source in zip(whole.parameters(), self.model.parameters(), strict=True):
                target.copy_(full_tensor(source))
        return whole


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a parameter with all its rows. Every process must call it."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def local_rows(tensor: Tensor) -> Tensor:
    """Return the rows of a parameter or gradient on this process, sharing its memory."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def replicate(
    model: LoopedTransformer,
    ranks: Ranks,
    parallel: str,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Replica:
    """Return `model` wrapped for `ranks` by `parallel`; a single process wraps nothing."""
    loss = SummedLoss(model)
    if ranks.world == 1:
        return Replica(model=model, forward=loss, ranks=ranks)
    if parallel == "fsdp":
        return Replica(model=model, forward=_sharded(loss), ranks=ranks, sharded=True)
    # The published wiring has tables and gates that nothing reads.
    unread = set(gated_layers(model.config)) != set(value_table_layers(model.config))
    forward = DistributedDataParallel(loss, find_unused_parameters=unread, gradient_as_bucket_view=True)
    replica = Replica(model=model, forward=forward, ranks=ranks)
    with autocast(model.embedding.device, precision):  # else compiled blocks would be compiled twice
        _fix_bucket_layout(replica)
    return replica


def _fix_bucket_layout(replica: Replica) -> None:
    """Run one backward pass on dummy data, the same in every attempt, and drop its gradients.

    DDP rebuilds its buckets after the first backward pass, in the order in which gradients arrived. The
    position in a bucket decides the order of summation over processes. Without this pass the first step of a
    resumed run would use another layout, and other rounding, than the same step of an uninterrupted run.
    """
    config = replica.model.config
    tokens = torch.zeros(1, config.sequence_length, dtype=torch.int64, device=replica.model.embedding.device)
    replica.forward(tokens, tokens, [config.resolved_backprop_depth], [0]).backward()
    for parameter in replica.model.parameters():
        parameter.grad = None


def _sharded(loss: SummedLoss) -> nn.Module:
    """Shard the blocks outside the loop one by one, everything else together.

    A core block runs once per loop, and the number of loops differs between processes. Gathered at each use
    it would be sent many times, and processes would wait for messages that never come. As part of the
    outermost unit the core is gathered once per pass and its gradient is sent once.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(loss.model.embedding.device.type, (dist.get_world_size(),))
    for block in (*loss.model.prelude, *loss.model.coda):
        fully_shard(block, mesh=mesh)
    sharded: nn.Module = fully_shard(loss, mesh=mesh)
    return sharded


def check_divisible(batch_sequences: int, world: int) -> None:
    """Raise ConfigError unless the batch divides evenly over `world` processes."""
    if batch_sequences % world:
        near = max(world, round(batch_sequences / world) * world)
        raise ConfigError(
            f"training.batch_sequences={batch_sequences} does not divide over {world} processes: "
            f"use a multiple of {world}, such as {near}"
        )


def assign_sequences(model: ModelConfig, depths: Sequence[int], world: int) -> list[list[int]]:
    """Return the indices of the sequences of each process, ascending.

    Notes
    -----
    All processes get the same number. Sequences are taken from the deepest to the shallowest, `world` at a
    time, and the most expensive of them goes to the process with the least work so far. Work is the FLOPs at
    the sequence's own depth.
    """
    if world == 1:
        return [list(range(len(depths)))]
    flops = flops_per_token(model, "paper")
    limit = model.resolved_backprop_depth
    cost = [flops.at(depth, min(depth, limit)) for depth in depths]
    by_cost = sorted(range(len(depths)), key=lambda i: (-cost[i], i))
    assigned: list[list[int]] = [[] for _ in range(world)]
    load = [0.0] * world
    for start in range(0, len(by_cost), world):
        takers = sorted(range(world), key=lambda rank: (load[rank], rank))
        for index, rank in zip(by_cost[start : start + world], takers, strict=True):
            assigned[rank].append(index)
            load[rank] += cost[index]
    return [sorted(indices) for indices in assigned]


def row_range(rows: int, rank: int, world: int) -> tuple[int, int]:
    """Return start and stop of the rows of a sharded tensor on `rank`, as torch.chunk splits them."""
    size = -(-rows // world)
    return min(rank * size, rows), min((rank + 1) * size, rows)
