"""Regional compilation: every block shape is compiled once per gradient mode, whatever the batch."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from model.kernels.cpu.library import takes_channels
from model.kernels.interface import BlockLayer

BlockForward = Callable[..., Tensor]

# Of one block's code: two shapes (with a gate or without), each with and without gradient, and as many again
# where the final evaluation differs from training. torch's own limit of 8 would end a run in its evaluation.
GRAPHS = 32

_falls_back: ContextVar[bool] = ContextVar("falls_back", default=False)


def compile_blocks(
    blocks: Iterable[BlockLayer], *, largest_batch: int, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile blocks in place, but for inputs that a kernel takes as one operator.

    The number of active sequences changes from loop to loop, so the batch is a symbol without a value: even a
    batch of one makes no graph of its own. Blocks of one shape share their graphs. A block that cannot be
    compiled whole is an error, but within `eager_fallback`.

    Parameters
    ----------
    largest_batch : sequences of the largest batch; more are refused when a block is called. The compiler
        takes it for the usual number, and indexes in 32 bits where that suffices.
    """
    torch.compiler.assume_constant_result(takes_channels)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    for block in blocks:
        block.forward = _compiled(block, _batch_symbol(largest_batch), backend)  # type: ignore[attr-defined]


@contextmanager
def eager_fallback() -> Iterator[None]:
    """Compute blocks that cannot be compiled by eager torch, with a warning, instead of raising an error."""
    token = _falls_back.set(True)
    try:
        yield
    finally:
        _falls_back.reset(token)


def _batch_symbol(largest: int) -> dict[str, Any]:
    """Return what this torch can be told of a batch's symbol: that all inputs share it, and its bounds.

    It is never bounded to 1 alone, because the compiler would treat that as a number that it must prove.
    """
    known = inspect.signature(torch._dynamo.decorators.mark_unbacked).parameters
    wanted = {"shape_id": "batch", "min": 1, "max": max(2, largest), "hint_override": largest}
    return {name: value for name, value in wanted.items() if name in known}


def _compiled(block: BlockLayer, symbol: dict[str, Any], backend: str | Callable[..., Any]) -> BlockForward:
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
            torch._dynamo.decorators.mark_unbacked(tensor, 0, **symbol)
        try:
            return compiled(rope=rope, **{**inputs, **given})
        except torch._dynamo.exc.TorchDynamoException as error:
            if not _falls_back.get():
                raise
            warnings.warn(f"evaluated without the compiler: {str(error).splitlines()[0]}", stacklevel=2)
            return block.by_torch(x, rope, value_rows, mask)

    return forward
