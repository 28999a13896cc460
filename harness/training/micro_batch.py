"""How many sequences a device takes through a step at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from harness.distributed.process_group import Ranks
from harness.run.config import RunConfig
from harness.training.device import (
    available_bytes,
    forget_peak_memory,
    is_out_of_memory,
    memory_bytes,
    peak_memory_bytes,
    workload_of,
)
from model.config_validation import ConfigError
from model.kernels import autocast
from model.memory import MemoryEstimate, memory_estimate_bytes
from model.transformer import LoopedTransformer

_SHARE = 0.9  # of the memory, for a step; other users need some too
_ESTIMATE_ERROR = 1.1  # a size whose estimate exceeds the memory by more is not tried


def find_micro_batch(run: RunConfig, model: LoopedTransformer, ranks: Ranks) -> int:
    """Return the micro-batch, the same for all processes. Every process must call it.

    Raises
    ------
    ConfigError : not even one sequence fits the memory.

    Notes
    -----
    Without a configured number, the share of a process is halved until a step fits memory. On a CPU its
    memory is estimated, and `suits_cpu` limits it further. On a GPU a step is tried, from the largest share
    whose estimate fits; with the bare model, before DDP or FSDP2 wraps it: a pass that ends in the middle
    leaves their hooks in a state in which later gradients are wrong. Processes try by themselves, without a
    message to each other, and agree on the smallest number.
    """
    share = run.training.batch_sequences // ranks.world
    if run.training.micro_batch is not None:
        return min(run.training.micro_batch, share)
    device = model.embedding.device
    fits = _tried(run, model, ranks.world) if _is_tried(device) else _estimated(run, model, ranks.world)
    size = min(ranks.all_gather(largest_fitting(share, fits) or 0))
    if not size:
        raise ConfigError(
            f"training.batch_sequences={run.training.batch_sequences}: not even one sequence of "
            f"{run.model.sequence_length} tokens fits the memory of {device}; use a smaller model, "
            "shorter sequences or training.parallel=fsdp over more processes"
        )
    return size


def largest_fitting(share: int, fits: Callable[[int], bool]) -> int | None:
    """Halve `share`, rounding up, until it fits; None if not even 1 does."""
    size = share
    while not fits(size):
        if size == 1:
            return None
        size = math.ceil(size / 2)
    return size


def suits_cpu(sequences: int, length: int, tokens_per_thread: int) -> bool:
    """Return True unless a CPU, of two threads at least, is faster with fewer sequences at once."""
    return sequences == 1 or sequences * length <= tokens_per_thread * max(2, torch.get_num_threads())


def _is_tried(device: torch.device) -> bool:
    return device.type == "cuda"


def _estimated(run: RunConfig, model: LoopedTransformer, world: int) -> Callable[[int], bool]:
    """Return a test by the planner's memory estimate; all processes are assumed to share one machine."""
    room = _SHARE * available_bytes() / world
    tokens = model.kernels.tokens_at_once(workload_of(run, torch.device("cpu")))

    def fits(size: int) -> bool:
        suits = suits_cpu(size, run.model.sequence_length, tokens)
        return suits and _estimate(run, size).total <= room

    return fits


def _estimate(run: RunConfig, size: int) -> MemoryEstimate:
    training = run.training
    return memory_estimate_bytes(
        run.model,
        size,
        precision=training.precision,
        checkpoint_loops=training.checkpoint_loops,
        optimizer=run.optimizer.name,
    )


def _tried(run: RunConfig, model: LoopedTransformer, world: int) -> Callable[[int], bool]:
    """Return a test by the peak memory of a forward and backward pass at the deepest backpropagation.

    The optimiser's state, which is not there yet, is added. With FSDP2 a process will hold less than here.
    """
    device, precision = model.embedding.device, run.training.precision
    room = _SHARE * memory_bytes(device)
    later = _estimate(run, 1).optimizer_state
    later //= world if run.training.parallel == "fsdp" else 1

    def fits(size: int) -> bool:
        if size > 1 and _estimate(run, size).total > _ESTIMATE_ERROR * room:
            return False
        forget_peak_memory(device)
        tokens = torch.zeros(size, run.model.sequence_length, dtype=torch.int64, device=device)
        depths = [run.model.resolved_backprop_depth] * size
        try:
            with autocast(device, precision):
                nats = model.loss(tokens, tokens, depths, list(range(size)), reduction="sum")
            nats.backward()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            for parameter in model.parameters():
                parameter.grad = None
        return peak_memory_bytes(device) + later <= room

    return fits
