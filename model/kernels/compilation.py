"""Regional compilation: every block shape is compiled once per gradient mode, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.kernels.attention import has_kernel
from model.layers import Block
from model.transformer import LoopedTransformer

BlockForward = Callable[..., Tensor]


def compile_blocks(model: LoopedTransformer, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the blocks of a model in place; a block that cannot be compiled whole is an error.

    The number of active sequences changes from loop to loop, so the batch is a symbol without a value: even a
    batch of one makes no graph of its own. Blocks of one shape share their graphs.
    """
    torch.compiler.assume_constant_result(has_kernel)
    model.loops_as_one = backend == "inductor"  # with another one, all blocks are to be compiled
    for part in (model.prelude, model.core, model.coda):
        for block in part:
            block.forward = _compiled(block, backend)


def _compiled(block: Block, backend: str | Callable[..., Any]) -> BlockForward:
    plain = block.forward
    compiled: BlockForward = torch.compile(plain, fullgraph=True, backend=backend)

    def forward(x: Tensor, rope: Tensor, value_rows: Tensor | None, mask: Tensor | None = None) -> Tensor:
        if backend == "inductor" and block.is_fused(x, mask):
            return plain(x, rope, value_rows, mask)  # nothing is left to gain
        inputs = {"x": x, "value_rows": value_rows, "mask": mask}
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        if not torch.is_grad_enabled():
            # Whether an input would carry gradient elsewhere must not matter here.
            given = {name: tensor.detach() for name, tensor in given.items()}
        for tensor in given.values():
            torch._dynamo.decorators.mark_unbacked(tensor, 0)
        return compiled(rope=rope, **{**inputs, **given})

    return forward
