"""What a training step holds in memory, estimated from the config for the planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig
from model.flops import parameter_counts


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes by use."""

    weights: int
    gradients: int
    optimizer_state: int  # two moments for every parameter, an upper bound for Muon
    activations: int  # what the backward pass needs

    @property
    def total(self) -> int:
        """Return the sum over all uses."""
        return self.weights + self.gradients + self.optimizer_state + self.activations


def memory_estimate_bytes(
    config: ModelConfig,
    micro_batch: int,
    *,
    precision: Literal["float32", "bfloat16"] = "float32",
    checkpoint_loops: bool = False,
) -> MemoryEstimate:
    """Return the peak of a training step on `micro_batch` sequences, without the framework's own memory.

    Parameters, gradients and moments are float32; bfloat16 means autocast. Loops without gradient need
    nothing of their own.
    """
    parameters = parameter_counts(config).total
    tokens = micro_batch * config.sequence_length
    block = tokens * _block_bytes_per_token(config, precision)
    state = tokens * 4 * config.width
    outside = (config.layers - config.core_layers) * block + 6 * state
    loop = config.core_layers * block + 2 * state
    loops = config.resolved_backprop_depth if config.kind == "looped" else 0
    inside = loop + loops * state if checkpoint_loops and loops else loops * loop
    casts = 2 * parameters if precision == "bfloat16" else 0
    return MemoryEstimate(
        weights=4 * parameters + casts,
        gradients=4 * parameters,
        optimizer_state=8 * parameters,
        activations=outside + inside,
    )


def _block_bytes_per_token(config: ModelConfig, precision: str) -> int:
    """Return what a block keeps for its backward pass: two float32 streams, the rest as computed."""
    hidden = config.resolved_mlp_width * (4 if config.mlp == "swiglu" else 2)
    return 2 * config.width * 4 + (9 * config.width + hidden) * (2 if precision == "bfloat16" else 4)
