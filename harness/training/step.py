"""Inputs and gradient of one step.

Inputs are prepared ahead in a thread. The gradient is accumulated over micro-batches and processes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.data.loader import Batch
from harness.distributed.parallel import Replica, assign_sequences
from harness.run.config import RunConfig
from harness.training.diagnostics import GradientNorms, StateProbe
from model.depth import counter_seed, draw_depths
from model.flops import executed_flops
from model.kernels import IGNORE, autocast

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random draws of a step, and the sequences of this process.

    Notes
    -----
    Depths, data and h_0 are functions of (seed, step, sequence) alone. Neither the number of processes nor
    the micro-batch changes them.
    """

    depths: list[int]  # of the global batch
    own: list[int]  # indices into it
    state_seeds: list[int]  # of the own sequences


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Figures of a step's gradient, equal in every process. The gradient itself is in the parameters."""

    loss_nats: float  # mean over the global batch's labels
    norm: float  # before clipping
    norms: dict[str, float]  # by part of the model
    state_rms: list[float]  # after loop 1, 2, ..., over this process's sequences; empty unless probed
    flops: float  # executed by all processes


def draw(run: RunConfig, step: int, rank: int, world: int) -> Draws:
    """Draw the depths of `step` and assign its sequences to the processes, with equal work for each.

    Sequences are sorted by falling depth, so that those of a micro-batch need a similar number of loops.
    """
    depths = draw_depths(run.model, seed=run.seed, step=step, batch=run.training.batch_sequences).tolist()
    own = sorted(assign_sequences(run.model, depths, world)[rank], key=lambda index: -depths[index])
    return Draws(
        depths=depths, own=own, state_seeds=[counter_seed("state", run.seed, step, index) for index in own]
    )


class Prefetch(Generic[T]):
    """Compute `make(key)` for each key in turn in a thread, up to `ahead` values before they are taken.

    A context manager: the thread ends with the block. `waited_s` is the time that `take` has waited.
    """

    def __init__(self, make: Callable[[int], T], keys: Iterable[int], *, ahead: int = 2) -> None:
        self.waited_s = 0.0
        self._make, self._keys, self._ahead = make, iter(keys), ahead
        self._pending: deque[Future[T]] = deque()
        self._pool = ThreadPoolExecutor(max_workers=1)

    def take(self) -> T:
        """Return the next value, or raise the error of its computation; IndexError after the last key."""
        began = time.monotonic()
        future = self._pending.popleft()
        self._submit(1)
        try:
            return future.result()
        finally:
            self.waited_s += time.monotonic() - began

    def _submit(self, count: int) -> None:
        self._pending.extend(self._pool.submit(self._make, key) for key in islice(self._keys, count))

    def __enter__(self) -> Self:
        self._submit(self._ahead + 1)
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown(cancel_futures=True)


class GradientOfStep:
    """Compute the gradients of a run's steps; `bos` is the token that begins a document."""

    def __init__(self, run: RunConfig, replica: Replica, micro_batch: int, bos: int) -> None:
        self._run, self._replica, self._micro_batch, self._bos = run, replica, micro_batch, bos
        self._norms, self._probe = GradientNorms(replica), StateProbe(replica.model)
        self._device = next(replica.model.parameters()).device

    def compute(self, draws: Draws, batch: Batch, *, probe: bool) -> Gradient:
        """Compute the clipped gradient of the global batch's mean loss into the parameters.

        Parameters
        ----------
        batch : this process's sequences.
        probe : measure the state after each loop.

        Notes
        -----
        Processes exchange gradients once and a few scalars once. A non-finite gradient is not clipped.
        """
        nats, count = self._accumulate(draws, batch, probe)
        squares = self._norms.squares()
        sums = torch.cat([torch.stack([nats.double(), count.double()]), squares])
        total_nats, total_count, *parts = self._replica.ranks.all_reduce(sums).tolist()
        # The gradient so far is of the sum divided by batch_tokens; the mean is over the scored labels.
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
        """Accumulate the gradient of all processes; return this one's total nats and scored labels."""
        precision = self._run.training.precision
        x, y, documents = on_device(self._device, batch.tokens, batch.labels, self._documents(batch))
        depths = [draws.depths[index] for index in draws.own]
        nats = torch.zeros((), device=self._device)
        for start in range(0, len(x), self._micro_batch):
            part = slice(start, start + self._micro_batch)
            inputs = (x[part], y[part], depths[part], draws.state_seeds[part])
            masked = {"documents": documents[part]} if len(documents) else {}
            with self._replica.micro_batch(last=start + self._micro_batch >= len(x)):
                with autocast(self._device, precision), self._probe.probing(depths[part], probe):
                    loss = self._replica.forward(*inputs, **masked)
                self._replica.backward(loss, self._run.batch_tokens)
            nats += loss.detach()
        return nats, (y != IGNORE).sum()

    def _documents(self, batch: Batch) -> np.ndarray:
        return batch.documents(self._bos) if self._run.training.document_mask else np.empty(0, np.int64)


def on_device(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """Return arrays as tensors of a device; a copy to a GPU is only begun."""
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cuda":  # from pageable memory the copy would wait for the device
        tensors = [tensor.pin_memory() for tensor in tensors]
    return [tensor.to(device, non_blocking=True) for tensor in tensors]
