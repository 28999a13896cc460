"""Update rules: AdamW, and Muon for groups of matrices with AdamW for the other parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.run.config import OptimizerConfig

# Polar Express (arXiv 2505.16932): odd quintics a x + b x³ + c x⁵, one per step, for singular values that
# were scaled down by 1.02 so that rounding cannot push them out of the interval of convergence.
_QUINTICS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_SAFETY = 1.02
_STRIP = 128  # rows of a symmetric product at once: fewer save more entries, more use BLAS better


class ScheduledOptimizer:
    """Optimiser of named parameters with flat state, whose rates are set before every step.

    Parameters
    ----------
    groups : each with "params", "name", "param_names", "peak_lr", "peak_weight_decay" and the constants that
        its update reads.

    Notes
    -----
    Not a torch.optim.Optimizer, because its constructor imports the compiler, which takes seconds.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups = groups
        self.steps = 0
        self.set_schedule(1.0, 1.0)
        self.state: dict[Tensor, dict[str, Tensor]] = {
            parameter: self._first_state(group, parameter)
            for group in groups
            for parameter in group["params"]
        }

    def _first_state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        return {"first_moment": torch.zeros_like(parameter), "second_moment": torch.zeros_like(parameter)}

    def set_schedule(self, lr_factor: float, weight_decay_factor: float) -> None:
        """Set learning rates and weight decays to these multiples of their peaks."""
        for group in self.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor
            group["weight_decay"] = group["peak_weight_decay"] * weight_decay_factor

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(group, parameters)
        self.steps += 1

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Take an AdamW step (arXiv 1711.05101)."""
        grads = [parameter.grad for parameter in parameters]
        first, second = self._gather(parameters, "first_moment"), self._gather(parameters, "second_moment")
        if self._fuses(parameters):
            for part in _by_decay(parameters):
                chosen = [[tensors[i] for i in part] for tensors in (parameters, grads, first, second)]
                self._update_fused(group, *chosen)
            return
        beta1, beta2 = group["beta1"], group["beta2"]
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)
        scale = torch._foreach_sqrt(second)
        torch._foreach_div_(scale, math.sqrt(1 - beta2 ** (self.steps + 1)))
        torch._foreach_add_(scale, group["eps"])
        if group["weight_decay"]:
            matrices = [parameter for parameter in parameters if parameter.ndim > 1]
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] / (1 - beta1 ** (self.steps + 1))
        torch._foreach_addcdiv_(parameters, first, scale, value=-rate)

    def _fuses(self, parameters: Sequence[Tensor]) -> bool:
        """Return True where one kernel reads and writes everything once: on a GPU, which memory limits."""
        return parameters[0].is_cuda

    def _update_fused(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        grads: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
    ) -> None:
        """Take the same step by torch's fused kernel; vectors and matrices come apart."""
        step = torch.full((), self.steps + 1.0, device=parameters[0].device)
        torch._fused_adamw_(
            parameters,
            grads,
            first,
            second,
            [],
            [step] * len(parameters),
            lr=group["lr"],
            beta1=group["beta1"],
            beta2=group["beta2"],
            weight_decay=group["weight_decay"] if parameters[0].ndim > 1 else 0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _gather(self, parameters: Sequence[Tensor], key: str) -> list[Tensor]:
        return [self.state[parameter][key] for parameter in parameters]

    def _named_state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for group in self.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
            for key, value in self.state[parameter].items()
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state, "<parameter>.<moment>" and "steps", as tensors that share its memory."""
        return {**self._named_state(), "steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a state bit for bit.

        Raises
        ------
        ValueError : a missing, unexpected or wrongly shaped tensor; nothing has been changed.
        """
        own = self._named_state()
        expected = {**{key: value.shape for key, value in own.items()}, "steps": torch.Size([])}
        if expected != {key: value.shape for key, value in tensors.items()}:
            missing, unexpected = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
            misshaped = sorted(k for k in expected.keys() & tensors if expected[k] != tensors[k].shape)
            raise ValueError(
                f"not the state of this optimiser: missing {missing}, unexpected {unexpected}, "
                f"of another shape {misshaped}"
            )
        for key, value in own.items():
            value.copy_(tensors[key])
        self.steps = int(tensors["steps"])


class AdamW(ScheduledOptimizer):
    """AdamW for all parameters, without decay on vectors."""


class MuonAdamW(ScheduledOptimizer):
    """Muon for groups of equally shaped matrices, AdamW for the others."""

    def _first_state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        if group["kind"] == "adamw":
            return super()._first_state(group, parameter)
        rows, columns = parameter.shape
        variance = parameter.new_zeros((rows, 1) if rows >= columns else (1, columns))
        return {"momentum": torch.zeros_like(parameter), "variance": variance}

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if group["kind"] == "adamw":
            super()._update(group, parameters)
            return
        config: OptimizerConfig = group["config"]
        momentum = self._gather(parameters, "momentum")
        beta = self._momentum_now(config)
        torch._foreach_lerp_(momentum, [parameter.grad for parameter in parameters], 1 - beta)
        nesterov = torch._foreach_lerp([parameter.grad for parameter in parameters], momentum, beta)
        update = polar_factor(
            torch.stack(nesterov), config.newton_schulz_steps, getattr(torch, config.newton_schulz_dtype)
        )
        variance = self._gather(parameters, "variance")
        update, stacked_variance = _normalise(update, torch.stack(variance), config.muon_variance_beta2)
        torch._foreach_copy_(variance, stacked_variance.unbind())
        weights = torch.stack(parameters)
        rows, columns = parameters[0].shape
        # As published, the rates have the precision of the update (a bfloat16 8e-3 is 0.05 % off).
        rate = torch.tensor(group["lr"] * math.sqrt(max(1.0, rows / columns)), dtype=update.dtype)
        decay = rate * torch.tensor(group["weight_decay"], dtype=update.dtype) * weights
        if config.cautious_weight_decay:
            decay *= update * weights >= 0
        torch._foreach_copy_(parameters, (weights - (rate * update + decay)).unbind())

    def _momentum_now(self, config: OptimizerConfig) -> float:
        warmup = config.muon_momentum_warmup_steps
        share = 1.0 if self.steps >= warmup else self.steps / warmup
        momentum = (1 - share) * config.muon_momentum_start + share * config.muon_momentum
        return torch.tensor(momentum, dtype=torch.float32).item()  # as published: 1 - momentum is off by 1e-8


def _by_decay(parameters: Sequence[Tensor]) -> list[list[int]]:
    """Return the indices of the matrices, which decay, and those of the vectors, which do not."""
    matrices = [i for i, parameter in enumerate(parameters) if parameter.ndim > 1]
    vectors = [i for i, parameter in enumerate(parameters) if parameter.ndim <= 1]
    return [part for part in (matrices, vectors) if part]


def polar_factor(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Return approximate nearest semi-orthogonal matrices of matrices [n, rows, columns], in `dtype`."""
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * _SAFETY + 1e-6)
    tall = x.shape[-2] > x.shape[-1]
    for a, b, c in _QUINTICS[:steps]:
        gram = _gram(x.mT if tall else x)
        quintic = b * gram + c * _gram(gram)
        x = a * x + (x @ quintic if tall else quintic @ x)
    return x


def _gram(x: Tensor) -> Tensor:
    """Return x x^T [n, rows, rows] of x [n, rows, columns]; a CPU computes each symmetric entry once."""
    rows = x.shape[-2]
    if x.dtype != torch.float32 or x.device.type != "cpu" or rows <= _STRIP:
        return x @ x.mT
    gram = x.new_empty(*x.shape[:-1], rows)
    for start in range(0, rows, _STRIP):
        end = min(start + _STRIP, rows)
        strip = x[..., start:end, :] @ x[..., :end, :].mT
        gram[..., start:end, :end] = strip
        gram[..., :start, start:end] = strip[..., :start].mT
    return gram


def _normalise(update: Tensor, variance: Tensor, beta2: float) -> tuple[Tensor, Tensor]:
    """Divide each row (column of a wide matrix) by its running size, keeping the matrix's norm.

    Parameters
    ----------
    update : [n, rows, columns].
    variance : [n, rows, 1] or [n, 1, columns], running mean of squares.

    Returns
    -------
    The normalised update and the new variance.

    Notes
    -----
    NorMuon, arXiv 2510.05491.
    """
    axis = -1 if variance.shape[-1] == 1 else -2
    mean_square = update.float().square().mean(dim=axis, keepdim=True)
    variance = torch.lerp(variance, mean_square, 1 - beta2)
    scale = variance.clamp(min=1e-10).rsqrt()
    before = mean_square.sum(dim=(-2, -1), keepdim=True).sqrt()
    after = (mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    return update * (scale * (before / after.clamp(min=1e-10))).to(update.dtype), variance
