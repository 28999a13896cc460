"""Parameters by part, FLOPs per token and memory of a model, computed from its config alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from model.config import ModelConfig, gated_layers, value_table_layers

Accounting = Literal["paper", "released"]


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters by part; the four parts add up to `total`."""

    total: int
    embedding: int  # token embedding, tied with the unembedding
    value_embedding: int  # value-embedding tables
    core: int  # blocks inside the loop
    other: int  # prelude and coda blocks, norms, injection, readout


@dataclass(frozen=True, kw_only=True)
class FlopsPerToken:
    """Training FLOPs per token, affine in depth: f = fixed + per_loop µ + per_backprop_loop µ_bwd."""

    fixed: float  # everything outside the loop, forward and backward
    per_loop: float  # one forward pass through the core
    per_backprop_loop: float  # one backward pass through the core

    def at(self, mean_recurrence: float, backprop_depth: float) -> float:
        """Return the training FLOPs per token at these (mean) depths."""
        return self.fixed + self.per_loop * mean_recurrence + self.per_backprop_loop * backprop_depth

    def forward_at(self, mean_recurrence: float) -> float:
        """Return the FLOPs per token of a forward pass: outside the loop, a third of the training cost."""
        return self.fixed / 3 + self.per_loop * mean_recurrence


def _block_parameters(config: ModelConfig) -> int:
    attention = 2 * config.width * config.width + 2 * config.width * config.kv_width
    mlp_matrices = 3 if config.mlp == "swiglu" else 2
    return attention + mlp_matrices * config.width * config.resolved_mlp_width + 2 * config.width


def _injection_parameters(config: ModelConfig) -> int:
    if config.kind == "transformer" or config.injection == "add":
        return 0
    square = config.width * config.width
    return 2 * square if config.injection == "linear" else square + 2 * config.width


@cache
def parameter_counts(config: ModelConfig) -> ParameterCounts:
    """Return the exact number of parameters by part; for the published sizes, the printed counts."""
    width, block = config.width, _block_parameters(config)
    gate = config.gate_channels * config.resolved_kv_heads
    gates = gated_layers(config)
    core_range = range(config.prelude_layers, config.prelude_layers + config.core_layers)
    core_gates = sum(layer in core_range for layer in gates)
    embedding = config.vocabulary_size * width
    value_embedding = len(value_table_layers(config)) * config.vocabulary_size * config.kv_width
    core = config.core_layers * block + core_gates * gate
    other = (config.layers - config.core_layers) * block + (len(gates) - core_gates) * gate + width
    if config.kind == "looped":
        other += _injection_parameters(config)
        other += (width if config.prelude_norm else 0) + (width * width if config.readout else 0)
    return ParameterCounts(
        total=embedding + value_embedding + core + other,
        embedding=embedding,
        value_embedding=value_embedding,
        core=core,
        other=other,
    )


@cache
def flops_per_token(config: ModelConfig, accounting: Accounting) -> FlopsPerToken:
    """Return training FLOPs per token: 2 per parameter forward, 4 backward; attention 4 d L a layer forward.

    `paper` leaves the embedding and the value-embedding tables out and counts the unembedding; `released`,
    the published code's own function, counts the tables as if they were matrices and leaves the unembedding
    out. The input matrix of the injection is charged once per token in both, since it does not depend on the
    state; only the state half of a linear injection is spent at every loop, which `paper` follows.

    Raises
    ------
    ValueError : an unknown accounting.
    """
    counts = parameter_counts(config)
    if accounting == "paper":
        outside, inside = counts.other + counts.embedding, counts.core
        if config.kind == "looped" and config.injection == "linear":
            state_half = config.width * config.width
            outside, inside = outside - state_half, inside + state_half
    elif accounting == "released":
        outside, inside = counts.other + counts.value_embedding, counts.core
    else:
        raise ValueError(f"accounting must be paper or released, got {accounting!r}")
    attention = 4 * config.width * config.sequence_length
    attention_outside = (config.layers - config.core_layers) * attention
    attention_inside = config.core_layers * attention
    return FlopsPerToken(
        fixed=float(6 * outside + 3 * attention_outside),
        per_loop=float(2 * inside + attention_inside),
        per_backprop_loop=float(4 * inside + 2 * attention_inside),
    )


def executed_flops(config: ModelConfig, depths: Sequence[int], sequence_length: int) -> float:
    """Return the FLOPs, in `paper` accounting, of a training step on sequences looped `depths` times."""
    flops = flops_per_token(replace(config, sequence_length=sequence_length), "paper")
    limit = config.resolved_backprop_depth
    return sequence_length * sum(flops.at(depth, min(depth, limit)) for depth in depths)
