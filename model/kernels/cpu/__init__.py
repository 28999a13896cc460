"""The kernels in C++ for float32 on a CPU; what they do not take goes to the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.kernels.cpu import library
from model.kernels.cpu.attention import causal_attention
from model.kernels.cpu.block import fused_block, takes_blocks, takes_tensor
from model.kernels.cpu.cross_entropy import scored, takes_head, takes_sizes
from model.kernels.cpu.loops import fused_loops, suits_threads
from model.kernels.interface import BlockLayer, CoreLayers, LoopInputs, Workload
from model.kernels.reference import ReferenceKernels

_TOKENS_AT_ONCE = 4096  # per thread: an operator looks after its cache itself, and more only need memory


class CpuKernels(ReferenceKernels):
    """Compute by the C++ kernels whatever they take: float32 on a CPU, sizes of whole vectors.

    The library is compiled and loaded when a tensor on a CPU first asks for it.
    """

    name = "cpu"

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend causally: query [B, H, L, D], key and value [B, KV, L, D] to a result [B, H, L, D]."""
        plain = query.device.type == "cpu" and query.dtype == torch.float32
        if plain and library.takes_channels(query.shape[-1]):
            return causal_attention(query, key, value)
        return super().attention(query, key, value)

    def block(
        self, layer: BlockLayer, x: Tensor, rope: Tensor, value_rows: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Map the stream x [B, L, d] by a block."""
        if not self.is_one_operator(layer, x, mask):
            return super().block(layer, x, rope, value_rows, mask)
        weights, config = layer.weights(), layer.config
        rows = None if weights.gate is None or value_rows is None else value_rows.to(x.dtype)
        given = _with_gate(weights, rows)
        return fused_block(x, rope, rows, given, config.heads, config.resolved_kv_heads, config.norm_eps)

    def is_one_operator(self, layer: BlockLayer, x: Tensor, mask: Tensor | None) -> bool:
        """Return True if the C++ block takes this input: its sizes, float32 on a CPU and no mask."""
        return mask is None and takes_tensor(x) and takes_blocks(layer.config)

    def loops(self, core: CoreLayers, inputs: LoopInputs, counts: Sequence[int]) -> Tensor:
        """Run sequence i `counts[i]` times through the core, without gradient."""
        layers = list(core.core_blocks())
        if not self._takes_loops(layers, inputs, counts):
            return super().loops(core, inputs, counts)
        config, rope = layers[0].config, inputs.context.rope
        rows = [inputs.context.value_rows.get(core.first_layer + i) for i in range(len(layers))]
        weights = [_with_gate(layer.weights(), own) for layer, own in zip(layers, rows, strict=True)]
        carry = inputs.carry.expand(inputs.first.shape[-1])
        sizes = config.heads, config.resolved_kv_heads, config.norm_eps
        return fused_loops(inputs.first, inputs.drive, carry, counts, rope, rows, weights, *sizes)

    def _takes_loops(self, layers: list[BlockLayer], inputs: LoopInputs, counts: Sequence[int]) -> bool:
        if inputs.carry.ndim > 1 or not suits_threads(counts):  # the operator takes no matrix
            return False
        x, mask = inputs.first, inputs.context.mask
        # Whoever hooks a block is to be called in every loop.
        return all(self.is_one_operator(layer, x, mask) and not layer.has_hooks() for layer in layers)

    @torch.no_grad()
    def token_nats(self, x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        """Return -log p of each label, float32 [N], zero where it is IGNORE."""
        if takes_head(x, head):
            return scored(x, head, labels, gradients=False)[0]
        return super().token_nats(x, head, labels)

    @torch.no_grad()
    def nats_and_gradients(self, x: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum of `token_nats` and its gradients by x and head."""
        if takes_head(x, head):
            nats, grad_x, grad_head = scored(x, head, labels, gradients=True)
            return nats.sum(), grad_x, grad_head
        return super().nats_and_gradients(x, head, labels)

    def tokens_at_once(self, workload: Workload) -> int:
        """Return the tokens per thread that a CPU takes through a step in the least time."""
        if workload.precision == "float32" and not workload.document_mask and takes_blocks(workload.config):
            return _TOKENS_AT_ONCE
        return super().tokens_at_once(workload)

    def refusal(self, workload: Workload) -> str | None:
        """Return why no kernel of this implementation is used in such a step; None if one is."""
        if workload.device != "cpu":
            return f"they run on a CPU, this run is on {workload.device}"
        if workload.precision != "float32":
            return f"they compute in float32, this run in {workload.precision}"
        if reason := library.failure():
            return f"their C++ could not be compiled: {reason}"
        config = workload.config
        attends = library.takes_channels(config.head_dim) and not workload.document_mask
        if attends or takes_sizes(config.vocabulary_size, config.width):
            return None
        return (
            f"heads of {config.head_dim} channels and a head of {config.vocabulary_size} tokens "
            f"are no multiples of {library.columns()}"
        )


def _with_gate(weights: Sequence[Tensor | None], rows: Tensor | None) -> list[Tensor]:
    """Return a block's weights; its gate only where there are rows for it."""
    *others, gate = weights
    return [weight for weight in (*others, gate if rows is not None else None) if weight is not None]
