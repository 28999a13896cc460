"""The loss: cross-entropy through the tied head, its gradient made in the forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.kernels import IGNORE, Kernels

__all__ = ["IGNORE", "summed_nats"]


def summed_nats(x: Tensor, head: Tensor, labels: Tensor, kernels: Kernels) -> Tensor:
    """Return the sum of -log p over all labels but the ignored ones, a float32 scalar that carries gradient.

    x is [N, d], head [V, d], labels int64 [N].
    """
    if not torch.is_grad_enabled():
        return kernels.token_nats(x, head, labels).sum()
    total: Tensor = _SummedNats.apply(x, head, labels, kernels)
    return total


class _SummedNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, labels: Tensor, kernels: Kernels) -> Tensor:
        total, *gradients = kernels.nats_and_gradients(x, head, labels)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_head = ctx.saved_tensors
        return grad_x * grads[0], grad_head * grads[0], None, None
