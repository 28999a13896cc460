"""The micro-batch: the number of sequences that a device computes at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from harness.distributed.parallel import Replica
from harness.run.config import RunConfig
from model.config_validation import ConfigError
from model.kernels import Workload
from model.memory import memory_estimate_bytes

_SHARE = 0.9  # of the memory, for a step; the optimiser and other users need some too
_CGROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def find_micro_batch(run: RunConfig, replica: Replica) -> int:
    """Return the micro-batch, the same for all processes. Every process must call it.

    Raises
    ------
    ConfigError : not even one sequence fits the memory.

    Notes
    -----
    Without a configured number, the share of a process is halved until a step fits memory. On a GPU a step is
    tried, on a CPU its memory is estimated, and `suits_cpu` limits it further.
    """
    share = run.training.batch_sequences // replica.ranks.world
    if run.training.micro_batch is not None:
        return min(run.training.micro_batch, share)
    device = next(replica.model.parameters()).device
    fits = _tried(run, replica, device) if device.type == "cuda" else _estimated(run, replica)
    size = largest_fitting(share, lambda sequences: not replica.ranks.any([not fits(sequences)])[0])
    if size is None:
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


def workload_of(run: RunConfig, device: torch.device) -> Workload:
    """Return the properties of a step on which the choice of kernels depends."""
    training = run.training
    return Workload(
        config=run.model,
        device=device.type,
        precision=training.precision,
        document_mask=training.document_mask,
    )


def suits_cpu(sequences: int, length: int, tokens_per_thread: int) -> bool:
    """Return True unless a CPU, of two threads at least, is faster with fewer sequences at once."""
    return sequences == 1 or sequences * length <= tokens_per_thread * max(2, torch.get_num_threads())


def available_bytes() -> int:
    """Return the memory available to this process: the machine's, or the limit of its control groups."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limits = [file.read_text().strip() for file in _limit_files() if file.exists()]
    return min([free, *(int(limit) for limit in limits if limit != "max")])


def _limit_files() -> Iterator[Path]:
    """Yield the memory limit files of this process's control group and of those above it."""
    for line in _OWN_GROUPS.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            root = _CGROUPS if number == "0" else _CGROUPS / "memory"
            folder = root / path.lstrip("/")
            name = "memory.max" if number == "0" else "memory.limit_in_bytes"
            yield from (each / name for each in (folder, *folder.parents) if each.is_relative_to(root))


def _estimated(run: RunConfig, replica: Replica) -> Callable[[int], bool]:
    """Return a test by the planner's memory estimate; all processes are assumed to share one machine."""
    room, precision = _SHARE * available_bytes() / replica.ranks.world, run.training.precision
    tokens = replica.model.kernels.tokens_at_once(workload_of(run, torch.device("cpu")))

    def fits(size: int) -> bool:
        suits = suits_cpu(size, run.model.sequence_length, tokens)
        return suits and memory_estimate_bytes(run.model, size, precision=precision).total <= room

    return fits


def _tried(run: RunConfig, replica: Replica, device: torch.device) -> Callable[[int], bool]:
    """Return a test by the peak memory of a forward and backward pass at the deepest backpropagation."""

    def fits(size: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        tokens = torch.zeros(size, run.model.sequence_length, dtype=torch.int64, device=device)
        depths = [run.model.resolved_backprop_depth] * size
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=run.training.precision == "bfloat16")
        try:
            with replica.micro_batch(last=True):
                with autocast:
                    nats = replica.forward(tokens, tokens, depths, list(range(size)))
                replica.backward(nats, tokens.numel())
        except torch.OutOfMemoryError:
            return False
        finally:
            for parameter in replica.model.parameters():
                parameter.grad = None
        peak = torch.cuda.max_memory_allocated(device)
        return peak <= _SHARE * torch.cuda.get_device_properties(device).total_memory

    return fits
