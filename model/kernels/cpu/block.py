"""The transformer block as one operator for float32 on a CPU, forward and backward: calls block.h.

It is the block of `model.layers` with causal attention over whole sequences and the MLP `0.5 relu(x)²`. In
torch, small models spend much of their time beside the matrix products.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from model.config import ModelConfig
from model.kernels.cpu.attention import attention_flops
from model.kernels.cpu.library import columns, largest_width, load, takes_channels
from model.kernels.interface import BlockWeights

# The order of `struct Weights` in block.h; no code checks that they agree, so change both.
WEIGHTS = BlockWeights._fields


def takes_blocks(config: ModelConfig) -> bool:
    """Return True if the operator computes the blocks of such a model, in float32 and without a mask."""
    sizes = config.head_dim, config.resolved_mlp_width
    return config.mlp == "relu2" and config.width <= largest_width() and all(map(takes_channels, sizes))


def takes_tensor(x: Tensor) -> bool:
    """Return True if x is not empty and is computed here and now, in float32 on a CPU."""
    return (
        not torch.compiler.is_compiling()
        and x.numel() > 0
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def fused_block(
    x: Tensor,
    rope: Tensor,
    rows: Tensor | None,
    weights: Sequence[Tensor],
    heads: int,
    kv_heads: int,
    eps: float,
) -> Tensor:
    """Map the stream x [B, L, d] by a block of `weights` in the order of WEIGHTS.

    rows [B, L, kv d] are given where the weights hold a gate; rope is [L, 1, D / 2, 2]. All are float32.
    d, D, the MLP's hidden channels and those that a gate reads are multiples of `library.columns`. All
    gradients are computed, required or not; there are none of second order.
    """
    tensors = [tensor for tensor in (x, rows, *weights) if tensor is not None]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    y: Tensor = _FusedBlock.apply(x, rope, rows, heads, kv_heads, eps, keep, *weights)
    return y


class _FusedBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rope: Tensor,
        rows: Tensor | None,
        heads: int,
        kv_heads: int,
        eps: float,
        keep: bool,
        *weights: Tensor,
    ) -> Tensor:
        out, kept = _BLOCK(x, rope, rows, weights, heads, kv_heads, eps, keep)
        if keep:
            ctx.save_for_backward(x, rope, rows, kept, *weights)
            ctx.settings = heads, kv_heads, eps
        result: Tensor = out
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, rope, rows, kept, *weights = ctx.saved_tensors
        grad_x, grad_rows, *others = _BLOCK_BACKWARD(x, rope, rows, weights, kept, *grads, *ctx.settings)
        return grad_x, None, None if rows is None else grad_rows, None, None, None, None, *others


class Sizes(ctypes.Structure):
    """The sizes of a block and its stream, as the kernels take them."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "length", "heads", "kv_heads", "dim", "hidden", "gate_channels")
        ),
        ("eps", ctypes.c_float),
    ]


WeightPointers = ctypes.c_void_p * len(WEIGHTS)
_Given = ctypes.c_void_p * 3


def sizes_of(x: Tensor, weights: Sequence[Tensor], heads: int, kv_heads: int, eps: float) -> Sizes:
    """Return the sizes of a stream x [B, L, d] and a block's weights."""
    batch, length, width = x.shape
    gate_channels = weights[-1].shape[1] if len(weights) == len(WEIGHTS) else 0
    assert gate_channels % columns() == 0
    hidden = weights[WEIGHTS.index("fc")].shape[0]
    return Sizes(batch, length, heads, kv_heads, width // heads, hidden, gate_channels, eps)


def library_for(sizes: Sizes) -> ctypes.CDLL:
    """Return the library whose tiles divide all sizes of a block."""
    library = load(sizes.dim, sizes.hidden, sizes.gate_channels)
    assert library is not None
    return library


def dense(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return contiguous tensors, copies where need be."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def pointers(tensors: Sequence[Tensor | None]) -> list[int | None]:
    """Return the addresses of float32 tensors."""
    assert all(tensor is None or tensor.dtype == torch.float32 for tensor in tensors)
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _forward(
    x: Tensor,
    rope: Tensor,
    rows: Tensor | None,
    weights: Sequence[Tensor],
    heads: int,
    kv_heads: int,
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    sizes = sizes_of(x, weights, heads, kv_heads, eps)
    library = library_for(sizes)
    assert len(rope) >= x.shape[1]
    assert rows is None or rows.shape[:2] == x.shape[:2]
    given, matrices = dense(x, rope, rows), dense(*weights)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    kept = x.new_empty(library.kept_floats(ctypes.byref(sizes)) if keep else 0)
    enough = library.block_forward(
        ctypes.byref(sizes),
        WeightPointers(*pointers(matrices)),
        _Given(*pointers(given)),
        ctypes.c_void_p(kept.data_ptr() if keep else None),
        ctypes.c_void_p(out.data_ptr()),
        torch.get_num_threads(),
    )
    if not enough:
        raise MemoryError("no memory for a block of the model")
    return out, kept


def _backward(
    x: Tensor,
    rope: Tensor,
    rows: Tensor | None,
    weights: Sequence[Tensor],
    kept: Tensor,
    grad: Tensor,
    heads: int,
    kv_heads: int,
    eps: float,
) -> list[Tensor]:
    sizes = sizes_of(x, weights, heads, kv_heads, eps)
    library = library_for(sizes)
    given, matrices = dense(x, rope, rows), dense(*weights)
    grad = grad.contiguous()
    likes = (x, x.new_empty(0) if rows is None else rows, *weights)
    made = [torch.empty_like(like, memory_format=torch.contiguous_format) for like in likes]
    grad_x, grad_rows, *grad_weights = pointers(made)
    enough = library.block_backward(
        ctypes.byref(sizes),
        WeightPointers(*pointers(matrices)),
        _Given(*pointers(given)),
        *map(ctypes.c_void_p, (kept.data_ptr(), grad.data_ptr(), grad_x, grad_rows)),
        WeightPointers(*grad_weights),
        torch.get_num_threads(),
    )
    if not enough:
        raise MemoryError("no memory for the backward pass of a block of the model")
    return made


# Not torch.library.custom_op: that imports the compiler, which takes seconds.
OPERATORS = torch.library.Library("loopscale", "FRAGMENT")
OPERATORS.define(
    "block(Tensor x, Tensor rope, Tensor? rows, Tensor[] weights, int heads, int kv_heads, float eps, "
    "bool keep) -> (Tensor, Tensor)"
)
OPERATORS.define(
    "block_backward(Tensor x, Tensor rope, Tensor? rows, Tensor[] weights, Tensor kept, Tensor grad, "
    "int heads, int kv_heads, float eps) -> Tensor[]"
)
OPERATORS.impl("block", _forward, "CPU")
OPERATORS.impl("block_backward", _backward, "CPU")
_BLOCK, _BLOCK_BACKWARD = torch.ops.loopscale.block.default, torch.ops.loopscale.block_backward.default

Shapes = Sequence[Sequence[int]]


@register_flop_formula(torch.ops.loopscale.block)
def _flops(x: Sequence[int], rope: Any, rows: Any, weights: Shapes, *_: Any, **__: Any) -> int:
    """Return the FLOPs of all products; attention's are over the whole square, as torch counts them."""
    return product_flops(x, weights) + attention_flops(*x)


@register_flop_formula(torch.ops.loopscale.block_backward)
def _backward_flops(x: Sequence[int], rope: Any, rows: Any, weights: Shapes, *_: Any, **__: Any) -> int:
    """Return twice the forward FLOPs; what is computed a second time is not counted."""
    return 2 * (product_flops(x, weights) + attention_flops(*x))


def product_flops(x: Sequence[int], weights: Shapes) -> int:
    """Return the FLOPs of the products of a stream of shape x with all matrices."""
    return 2 * x[0] * x[1] * sum(math.prod(shape) for shape in weights if len(shape) == 2)
