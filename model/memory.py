"""What a training step holds in memory, estimated from the config for the planner.

It follows the tensors that eager torch keeps. `validation/memory.py` holds it against a trace of them;
compiled blocks keep less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig, gated_layers, value_table_layers
from model.flops import parameter_counts

Precision = Literal["float32", "bfloat16"]

LOGITS_AT_ONCE = 2**26  # elements, as `model.kernels.reference` chooses on a GPU
# For each weight of the largest group of equal matrices: Muon's update, its copies and products.
_MUON_BYTES = {"float32": 32, "bfloat16": 22}


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes by use."""

    weights: int
    gradients: int
    optimizer_state: int  # two moments, one for the matrices of Muon
    activations: int  # what the backward pass needs, with the matrices' copies in bfloat16
    temporary: int  # beyond these, at the worst moment of a pass or of the optimiser's step

    @property
    def total(self) -> int:
        """Return the sum over all uses."""
        return self.held + self.activations + self.temporary

    @property
    def held(self) -> int:
        """Return what stays between steps, which sharding divides."""
        return self.weights + self.gradients + self.optimizer_state


def memory_estimate_bytes(
    config: ModelConfig,
    micro_batch: int,
    *,
    precision: Precision = "float32",
    checkpoint_loops: bool = False,
    optimizer: Literal["muon_adamw", "adamw"] = "muon_adamw",
) -> MemoryEstimate:
    """Return the peak of a training step on `micro_batch` sequences, without the framework's own memory.

    Parameters, gradients and moments are float32; bfloat16 means autocast. Loops without gradient need
    nothing of their own.
    """
    parameters = parameter_counts(config).total
    matrices = config.layers * _block_weights(config) if optimizer == "muon_adamw" else 0
    tokens = micro_batch * config.sequence_length
    activations = _copies(config, precision, checkpoint_loops) + tokens * _kept_per_token(
        config, precision, checkpoint_loops
    )
    group = config.layers * config.width * config.resolved_mlp_width * (2 if config.mlp == "swiglu" else 1)
    update = _MUON_BYTES[precision] * group if matrices else 0
    return MemoryEstimate(
        weights=4 * parameters,
        gradients=4 * parameters,
        optimizer_state=8 * parameters - 4 * matrices,
        activations=activations,
        temporary=max(_temporary(config, tokens, precision), update - activations),
    )


def _block_weights(config: ModelConfig) -> int:
    """Return the weights of a block's matrices, gates apart."""
    mlp = (3 if config.mlp == "swiglu" else 2) * config.resolved_mlp_width
    return config.width * (2 * config.width + 2 * config.kv_width + mlp)


def _loops(config: ModelConfig) -> int:
    return config.resolved_backprop_depth if config.kind == "looped" else 0


def _copies(config: ModelConfig, precision: Precision, checkpoint_loops: bool) -> int:
    """Return the bytes of copies of weights, and of the head's gradient, that the backward pass needs."""
    head = 4 * config.vocabulary_size * config.width
    if precision == "bfloat16":  # each once
        squares = 2 * config.width**2 if config.kind == "looped" else 0
        return head + 2 * (config.layers * _block_weights(config) + squares)
    # Queries, keys and values are one matrix, joined in every call of a block.
    joint = 4 * config.width * (config.width + 2 * config.kv_width)
    calls = config.core_layers * (1 if checkpoint_loops else _loops(config))
    return head + joint * (config.layers - config.core_layers + calls)


def _kept_per_token(config: ModelConfig, precision: Precision, checkpoint_loops: bool) -> int:
    """Return the bytes that the backward pass needs of a token."""
    computed, stream = 2 if precision == "bfloat16" else 4, 4 * config.width
    with_rows = set(gated_layers(config)) & set(value_table_layers(config))
    blocks = [_block_per_token(config, computed, layer in with_rows) for layer in range(config.layers)]
    first, last = config.prelude_layers, config.prelude_layers + config.core_layers
    outside = sum(blocks[:first]) + sum(blocks[last:]) + 2 * stream  # the final norm, the loss's gradient
    if precision == "float32":
        outside += len(value_table_layers(config)) * 4 * config.kv_width
    loops, loop = _loops(config), sum(blocks[first:last]) + stream
    if not loops:
        return outside
    entry = stream + 2 * computed * config.width + computed * config.width  # norm and drive, then the readout
    return outside + entry + (loop + loops * stream if checkpoint_loops else loops * loop)


def _block_per_token(config: ModelConfig, computed: int, has_rows: bool) -> int:
    """Return what a block keeps of a token: two float32 streams, the rest as computed."""
    width, kv = config.width, config.kv_width
    hidden = config.resolved_mlp_width * (4 if config.mlp == "swiglu" else 2)
    # Values without table rows are a part of the joint product, which is kept as a whole.
    values = width + 2 * kv if not has_rows else kv + (kv if computed == 2 else 0)
    norms, queries_keys, attended = 2 * width, width + kv, width
    statistics = 4 * (2 + 2 * config.heads + config.resolved_kv_heads)
    return 8 * width + computed * (norms + queries_keys + values + attended + hidden) + statistics


def _temporary(config: ModelConfig, tokens: int, precision: Precision) -> int:
    """Return what a pass holds at its end beyond what is kept: logits, or the tables' rows of all tokens."""
    computed = 2 if precision == "bfloat16" else 4
    logits = min(tokens * config.vocabulary_size, LOGITS_AT_ONCE)
    head = computed * config.vocabulary_size * config.width if precision == "bfloat16" else 0
    loss = 8 * logits + head + 4 * tokens * config.width
    rows = 4 * config.kv_width * len(value_table_layers(config)) if precision == "bfloat16" else 0
    last_block = 8 * config.width + computed * config.resolved_mlp_width
    return max(loss, tokens * (rows + last_block))
