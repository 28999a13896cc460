"""Throughput of a run: time, memory, tokens per second and model FLOPs utilisation (MFU)."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from harness.run.config import TrainingConfig

_PRODUCT = {"cpu": 768, "cuda": 8192}  # side of the matrices whose product measures a device
_REPEATS = 4


def device_name(device: torch.device) -> str:
    """Return the device as the runs table names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x {torch.get_num_threads()}"


def peak_flops_per_s(training: TrainingConfig, device: torch.device) -> float:
    """Return the peak of one device: configured, from the longest matching name in the table, or measured."""
    if training.peak_flops_per_s is not None:
        return training.peak_flops_per_s
    name = device_name(device)
    known = [part for part in training.device_peaks if part.lower() in name.lower()]
    if known and training.precision == "bfloat16":  # the table's figures are for bfloat16
        return training.device_peaks[max(known, key=len)]
    return measured_flops_per_s(device, training.precision)


def measured_flops_per_s(device: torch.device, precision: str) -> float:
    """Return the speed of the fastest of a few square matrix products (2 n³ FLOPs); takes some tens of ms."""
    side = _PRODUCT["cuda" if device.type == "cuda" else "cpu"]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(_REPEATS):
        _wait_for(device)
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        _wait_for(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
