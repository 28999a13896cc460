"""The compute multiplier of looping: FLOPs of the fixed-depth control over those of looped, at equal loss.

The control's loss is interpolated linearly in log C between its budgets, never beyond them. Where no control
reaches the looped loss, only a bound can be stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compare.loss_difference import FittedMinimum, LowestCell
from analysis.config import Array, FitConfig
from analysis.format import number, percent
from analysis.stats.bootstrap import REPLICATES, NoiseLevel, draws, interval, studentised
from analysis.stats.noise import NoiseFloor


@dataclass(frozen=True, kw_only=True)
class ComputeMultiplier:
    """FLOPs of the control over FLOPs of the looped model at equal loss; above one, looping saves compute.

    Ends are None where the control's budgets do not reach, or where training noise is unknown.
    """

    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    refusal: str | None = None

    def summary(self, confidence: float) -> str:
        """Return the multiplier with its interval, or the refusal."""
        if self.ratio is None:
            return f"compute at equal loss: refused, {self.refusal}"
        ends = f"[{number(self.low)}, {number(self.high)}] ({percent(confidence)})"
        interval = "training noise unknown" if self.low is None and self.high is None else ends
        return f"fixed depth needs {self.ratio:.2f} times the FLOPs for the same loss, {interval}"


@dataclass(frozen=True, kw_only=True)
class Control:
    """The fixed-depth control of one group: budgets ascending, mean losses and seeds at each."""

    budgets_flops: tuple[float, ...]
    loss_nats: tuple[float, ...]
    seeds: tuple[int, ...]


def log_equivalent_flops(control: Array, losses: Array, budgets_flops: Sequence[float] | Array) -> Array:
    """Return the log of the FLOPs at which controls reach given losses.

    Parameters
    ----------
    control : losses of the controls [rows, budgets]; one that rises with the budget counts as flat.
    losses : to be reached [rows].
    budgets_flops : of the controls, ascending.

    Returns
    -------
    Logs [rows]: inf for a loss below the control's last, -inf for one above its first.
    """
    x, reached = np.log(budgets_flops), np.minimum.accumulate(control, axis=-1)
    logs = np.where(losses > reached[:, 0], -np.inf, np.inf)
    for k in range(len(x) - 1):
        upper, lower = reached[:, k], reached[:, k + 1]
        here = (losses <= upper) & (losses >= lower) & (upper > lower)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (upper - losses) / (upper - lower)
        logs = np.where(here & np.isinf(logs), x[k] + share * (x[k + 1] - x[k]), logs)
    return np.asarray(logs)


def compute_multiplier(
    control: Control,
    flops: float,
    loss_nats: float,
    source: FittedMinimum | LowestCell,
    floor: NoiseFloor,
    config: FitConfig,
    label: str,
) -> ComputeMultiplier:
    """Return the compute multiplier of a looped model with `loss_nats` at `flops`.

    Parameters
    ----------
    source : how the loss was obtained. The lowest of several cells lies low by chance: for the lower end its
        loss is raised by the largest error among the cells.
    label : names the random stream from which the control's noise is drawn.
    """
    if len(control.budgets_flops) < 2:
        return ComputeMultiplier(refusal="the control has one budget")
    losses = np.array(control.loss_nats)
    at = float(log_equivalent_flops(losses[None], np.array([loss_nats]), control.budgets_flops)[0])
    if np.isinf(at):
        last = number(control.budgets_flops[-1])
        first = number(control.budgets_flops[0])
        side = f"lower than the control's at {last}" if at > 0 else f"higher than the control's at {first}"
        return ComputeMultiplier(refusal=f"the loss {loss_nats:.4f} is {side} FLOPs")
    ratio = float(np.exp(at) / flops)
    if floor.sd_nats is None:
        return ComputeMultiplier(ratio=ratio)
    level = NoiseLevel(sd_nats=floor.sd_nats, degrees_of_freedom=floor.degrees_of_freedom, source=REPLICATES)
    count, stream = len(losses), f"saving, {label}"  # the stream's name is part of the seed
    if isinstance(source, LowestCell):
        drawn = draws(config.bootstrap, count + len(source.seeds), config.seed, stream)
        error = drawn.noise(level) / np.sqrt([*control.seeds, *source.seeds])
        factor = drawn.factor(level)
        worst, looped = loss_nats + error[:, count:].max(1), loss_nats + error[:, count + source.index]
    else:
        looped, factor = source.loss_draws, source.factor
        worst = looped
        drawn = draws(len(looped), count, config.seed, stream)
        error = drawn.noise(level) / np.sqrt(control.seeds)

    def ends(losses_at: Array) -> tuple[float | None, float | None]:
        at_draws = log_equivalent_flops(losses + error[:, :count], losses_at, control.budgets_flops)
        return interval(studentised(at_draws, factor), config.confidence)

    low, high = ends(worst)[0], ends(looped)[1]
    return ComputeMultiplier(
        ratio=ratio,
        low=None if low is None else float(np.exp(low) / flops),
        high=None if high is None else float(np.exp(high) / flops),
    )
