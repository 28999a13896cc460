"""Cross-entropy through the tied head, in chunks of tokens, so that full logits never exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels.cpu.cross_entropy import IGNORE, can_score, scored

# Logits held at once, in float32: what stays in a CPU's cache, or what keeps a GPU busy.
_CHUNK_ELEMENTS = {"cpu": 2**18, "other": 2**26}
_LEAST_TOKENS = 64  # below it the matrix products starve


def _chunks(tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    elements = _CHUNK_ELEMENTS["cpu" if device.type == "cpu" else "other"]
    size = max(_LEAST_TOKENS, elements // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))


def _compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@torch.no_grad()
def token_nats(x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Give -log p of each label, float32 [N], zero where ignored; x is [N, d], head [V, d], labels [N]."""
    if can_score(x, head):
        return scored(x, head, labels, gradients=False)[0]
    nats = torch.zeros(labels.shape, device=x.device)
    for part in _chunks(len(x), len(head), x.device):
        logits = F.linear(x[part], head).float()
        nats[part] = F.cross_entropy(logits, labels[part], ignore_index=IGNORE, reduction="none")
    return nats


@torch.no_grad()
def token_scores(x: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Give -log p of each label, float32 [N], and whether it is the likeliest token, bool [N].

    x is [N, d], head [V, d], labels [N].
    """
    nats = torch.empty(labels.shape, device=x.device)
    hits = torch.empty(labels.shape, dtype=torch.bool, device=x.device)
    for part in _chunks(len(x), len(head), x.device):
        logits = F.linear(x[part], head).float()
        nats[part] = F.cross_entropy(logits, labels[part], reduction="none")
        hits[part] = logits.argmax(dim=1) == labels[part]
    return nats, hits


class _SummedNats(torch.autograd.Function):
    """Sum -log p over labels; the gradients are made chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        if can_score(x, head):
            nats, *gradients = scored(x, head, labels, gradients=True)
            ctx.save_for_backward(*gradients)
            return nats.sum()
        dtype = _compute_dtype(x)
        matrix = head.to(dtype)
        total = torch.zeros((), device=x.device)
        grad_x, grad_head = torch.empty_like(x), torch.zeros_like(head)
        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(len(x), len(head), x.device):
                rows, valid = x[part].to(dtype), (labels[part] != IGNORE).unsqueeze(1)
                nats, grad = _nats_and_gradient(F.linear(rows, matrix).float(), labels[part])
                total += (nats * valid).sum()
                grad = grad.to(dtype)
                grad_x[part] = (grad @ matrix) * valid
                grad_head += grad.T @ (rows * valid)
        ctx.save_for_backward(grad_x, grad_head)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x, grad_head = ctx.saved_tensors
        return grad_x * grads[0], grad_head * grads[0], None


def _nats_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Give the nats [n, 1] of a chunk's labels (any number where ignored) and their gradients [n, V]."""
    target = labels.clamp(min=0).unsqueeze(1)
    probabilities = torch.softmax(logits, dim=1)
    # log Z from the largest logit, whose probability never underflows
    log_normaliser = logits.amax(1, keepdim=True) - probabilities.amax(1, keepdim=True).log()
    nats = log_normaliser - logits.gather(1, target)
    return nats, probabilities.scatter_add_(1, target, probabilities.new_full(target.shape, -1.0))


def summed_nats(x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Sum -log p over all labels but the ignored ones, a float32 scalar that carries gradient.

    x is [N, d], head [V, d], labels [N].
    """
    if not torch.is_grad_enabled():
        return token_nats(x, head, labels).sum()
    total: Tensor = _SummedNats.apply(x, head, labels)
    return total
