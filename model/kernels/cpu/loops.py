"""The loops without gradient as one operator for float32 on a CPU: calls `loops_forward` of kernels.cpp.

A thread takes a sequence through all of its loops, so that the state stays in the core's cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from model.kernels.cpu.attention import attention_flops
from model.kernels.cpu.block import (
    OPERATORS,
    WEIGHTS,
    WeightPointers,
    dense,
    library_for,
    pointers,
    product_flops,
    sizes_of,
)


def suits_threads(loops: Sequence[int]) -> bool:
    """Return True if all threads have work; sequence i takes loops[i] loops, in descending order."""
    return 0 < loops[0] * torch.get_num_threads() <= sum(loops)


@torch.no_grad()
def fused_loops(
    first: Tensor,
    drive: Tensor,
    carry: Tensor,
    loops: Sequence[int],
    rope: Tensor,
    rows: Sequence[Tensor | None],
    blocks: Sequence[Sequence[Tensor]],
    heads: int,
    kv_heads: int,
    eps: float,
) -> Tensor:
    """Take states [B, L, d] through the core, sequence i `loops[i]` times.

    A loop maps the state to drive + carry * state, then through the blocks; drive [B, L, d], carry [d]. Each
    block has its weights and, where they hold a gate, its rows [B, L, kv d]. Weights, rope and sizes are as
    in `fused_block`.
    """
    weights = [weight for block in blocks for weight in (*block, *[None] * (len(WEIGHTS) - len(block)))]
    states: Tensor = _LOOPS(first, drive, carry, loops, rope, rows, weights, heads, kv_heads, eps)
    return states


def _forward(
    first: Tensor,
    drive: Tensor,
    carry: Tensor,
    loops: Sequence[int],
    rope: Tensor,
    rows: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
    heads: int,
    kv_heads: int,
    eps: float,
) -> Tensor:
    assert len(rope) >= first.shape[1]
    assert drive.shape == first.shape and carry.shape == first.shape[2:] and len(loops) == len(first)
    states = first.clone(memory_format=torch.contiguous_format)
    shared, rows, weights = dense(rope, drive, carry), dense(*rows), dense(*weights)
    blocks = [weights[start : start + len(WEIGHTS)] for start in range(0, len(weights), len(WEIGHTS))]
    assert len(blocks) == len(rows)
    gated = next((block for block in blocks if block[-1] is not None), blocks[0])
    sizes = sizes_of(first, [weight for weight in gated if weight is not None], heads, kv_heads, eps)
    enough = library_for(sizes).loops_forward(
        ctypes.byref(sizes),
        ctypes.c_int64(len(blocks)),
        (WeightPointers * len(blocks))(*(WeightPointers(*pointers(block)) for block in blocks)),
        (ctypes.c_void_p * len(rows))(*pointers(rows)),
        *map(ctypes.c_void_p, pointers(shared)),
        (ctypes.c_int64 * len(loops))(*loops),
        ctypes.c_void_p(states.data_ptr()),
        torch.get_num_threads(),
    )
    if not enough:
        raise MemoryError("no memory for the loops without gradient")
    return states


OPERATORS.define(
    "loops(Tensor first, Tensor drive, Tensor carry, int[] loops, Tensor rope, Tensor?[] rows, "
    "Tensor?[] weights, int heads, int kv_heads, float eps) -> Tensor"
)
OPERATORS.impl("loops", _forward, "CPU")
_LOOPS = torch.ops.loopscale.loops.default


@register_flop_formula(torch.ops.loopscale.loops)
def _flops(
    first: Sequence[int],
    drive: Any,
    carry: Any,
    loops: Sequence[int],
    rope: Any,
    rows: Any,
    weights: Sequence[Sequence[int] | None],
    *_: Any,
    **__: Any,
) -> int:
    """Return the FLOPs that the same blocks are counted for one by one."""
    one = (1, *first[1:])
    attention = len(weights) // len(WEIGHTS) * attention_flops(*one)
    return sum(loops) * (product_flops(one, [shape for shape in weights if shape]) + attention)
