"""One model on one or several devices: plain, DDP or FSDP2 behind one key, gradients summed over all.

FSDP2 is imported where a model is sharded: its import takes longer than that of the rest of the harness, and
every run of a sweep would wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.distributed.process_group import Ranks
from model.transformer import LoopedTransformer, build_model
from model.value_embedding_layers import gated_layers, value_table_layers


class SummedLoss(nn.Module):
    """Give the model the forward that DDP and FSDP2 wrap: the summed nats of a micro-batch."""

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
        """Map tokens, labels and documents [B, L], one depth and one state seed per sequence."""
        return self.model.loss(tokens, labels, depths, seeds, reduction="sum", documents=documents)


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A model as this process holds it, whole or one shard of it, and how its loss is computed."""

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

    def whole_model(self) -> LoopedTransformer:
        """Give the model with all its weights; of a sharded one, a copy. Every process must ask."""
        if not self.sharded:
            return self.model
        device = next(self.model.parameters()).device
        whole = build_model(self.model.config, seed=0, device="meta", kernels=self.model.kernels)
        whole = whole.to_empty(device=device)
        whole.rope.copy_(self.model.rope)
        with torch.no_grad():
            for target, source in zip(whole.parameters(), self.model.parameters(), strict=True):
                target.copy_(whole_tensor(source))
        return whole


def whole_tensor(tensor: Tensor) -> Tensor:
    """Give a parameter with all its rows. Every process must ask."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def own_rows(tensor: Tensor) -> Tensor:
    """Give the rows of a parameter or gradient that this process holds; they share its memory."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def replicate(model: LoopedTransformer, ranks: Ranks, parallel: str) -> Replica:
    """Wrap `model` for training with `ranks`; alone it stays as it is, whatever `parallel` says."""
    loss = SummedLoss(model)
    if ranks.world == 1:
        return Replica(model=model, forward=loss, ranks=ranks)
    if parallel == "fsdp":
        return Replica(model=model, forward=_sharded(loss), ranks=ranks, sharded=True)
    # The published wiring has tables and gates that nothing reads.
    unread = set(gated_layers(model.config)) != set(value_table_layers(model.config))
    forward = DistributedDataParallel(loss, find_unused_parameters=unread, gradient_as_bucket_view=True)
    replica = Replica(model=model, forward=forward, ranks=ranks)
    _settle_buckets(replica)
    return replica


def _settle_buckets(replica: Replica) -> None:
    """Take a backward pass, the same in every attempt, on nothing.

    After its first one DDP lays its buckets out anew, by the order in which gradients came. Where a number
    stands in a bucket decides in which order it is summed over the processes, so a resumed run must not take
    a step that the other run took after that in the layout from before.
    """
    config = replica.model.config
    tokens = torch.zeros(1, config.sequence_length, dtype=torch.int64, device=replica.model.embedding.device)
    replica.forward(tokens, tokens, [config.resolved_backprop_depth], [0]).backward()
    for parameter in replica.model.parameters():
        parameter.grad = None


def _sharded(loss: SummedLoss) -> nn.Module:
    """Shard blocks outside the loop one by one, everything else together.

    A core block runs once per loop, and how often differs between processes: gathered at each use it would
    be sent again and again, and processes would wait for messages that never come. As part of the outermost
    unit the core is gathered once per pass and its gradient sent once.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(loss.model.embedding.device.type, (dist.get_world_size(),))
    for block in (*loss.model.prelude, *loss.model.coda):
        fully_shard(block, mesh=mesh)
    sharded: nn.Module = fully_shard(loss, mesh=mesh)
    return sharded
