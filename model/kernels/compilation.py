"""Regional compilation: every block shape is compiled once per gradient mode, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from model.kernels.cpu.library import takes_channels
from model.kernels.interface import BlockLayer

BlockForward = Callable[..., Tensor]


def compile_blocks(blocks: Iterable[BlockLayer], backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile blocks in place, but for inputs that a kernel takes as one operator.

    The number of active sequences changes from loop to loop, so the batch is a symbol without a value: even a
    batch of one makes no graph of its own. Blocks of one shape share their graphs. A block that cannot be
    compiled whole is an error.
    """
    torch.compiler.assume_constant_result(takes_channels)
    for block in blocks:
        block.forward = _compiled(block, backend)  # type: ignore[attr-defined]


def _compiled(block: BlockLayer, backend: str | Callable[..., Any]) -> BlockForward:
    compiled: BlockForward = torch.compile(block.by_torch, fullgraph=True, backend=backend)

    def forward(x: Tensor, rope: Tensor, value_rows: Tensor | None, mask: Tensor | None = None) -> Tensor:
        if block.kernels.is_one_operator(block, x, mask):
            return block.kernels.block(block, x, rope, value_rows, mask)  # nothing is left to gain
        inputs = {"x": x, "value_rows": value_rows, "mask": mask}
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        if not torch.is_grad_enabled():
            # Whether an input would carry gradient elsewhere must not matter here.
            given = {name: tensor.detach() for name, tensor in given.items()}
        for tensor in given.values():
            torch._dynamo.decorators.mark_unbacked(tensor, 0)
        return compiled(rope=rope, **{**inputs, **given})

    return forward
