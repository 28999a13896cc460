"""The gradient of one step: a process's share of the batch in micro-batches, summed over processes."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.data.loader import Batch
from harness.distributed.load_balance import assign_sequences
from harness.distributed.parallel import Replica
from harness.run.config import RunConfig
from harness.training.diagnostics import GradientNorms, StateProbe
from model.cross_entropy import IGNORE
from model.depth import counter_seed, draw_depths
from model.flops import executed_flops


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What chance decides about a step: every sequence's depth, and which sequences this process takes.

    Depths, data and first states are functions of (seed, step, sequence) alone, so that neither the number of
    processes nor micro-batches change them.
    """

    depths: list[int]  # of the global batch
    own: list[int]  # indices into it
    state_seeds: list[int]  # of the own sequences


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """What a step's gradient says of itself, in every process the same; it lies in the parameters."""

    loss_nats: float  # mean over the global batch's labels
    norm: float  # before clipping
    norms: dict[str, float]  # by part of the model
    state_rms: list[float]  # after loop 1, 2, ..., over this process's sequences; empty unless asked for
    flops: float  # executed by all processes


def draw(run: RunConfig, step: int, rank: int, world: int) -> Draws:
    """Draw the depths of `step` and deal its sequences to the processes, equal work for each.

    The deepest come first: a micro-batch of equal depths stays whole to its last loops.
    """
    depths = draw_depths(run.model, seed=run.seed, step=step, batch=run.training.batch_sequences).tolist()
    own = sorted(assign_sequences(run.model, depths, world)[rank], key=lambda index: -depths[index])
    return Draws(
        depths=depths, own=own, state_seeds=[counter_seed("state", run.seed, step, index) for index in own]
    )


class GradientOfStep:
    """Compute the gradients of a run's steps; token `bos` begins a document."""

    def __init__(self, run: RunConfig, replica: Replica, micro_batch: int, bos: int) -> None:
        self._run, self._replica, self._micro_batch, self._bos = run, replica, micro_batch, bos
        self._norms, self._probe = GradientNorms(replica), StateProbe(replica.model)
        self._device = next(replica.model.parameters()).device

    def compute(self, draws: Draws, batch: Batch, *, probe: bool) -> Gradient:
        """Leave the clipped gradient of the global batch's mean loss in the parameters.

        `batch` holds this process's sequences. The processes exchange gradients once and a handful of numbers
        once. A gradient that is not finite is left unclipped.
        """
        nats, count = self._accumulate(draws, batch, probe)
        squares = self._norms.squares()
        sums = torch.cat([torch.stack([nats.double(), count.double()]), squares])
        total_nats, total_count, *parts = self._replica.ranks.all_reduce(sums).tolist()
        # The gradient is that of the sum over batch_tokens; the mean counts the labels that are scored.
        scale = self._run.batch_tokens / max(1.0, total_count)
        norm = scale * math.sqrt(math.fsum(parts)) if all(map(math.isfinite, parts)) else math.nan
        self._norms.rescale(scale, norm, self._run.training.gradient_clip)
        return Gradient(
            loss_nats=total_nats / max(1.0, total_count),
            norm=norm,
            norms={n: scale * math.sqrt(p) for n, p in zip(self._norms.names, parts, strict=True)},
            state_rms=self._probe.by_loop(),
            flops=executed_flops(self._run.model, draws.depths, self._run.model.sequence_length),
        )

    def _accumulate(self, draws: Draws, batch: Batch, probe: bool) -> tuple[Tensor, Tensor]:
        """Sum nats and scored labels over this process's sequences, the gradient over all processes."""
        x, y, documents = self._on_device(batch.tokens, batch.labels, self._documents(batch))
        depths = [draws.depths[index] for index in draws.own]
        nats = torch.zeros((), device=self._device)
        for start in range(0, len(x), self._micro_batch):
            part = slice(start, start + self._micro_batch)
            inputs = (x[part], y[part], depths[part], draws.state_seeds[part])
            masked = {"documents": documents[part]} if len(documents) else {}
            with self._replica.micro_batch(last=start + self._micro_batch >= len(x)):
                with _autocast(self._run, self._device), self._probe.watching(depths[part], probe):
                    loss = self._replica.forward(*inputs, **masked)
                self._replica.backward(loss, self._run.batch_tokens)
            nats += loss.detach()
        return nats, (y != IGNORE).sum()

    def _documents(self, batch: Batch) -> np.ndarray:
        return batch.documents(self._bos) if self._run.training.document_mask else np.empty(0, np.int64)

    def _on_device(self, *arrays: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(array).to(self._device, non_blocking=True) for array in arrays]


def _autocast(run: RunConfig, device: torch.device) -> AbstractContextManager[object]:
    if run.training.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
