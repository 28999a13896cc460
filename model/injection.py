"""The linear part of the loop: its first state, and how the prelude's output enters.

The injection is diagonal (stable by construction), linear, or an addition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig

TRUNCATION = 3.0  # standard deviations at which first states are cut
INITIAL_STEP = 0.8047189562170503  # dt = -ln sqrt(1/5): a decay of 0.447 at A = 1, as published


class DiagonalInjection(nn.Module):
    """Decay the state by exp(-dt a) and add dt (e Bᵀ), both dt and a positive.

    The decay stays strictly between 0 and 1 in floating point too, whatever the parameters' values are.
    """

    def __init__(self, width: int, exact_zero_order_hold: bool) -> None:
        super().__init__()
        self.exact_zero_order_hold = exact_zero_order_hold
        self.A_log = nn.Parameter(torch.empty(width))
        self.dt_bias = nn.Parameter(torch.empty(width))
        self.B = nn.Parameter(torch.empty(width, width))

    def prepare(self, prelude: Tensor) -> tuple[Tensor, Tensor]:
        """Return what all loops share: the scaled input [B, L, d] and the decay [d]."""
        step, rate = F.softplus(self.dt_bias), self._rate()
        gain = -torch.expm1(-step * rate) / rate if self.exact_zero_order_hold else step
        return gain * F.linear(prelude, self.B), self._decay(step, rate)

    def mix(self, state: Tensor, drive: Tensor, carry: Tensor) -> Tensor:
        """Advance the linear part of the state by one loop."""
        return torch.addcmul(drive, state, carry)

    @torch.no_grad()
    def spectral_radius(self) -> float:
        """Return the largest of the decay factors."""
        return float(self._decay(F.softplus(self.dt_bias), self._rate()).max())

    def _rate(self) -> Tensor:
        return self.A_log.clamp(-80.0, 80.0).exp()  # neither 0 nor infinite in float32

    @staticmethod
    def _decay(step: Tensor, rate: Tensor) -> Tensor:
        # A step that underflows would make the decay exactly 1: the state would never decay.
        return torch.exp(-(step * rate).clamp(min=torch.finfo(step.dtype).eps))


class LinearInjection(nn.Module):
    """Project the concatenation of state and prelude, as the recurrent-depth models do (arXiv 2502.05171)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 2 * width))

    def prepare(self, prelude: Tensor) -> tuple[Tensor, Tensor]:
        """Return what all loops share: the prelude's half of the product, the state's half of the matrix."""
        carry, write = self.weight.chunk(2, dim=1)
        return F.linear(prelude, write), carry

    def mix(self, state: Tensor, drive: Tensor, carry: Tensor) -> Tensor:
        """Advance the linear part of the state by one loop."""
        return drive + F.linear(state, carry)

    @torch.no_grad()
    def spectral_radius(self) -> float:
        """Return the largest modulus of an eigenvalue of the state's half of the matrix."""
        return float(torch.linalg.eigvals(self.weight.float().chunk(2, dim=1)[0]).abs().max())


class AddInjection(nn.Module):
    """Add the prelude to the state; the spectral radius is exactly 1."""

    def prepare(self, prelude: Tensor) -> tuple[Tensor, Tensor]:
        """Return what all loops share: the prelude itself, and a factor of 1."""
        return prelude, prelude.new_ones(())

    def mix(self, state: Tensor, drive: Tensor, carry: Tensor) -> Tensor:
        """Advance the linear part of the state by one loop."""
        return state + drive

    def spectral_radius(self) -> float:
        """Return the factor of the state: 1."""
        return 1.0


Injection = DiagonalInjection | LinearInjection | AddInjection


def build_injection(config: ModelConfig) -> Injection:
    """Return the injection that the config names, its parameters not yet initialised."""
    if config.injection == "diagonal":
        return DiagonalInjection(config.width, config.exact_zero_order_hold)
    if config.injection == "linear":
        return LinearInjection(config.width)
    return AddInjection()


def initial_std(width: int) -> float:
    """Return √(2 / 5d), the standard deviation of embeddings, matrices and first states."""
    return math.sqrt(2 / (5 * width))


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
