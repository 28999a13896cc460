"""Learning-rate and weight-decay factors of a step. Imports no torch."""

from __future__ import annotations

import math

from harness.run.config import ScheduleConfig


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
