"""MuonAdamW (Muon for the matrices inside blocks, AdamW for everything else) and plain AdamW."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.optim.orthogonal import polar_factor
from harness.optim.width_transfer import rate_multiplier
from harness.run.config import OptimizerConfig
from model.transformer import LoopedTransformer


class ScheduledOptimizer:
    """An optimiser of named parameters whose rates a trainer sets before every step, and whose state is flat.

    Every group carries "params", "name", "param_names", "peak_lr", "peak_weight_decay" and what its update
    reads. Not a torch.optim.Optimizer, whose constructor imports the compiler, which takes seconds.
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
        """Give the whole state, "<parameter>.<moment>" and "steps", as tensors that share its memory."""
        return {**self._named_state(), "steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a state bit for bit.

        Raises:
            ValueError: a missing, unexpected or wrongly shaped tensor; nothing has been changed then.
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
        update, stacked_variance = _even_out(update, torch.stack(variance), config.muon_variance_beta2)
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


def _even_out(update: Tensor, variance: Tensor, beta2: float) -> tuple[Tensor, Tensor]:
    """Divide each row (column of a wide matrix) by its running size, keeping the matrix's norm.

    NorMuon, arXiv 2510.05491. update is [n, rows, columns], variance [n, rows, 1] or [n, 1, columns]; the
    evened update and the new variance come back.
    """
    axis = -1 if variance.shape[-1] == 1 else -2
    mean_square = update.float().square().mean(dim=axis, keepdim=True)
    variance = torch.lerp(variance, mean_square, 1 - beta2)
    scale = variance.clamp(min=1e-10).rsqrt()
    before = mean_square.sum(dim=(-2, -1), keepdim=True).sqrt()
    after = (mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    return update * (scale * (before / after.clamp(min=1e-10))).to(update.dtype), variance


def runs_under_muon(name: str, parameter: Tensor, config: OptimizerConfig) -> bool:
    """Say whether Muon updates a parameter: the matrices inside blocks, where the optimiser is muon_adamw."""
    if config.name != "muon_adamw":
        return False
    inside_block = name.split(".")[0] in ("prelude", "core", "coda") and parameter.ndim == 2
    return inside_block and (config.muon_value_gates or ".ve_gate." not in name)


def build_optimizer(model: LoopedTransformer, config: OptimizerConfig) -> MuonAdamW | AdamW:
    """Build the optimiser of a model, its parameters sorted into named groups."""
    return optimizer_of(model.named_parameters(), config, model.config.width)


def optimizer_of(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, width: int
) -> MuonAdamW | AdamW:
    """Build the optimiser of some named parameters of a model of `width`, which may be rows of them.

    Matrices of one shape under Muon form a group, AdamW parameters of one learning rate another.
    """
    adamw: dict[float, dict[str, Any]] = {}
    muon: dict[torch.Size, dict[str, Any]] = {}
    for name, parameter in parameters:
        if runs_under_muon(name, parameter, config):
            group = muon.setdefault(parameter.shape, _muon_group(parameter.shape, config))
        else:
            factor = rate_multiplier(name, parameter.ndim, width, config)
            group = adamw.setdefault(factor, _adamw_group(factor, config))
        group["params"].append(parameter)
        group["param_names"].append(name)
    if config.name == "adamw":
        return AdamW([*adamw.values()])
    return MuonAdamW([*adamw.values(), *muon.values()])


def describe_groups(groups: list[dict[str, Any]]) -> str:
    """Tabulate parameter groups: name, parameters, peak learning rate and weight decay, what is in them."""
    lines = [f"{'group':<18} {'parameters':>13} {'peak lr':>9} {'decay':>6}  tensors"]
    for group in groups:
        count = sum(parameter.numel() for parameter in group["params"])
        rates = f"{group['peak_lr']:>9.3g} {group['peak_weight_decay']:>6.3g}"
        lines.append(f"{group['name']:<18} {count:>13,} {rates}  {' '.join(group['param_names'])}")
    return "\n".join(lines)


def _adamw_group(factor: float, config: OptimizerConfig) -> dict[str, Any]:
    return {
        "name": "adamw" if factor == 1 else f"adamw x{factor:.4g}",
        "kind": "adamw",
        "peak_lr": config.adamw_learning_rate * factor,
        "peak_weight_decay": config.adamw_weight_decay,
        "beta1": config.adamw_beta1,
        "beta2": config.adamw_beta2,
        "eps": config.adamw_eps,
        "params": [],
        "param_names": [],
    }


def _muon_group(shape: torch.Size, config: OptimizerConfig) -> dict[str, Any]:
    return {
        "name": f"muon {shape[0]}x{shape[1]}",
        "kind": "muon",
        "peak_lr": config.muon_learning_rate,
        "peak_weight_decay": config.muon_weight_decay,
        "config": config,
        "params": [],
        "param_names": [],
    }
