"""Cross-entropy and its gradients as one operator for float32 on a CPU: calls cross_entropy.h."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from model.kernels.cpu.block import OPERATORS, dense, pointers, takes_tensor
from model.kernels.cpu.library import load, takes_channels
from model.kernels.interface import IGNORE

_LARGEST_VOCABULARY = 8192  # beyond it the logits of a few tokens leave a core's cache


def takes_head(x: Tensor, head: Tensor) -> bool:
    """Return True if the operator takes tokens x [N, d] and a head [V, d]."""
    return head.dtype == x.dtype and takes_tensor(x) and takes_sizes(len(head), head.shape[1])


def takes_sizes(vocabulary: int, width: int) -> bool:
    """Return True if the operator takes a head of this size."""
    return vocabulary <= _LARGEST_VOCABULARY and all(map(takes_channels, (vocabulary, width)))


def scored(x: Tensor, head: Tensor, labels: Tensor, *, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nats [N] of labels [N], and the gradients of their sum by x [N, d] and head [V, d].

    Labels of -100 are not scored. Without `gradients` the last two are empty. Raises IndexError for a label
    that is not a token of the vocabulary.
    """
    strange = labels[((labels < 0) & (labels != IGNORE)) | (labels >= len(head))]
    if len(strange):
        raise IndexError(f"label {int(strange[0])} is not in a vocabulary of {len(head)} tokens")
    nats, grad_x, grad_head = _CROSS_ENTROPY(x, head, labels, gradients)
    return nats, grad_x, grad_head


def _scored(x: Tensor, head: Tensor, labels: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    library = load(len(head), head.shape[1])
    assert library is not None and labels.dtype == torch.int64
    assert labels.shape == x.shape[:1] and head.shape[1:] == x.shape[1:]
    given = dense(x, head)
    labels = labels.contiguous()
    made = [x.new_empty(like.shape if gradients else 0) for like in (x, head)]
    nats = x.new_empty(len(x))
    enough = library.cross_entropy(
        (ctypes.c_int64 * 3)(*x.shape, len(head)),
        (ctypes.c_void_p * 3)(*pointers(given), labels.data_ptr()),
        ctypes.c_void_p(nats.data_ptr()),
        *(ctypes.c_void_p(tensor.data_ptr() if gradients else None) for tensor in made),
        torch.get_num_threads(),
    )
    if not enough:
        raise MemoryError("no memory for the cross-entropy")
    return nats, made[0], made[1]


OPERATORS.define(
    "cross_entropy(Tensor x, Tensor head, Tensor labels, bool gradients) -> (Tensor, Tensor, Tensor)"
)
OPERATORS.impl("cross_entropy", _scored, "CPU")
_CROSS_ENTROPY = torch.ops.loopscale.cross_entropy.default


@register_flop_formula(torch.ops.loopscale.cross_entropy)
def _flops(x: Sequence[int], head: Sequence[int], labels: Any, gradients: bool, *_: Any, **__: Any) -> int:
    """Return the FLOPs of the matrix products."""
    return (3 if gradients else 1) * 2 * x[0] * math.prod(head)
