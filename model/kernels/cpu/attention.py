"""Causal attention as one operator for float32 on a CPU, forward and backward: calls attention.h."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from model.kernels.cpu.library import load


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend causally: query [B, H, L, D], key and value [B, KV, L, D] to a result [B, H, L, D].

    All float32 on a CPU; D is a multiple of `library.columns`.
    """
    attended: Tensor = torch.ops.loopscale.causal_attention(query, key, value)[0]
    return attended


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "length", "dim")]


class _Strided(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "row"))]


def _strided(tensor: Tensor) -> _Strided:
    return _Strided(tensor.data_ptr(), *tensor.stride()[:3])


def _call(function: str, query: Tensor, key: Tensor, *arguments: Any) -> None:
    batch, heads, length, dim = query.shape
    library = load(dim)
    assert library is not None and length == key.shape[2] > 0
    shape = _Shape(batch, heads, key.shape[1], length, dim)
    getattr(library, function)(ctypes.byref(shape), *arguments, torch.get_num_threads())


def _by_token(like: Tensor) -> Tensor:
    """Return an empty [B, H, L, D] that lies in memory as [B, L, H, D], the order of the stream."""
    batch, heads, length, dim = like.shape
    return like.new_empty((batch, length, heads, dim)).transpose(1, 2)


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    query, key, value = map(_dense_rows, (query, key, value))
    result, logs = _by_token(query), query.new_empty(query.shape[:3])
    tensors = [ctypes.byref(_strided(tensor)) for tensor in (query, key, value, result)]
    _call("attention_forward", query, key, *tensors, ctypes.c_void_p(logs.data_ptr()))
    return result, logs


def _backward(
    query: Tensor, key: Tensor, value: Tensor, result: Tensor, logs: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    query, key, value, result, grad = map(_dense_rows, (query, key, value, result, grad))
    grads = tuple(map(_by_token, (query, key, value)))
    given = [ctypes.byref(_strided(tensor)) for tensor in (query, key, value, result, grad)]
    made = [ctypes.byref(_strided(tensor)) for tensor in grads]
    _call("attention_backward", query, key, *given, ctypes.c_void_p(logs.data_ptr()), *made)
    return grads


def _fake_forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return _by_token(query), query.new_empty(query.shape[:3])


def _fake_backward(
    query: Tensor, key: Tensor, value: Tensor, result: Tensor, logs: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    return _by_token(query), _by_token(key), _by_token(value)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = torch.ops.loopscale.causal_attention_backward(*ctx.saved_tensors, grad)
    return grads


# Not torch.library.custom_op: that imports the compiler, which takes seconds.
_OPERATORS = torch.library.Library("loopscale", "DEF")
_OPERATORS.define("causal_attention(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)")
_OPERATORS.define(
    "causal_attention_backward(Tensor query, Tensor key, Tensor value, Tensor result, Tensor logs, "
    "Tensor grad) -> (Tensor, Tensor, Tensor)"
)
_OPERATORS.impl("causal_attention", _forward, "CPU")
_OPERATORS.impl("causal_attention_backward", _backward, "CPU")
torch.library.register_fake("loopscale::causal_attention", _fake_forward, lib=_OPERATORS)
torch.library.register_fake("loopscale::causal_attention_backward", _fake_backward, lib=_OPERATORS)
torch.library.register_autograd(
    "loopscale::causal_attention", _gradients, setup_context=_keep, lib=_OPERATORS
)


def attention_flops(batch: int, length: int, width: int) -> int:
    """Return the FLOPs of attention's two products forward, over the whole square as torch counts them."""
    return 4 * batch * length**2 * width


@register_flop_formula(torch.ops.loopscale.causal_attention)
def _flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], **_: Any) -> int:
    batch, heads, length, dim = query
    return attention_flops(batch, length, heads * dim)


@register_flop_formula(torch.ops.loopscale.causal_attention_backward)
def _backward_flops(query: Sequence[int], *others: Sequence[int], **_: Any) -> int:
    """Return twice the forward FLOPs; what is computed a second time is not counted."""
    return 2 * _flops(query, query, query)
