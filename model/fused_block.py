"""The whole block as one operator for float32 on a CPU: small models spend much beside their matrix products.

It is the block of `model.layers` with causal attention over whole sequences and the MLP `0.5 relu(x)²`.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from model.attention import has_kernel
from model.cpu import kernels

LARGEST_WIDTH = 256  # the weights of wider blocks do not stay in a core's cache: the BLAS library is faster

# The order of a block's weights; a layer without gated value embeddings has no gate.
WEIGHTS = ("norm_1", "query", "key", "value", "merge", "norm_2", "fc", "proj", "gate")


def can_fuse(x: Tensor, head_dim: int, hidden: int) -> bool:
    """Say whether the operator takes a stream x [B, L, d] with such heads and so many hidden channels."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[-1] <= LARGEST_WIDTH
        and not torch.is_autocast_enabled("cpu")
        and has_kernel(head_dim)
        and has_kernel(hidden)
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
    """Map the stream x [B, L, d]; rows [B, L, kv d] are given where `weights`, as in WEIGHTS, hold a gate.

    rope [L, 1, D / 2, 2]. d, D and the MLP's hidden channels are multiples of `model.cpu.columns`.
    """
    y: Tensor = _FusedBlock.apply(x, rope, rows, heads, kv_heads, eps, *weights)
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
        *weights: Tensor,
    ) -> Tensor:
        keep = any(ctx.needs_input_grad)
        out, kept = _BLOCK(x, rope, rows, weights, heads, kv_heads, eps, keep)
        if keep:
            ctx.save_for_backward(x, rope, rows, kept, *weights)
            ctx.settings = heads, kv_heads, eps
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, rope, rows, kept, *weights = ctx.saved_tensors
        grad_x, grad_rows, *others = _BLOCK_BACKWARD(x, rope, rows, weights, kept, *grads, *ctx.settings)
        return grad_x, None, None if rows is None else grad_rows, None, None, None, *others


class _Sizes(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "length", "heads", "kv_heads", "dim", "hidden", "gate_channels")
        ),
        ("eps", ctypes.c_float),
    ]


_Weights = ctypes.c_void_p * len(WEIGHTS)
_Given = ctypes.c_void_p * 3


def _sizes(x: Tensor, weights: Sequence[Tensor], heads: int, kv_heads: int, eps: float) -> _Sizes:
    batch, length, width = x.shape
    gate_channels = weights[-1].shape[1] if len(weights) == len(WEIGHTS) else 0
    hidden = weights[WEIGHTS.index("fc")].shape[0]
    return _Sizes(batch, length, heads, kv_heads, width // heads, hidden, gate_channels, eps)


def _pointers(tensors: Sequence[Tensor | None]) -> list[int | None]:
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
    library = kernels()
    assert library is not None and x.shape[1] > 0
    x, rope, rows = x.contiguous(), rope.contiguous(), None if rows is None else rows.contiguous()
    sizes = _sizes(x, weights, heads, kv_heads, eps)
    out, kept = torch.empty_like(x), x.new_empty(library.kept_floats(ctypes.byref(sizes)) if keep else 0)
    library.block_forward(
        ctypes.byref(sizes),
        _Weights(*_pointers(weights)),
        _Given(*_pointers([x, rope, rows])),
        ctypes.c_void_p(kept.data_ptr() if keep else None),
        ctypes.c_void_p(out.data_ptr()),
        torch.get_num_threads(),
    )
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
    library = kernels()
    assert library is not None
    x, rope, grad = x.contiguous(), rope.contiguous(), grad.contiguous()
    rows = x.new_empty(0) if rows is None else rows.contiguous()
    made = [torch.empty_like(tensor) for tensor in (x, rows, *weights)]
    grad_x, grad_rows, *grad_weights = _pointers(made)
    library.block_backward(
        ctypes.byref(_sizes(x, weights, heads, kv_heads, eps)),
        _Weights(*_pointers(weights)),
        _Given(*_pointers([x, rope, rows])),
        *map(ctypes.c_void_p, (kept.data_ptr(), grad.data_ptr(), grad_x, grad_rows)),
        _Weights(*grad_weights),
        torch.get_num_threads(),
    )
    return made


# Not torch.library.custom_op, which imports the compiler, which takes seconds.
_OPERATORS = torch.library.Library("loopscale", "FRAGMENT")
_OPERATORS.define(
    "block(Tensor x, Tensor rope, Tensor? rows, Tensor[] weights, int heads, int kv_heads, float eps, "
    "bool keep) -> (Tensor, Tensor)"
)
_OPERATORS.define(
    "block_backward(Tensor x, Tensor rope, Tensor? rows, Tensor[] weights, Tensor kept, Tensor grad, "
    "int heads, int kv_heads, float eps) -> Tensor[]"
)
_OPERATORS.impl("block", _forward, "CPU")
_OPERATORS.impl("block_backward", _backward, "CPU")
_BLOCK, _BLOCK_BACKWARD = torch.ops.loopscale.block.default, torch.ops.loopscale.block_backward.default

_Shapes = Sequence[Sequence[int]]


@register_flop_formula(torch.ops.loopscale.block)
def _flops(x: Sequence[int], rope: Any, rows: Any, weights: _Shapes, *_: Any, **__: Any) -> int:
    """Count the matrix products, those of attention over the whole square, as torch does."""
    return _products(x, weights) + _attention(x)


@register_flop_formula(torch.ops.loopscale.block_backward)
def _backward_flops(x: Sequence[int], rope: Any, rows: Any, weights: _Shapes, *_: Any, **__: Any) -> int:
    """Count twice the same; what is computed for the second time is left out."""
    return 2 * (_products(x, weights) + _attention(x))


def _products(x: Sequence[int], weights: _Shapes) -> int:
    return 2 * x[0] * x[1] * sum(math.prod(shape) for shape in weights if len(shape) == 2)


def _attention(x: Sequence[int]) -> int:
    batch, length, width = x
    return 4 * batch * length**2 * width
