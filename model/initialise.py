"""First weights and first states, drawn from counters so that no global random state is read or moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.depth import counter_seed
from model.injection import INITIAL_STEP

TRUNCATION = 3.0  # standard deviations at which first states are cut


def initial_std(width: int) -> float:
    """Return √(2 / 5d), the standard deviation of embeddings, matrices and first states."""
    return math.sqrt(2 / (5 * width))


@torch.no_grad()
def initialise(model: nn.Module, width: int, seed: int) -> None:
    """Set every parameter as published ("scaled-zero", orthogonal); each depends on (seed, its name) alone.

    Output projections start at 0, so that every block starts as the identity.
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(counter_seed("weights", seed, name))
        parameter.copy_(_first_value(name, parameter, width, generator))


def _first_value(name: str, parameter: Tensor, width: int, generator: torch.Generator) -> Tensor:
    shape, device = parameter.shape, parameter.device
    leaf = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if leaf == "dt_bias":
        return torch.full(shape, math.log(math.expm1(INITIAL_STEP)))
    if leaf == "A_log" or leaf in ("c_proj", "proj"):
        return torch.zeros(shape)
    if leaf == "B":
        return torch.eye(width)
    if parameter.ndim == 1:
        return torch.ones(shape)
    if name.startswith("value_tables."):
        return torch.randn(shape, generator=generator)
    if leaf == "ve_gate":
        bound = 1 / math.sqrt(shape[1])
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    gain = initial_std(width) * math.sqrt(max(shape))
    return gain * _orthogonal(torch.randn(shape, generator=generator).to(device))


def _orthogonal(gaussian: Tensor) -> Tensor:
    """Orthonormalise the shorter side of a Gaussian matrix, uniformly over such matrices."""
    tall = gaussian if gaussian.shape[0] >= gaussian.shape[1] else gaussian.T
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    return q if tall is gaussian else q.T


def first_states(kind: str, seeds: Sequence[int], like: Tensor) -> Tensor:
    """Draw h_0 [B, L, d] shaped as `like`, row i from seed i alone.

    `like-init` is normal with the embedding's standard deviation, cut at 3σ; `zero` is zero.
    """
    states = torch.zeros_like(like, requires_grad=False)
    if kind == "zero":
        return states
    edge = math.erf(TRUNCATION / math.sqrt(2))
    for state, seed in zip(states, seeds, strict=True):
        state.uniform_(-edge, edge, generator=torch.Generator(like.device).manual_seed(seed))
    return states.erfinv_().mul_(math.sqrt(2) * initial_std(like.shape[-1]))
