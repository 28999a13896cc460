"""How the model is computed: one set of operations (`Kernels`), several implementations.

`reference` is torch on any device. `cpu` is C++ for float32 on a CPU, over the reference. Another one, for
CUDA say, is a class that overrides what it computes itself, and an entry in `_IMPLEMENTATIONS`. Only this
folder knows which there are.
"""

from __future__ import annotations

from typing import Literal

from model.config_validation import ConfigError
from model.kernels.compilation import compile_blocks, eager_fallback
from model.kernels.cpu import CpuKernels
from model.kernels.cpu.library import keep_freed_memory
from model.kernels.functional import autocast, half_squared_relu, rms_norm, rotated_norm, summed_nats
from model.kernels.interface import IGNORE, BlockWeights, Context, Kernels, LoopInputs, Workload
from model.kernels.reference import ReferenceKernels, run_loops

__all__ = [
    "AUTO",
    "IGNORE",
    "BlockWeights",
    "Choice",
    "Context",
    "Kernels",
    "LoopInputs",
    "Workload",
    "autocast",
    "compile_blocks",
    "eager_fallback",
    "half_squared_relu",
    "keep_freed_memory",
    "kernels_for",
    "name_in_use",
    "rms_norm",
    "rotated_norm",
    "run_loops",
    "summed_nats",
]

Choice = Literal["auto", "reference", "cpu"]
_IMPLEMENTATIONS: dict[str, Kernels] = {"reference": ReferenceKernels(), "cpu": CpuKernels()}
# Chosen by each tensor: the kernels for a CPU hand all others to the reference.
AUTO = _IMPLEMENTATIONS["cpu"]


def kernels_for(choice: Choice, workload: Workload) -> Kernels:
    """Return the kernels of this name; "auto" is the fastest that take the workload.

    Raises
    ------
    ConfigError : kernels asked for by name cannot be used in such a step.
    """
    if choice == "auto":
        return AUTO
    kernels = _IMPLEMENTATIONS[choice]
    if reason := kernels.refusal(workload):
        raise ConfigError(
            f"training.kernels={choice}: these kernels cannot be used: {reason}; use auto or reference"
        )
    return kernels


def name_in_use(kernels: Kernels, workload: Workload) -> str:
    """Return the name of the implementation that computes such a step, which may be the reference below."""
    return "reference" if kernels.refusal(workload) else kernels.name
