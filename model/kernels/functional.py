"""Operations with gradients written out: norms, rotation, activation, and the loss.

Eager autograd takes 2 to 9 times as long for the first three. Under torch.compile their plain formulas run
instead, which the compiler fuses.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels.interface import Kernels


def autocast(
    device: torch.device, precision: Literal["float32", "bfloat16"]
) -> AbstractContextManager[object]:
    """Return the context in which a model's products are computed in `precision`."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=torch.bfloat16)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale the last dimension to unit root mean square, then by weight."""
    if torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight, eps)
    y: Tensor = _RMSNorm.apply(x, weight, eps)
    return y


def rotated_norm(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i+1) of x [B, L, H, D] by rope [L, 1, D/2, 2], then norm without weights."""
    if torch.compiler.is_compiling():
        return F.rms_norm(_rotate_plainly(x, rope), x.shape[-1:]).to(x.dtype)
    y: Tensor = _RotatedNorm.apply(x, rope)
    return y


def half_squared_relu(x: Tensor) -> Tensor:
    """Return relu(x)² / 2."""
    if torch.compiler.is_compiling():
        return 0.5 * F.relu(x).square()
    y: Tensor = _HalfSquaredReLU.apply(x)
    return y


def _rotate_plainly(x: Tensor, rope: Tensor) -> Tensor:
    cos, sin = rope.unbind(-1)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def _rotate(x: Tensor, rope: Tensor, back: bool = False) -> Tensor:
    angles = torch.view_as_complex(rope)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * (angles.conj() if back else angles)).flatten(-2)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = _inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse
        product = grads[0] * normed
        grad_weight = product.flatten(0, -2).sum(dim=0)
        mean = torch.mv(product.flatten(0, -2), weight).view_as(inverse).div_(-x.shape[-1])
        grad_x = torch.mul(grads[0], weight, out=product)
        return grad_x.addcmul_(normed, mean).mul_(inverse), grad_weight, None


class _RotatedNorm(torch.autograd.Function):
    """A rotation keeps the norm, so the norm's gradient can be rotated back as a whole."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rope: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = _inverse_rms(wide, torch.finfo(wide.dtype).eps)  # as F.rms_norm under autocast
        y = _rotate(wide, rope).mul_(inverse).to(x.dtype)
        ctx.save_for_backward(y, inverse, rope)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        y, inverse, rope = ctx.saved_tensors
        mean = (grads[0] * y).sum(dim=-1, keepdim=True).div_(-y.shape[-1])
        grad = torch.addcmul(grads[0], y, mean) * inverse
        return _rotate(grad, rope, back=True).to(y.dtype), None


class _HalfSquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive.square().mul_(0.5)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return grads[0] * positive


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
