"""Which parameters of a model Muon or AdamW updates, their peak rates, and the schedule of the rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from harness.optim.optimizer import AdamW, MuonAdamW
from harness.run.config import OptimizerConfig, ScheduleConfig
from model.transformer import LoopedTransformer


def runs_under_muon(name: str, parameter: Tensor, config: OptimizerConfig) -> bool:
    """Return True if Muon updates the parameter: a matrix inside a block, under muon_adamw."""
    if config.name != "muon_adamw":
        return False
    inside_block = name.split(".")[0] in ("prelude", "core", "coda") and parameter.ndim == 2
    return inside_block and (config.muon_value_gates or ".ve_gate." not in name)


def build_optimizer(model: LoopedTransformer, config: OptimizerConfig) -> MuonAdamW | AdamW:
    """Return the optimiser of a model, its parameters sorted into named groups."""
    return optimizer_for(model.named_parameters(), config, model.config.width)


def optimizer_for(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, width: int
) -> MuonAdamW | AdamW:
    """Return the optimiser of named parameters, or of rows of them, of a model of `width`.

    Muon's matrices are grouped by shape, AdamW's parameters by learning rate.
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


def describe_groups(groups: list[dict[str, Any]], *, names: bool = True) -> str:
    """Return a table of parameter groups: name, parameters, peak learning rate, weight decay, tensors.

    The tensors are their names, or without `names` their number.
    """
    lines = [f"{'group':<18} {'parameters':>13} {'peak lr':>9} {'decay':>6}  tensors"]
    for group in groups:
        count = sum(parameter.numel() for parameter in group["params"])
        rates = f"{group['peak_lr']:>9.3g} {group['peak_weight_decay']:>6.3g}"
        tensors = " ".join(group["param_names"]) if names else str(len(group["param_names"]))
        lines.append(f"{group['name']:<18} {count:>13,} {rates}  {tensors}")
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


def rate_multiplier(name: str, dimensions: int, width: int, config: OptimizerConfig) -> float:
    """Return the factor on the peak rate of an AdamW parameter in a model of `width`.

    Notes
    -----
    lr_scaling=none: 1. lr_scaling=mup_width, with s = lr_base_width / width:

    - hidden matrices s (Tensor Programs V, arXiv 2203.03466, table 3);
    - vectors and value-embedding tables, whose inputs are one-hot, 1;
    - the tied embedding √s, between its two roles (input 1, output s), as the published rates move (8e-3 at
      768 and 1024, 6e-3 at 1280 and 1536).

    Muon's rate is not scaled: the spectral norm of its updates does not depend on the width (arXiv 2502.16982
    scales it by shape alone).
    """
    if config.lr_scaling == "none" or dimensions < 2 or name.startswith("value_tables."):
        return 1.0
    assert config.lr_base_width is not None, "checked with the configuration"
    scale = config.lr_base_width / width
    return float(scale**0.5) if name == "embedding" else scale


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Return the multiplier of the peak learning rate at `step` (0-based) of `steps`, in (0, 1].

    A trapezoid is constant until the cool-down, then falls linearly and would reach 0 at `steps`.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / (schedule.warmup_steps + 1)
    if schedule.shape == "trapezoid":
        cooldown = round(schedule.cooldown_fraction * steps)
        return min(1.0, (steps - step) / (cooldown + 1))
    done = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    return 1.0 - done if schedule.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def weight_decay_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Return the multiplier of the peak weight decay at `step` of `steps`.

    "linear" is the published decay over the whole run. "follow" falls with the learning rate and is therefore
    independent of `steps` in a trapezoid's stable phase.
    """
    if schedule.weight_decay == "linear":
        return 1.0 - step / steps
    if schedule.weight_decay == "follow" and step >= schedule.warmup_steps:
        return learning_rate_factor(schedule, step, steps)
    return 1.0
