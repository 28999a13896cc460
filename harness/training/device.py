"""The device of a run: which one, its peak speed, its memory, and what computes on it."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from harness.distributed.process_group import Ranks
from harness.run.config import RunConfig, TrainingConfig
from model.config_validation import ConfigError
from model.kernels import Workload, keep_freed_memory

_CGROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

_PRODUCT = {"cpu": 768, "cuda": 8192}  # side of the matrices whose product measures a device
_REPEATS = 4

# Words of errors for want of memory, by torch, cuBLAS, cuDNN, NCCL and the allocator of the CPU.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "_status_alloc_failed",
    "cudaerrormemoryallocation",
)


class DeviceError(ConfigError):
    """This process was given a GPU that torch cannot use."""


def device_named(name: str, ranks: Ranks, *, key: str = "device") -> torch.device:
    """Return a device by name; "auto" is the GPU of this process's local rank where there is one.

    Raises
    ------
    ConfigError : `key` asks for a GPU and none is visible.
    DeviceError : `key` leaves the choice open, and the GPU that this process was given does not work: on
        the CPU a run would take a hundred times as long without a word.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if name == "auto" and given not in ("", "-1", "NoDevFiles") and not torch.cuda.is_available():
        raise DeviceError(
            f"CUDA_VISIBLE_DEVICES={given} gives this process a GPU, but torch {torch.__version__} cannot "
            f"use it (nvidia-smi shows driver and devices); {key}=cpu asks for the CPU"
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}=cuda: no GPU is visible here; use device=cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Modulo, because a launcher may make only one GPU visible to each process.
    return torch.device("cuda", ranks.local_rank % torch.cuda.device_count())


def prepare_process(device: torch.device) -> None:
    """Set the current GPU and how its memory is allocated; on a CPU let the allocator keep freed memory."""
    if device.type == "cuda":
        # The number of active sequences changes from loop to loop: blocks of many sizes fragment the memory.
        if "PYTORCH_ALLOC_CONF" not in os.environ:  # its later name
            os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()


def demand_determinism(*, compiled: bool) -> None:
    """Make torch raise an error for every operation that is not deterministic.

    Notes
    -----
    `use_deterministic_algorithms` also covers compiled code, but imports the compiler, which takes seconds.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    # Nothing here reads what it did not write; else every empty tensor would first be filled with NaN.
    torch.utils.deterministic.fill_uninitialized_memory = False
    if compiled:
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_deterministic_debug_mode("error")


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


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that the memory of a device or of the machine did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _OUT_OF_MEMORY)


def memory_bytes(device: torch.device) -> int:
    """Return the memory of the device, or what is available to this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return available_bytes()


def forget_peak_memory(device: torch.device) -> None:
    """Free what the allocator of a GPU keeps, and let `peak_memory_bytes` start anew. None of it on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def workload_of(run: RunConfig, device: torch.device) -> Workload:
    """Return the properties of a step on which the choice of kernels depends."""
    training = run.training
    return Workload(
        config=run.model,
        device=device.type,
        precision=training.precision,
        document_mask=training.document_mask,
    )


def available_bytes() -> int:
    """Return the memory available to this process: the machine's, or the limit of its control groups."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    )
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limits = [file.read_text(encoding="utf-8").strip() for file in _limit_files() if file.exists()]
    return min([free, *(int(limit) for limit in limits if limit != "max")])


def _limit_files() -> Iterator[Path]:
    """Yield the memory limit files of this process's control group and of those above it."""
    for line in _OWN_GROUPS.read_text(encoding="utf-8").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            root = _CGROUPS if number == "0" else _CGROUPS / "memory"
            folder = root / path.lstrip("/")
            name = "memory.max" if number == "0" else "memory.limit_in_bytes"
            yield from (each / name for each in (folder, *folder.parents) if each.is_relative_to(root))
