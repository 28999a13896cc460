"""The compute that looping saves: how much more the fixed-depth control needs for the same loss.

The control's loss is interpolated linearly in log C between its budgets, never beyond them: where no control
reaches the looped loss, only a bound can be stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.config import Array, FitConfig
from analysis.format import number, percent
from analysis.stats.bootstrap import REPLICATES, NoiseLevel, draws, interval, studentised
from analysis.stats.noise import NoiseFloor


@dataclass(frozen=True, kw_only=True)
class Saving:
    """FLOPs of the control over FLOPs of the looped model at equal loss; above one, looping saves.

    Ends are None where the control's budgets do not reach, or where training noise is unknown.
    """

    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    refusal: str | None = None

    def sentence(self, confidence: float) -> str:
        """Return the saving in one phrase."""
        if self.ratio is None:
            return f"compute at equal loss: refused, {self.refusal}"
        ends = f" [{number(self.low)}, {number(self.high)}] ({percent(confidence)})"
        told = "training noise unknown" if self.low is None and self.high is None else ends.strip()
        return f"fixed depth needs {self.ratio:.2f} times the FLOPs for the same loss, {told}"


@dataclass(frozen=True, kw_only=True)
class Control:
    """The fixed-depth control of one group: budgets ascending, mean losses and seeds at each."""

    budgets_flops: tuple[float, ...]
    loss_nats: tuple[float, ...]
    seeds: tuple[int, ...]


def equivalent(control: Array, losses: Array, budgets_flops: Sequence[float]) -> Array:
    """Return the log of the FLOPs at which controls [rows, budgets] reach `losses` [rows].

    inf: below the control's last loss; -inf: above its first. A control that rises on the way is read as
    what it had reached before.
    """
    x, reached = np.log(budgets_flops), np.minimum.accumulate(control, axis=-1)
    found = np.where(losses > reached[:, 0], -np.inf, np.inf)
    for k in range(len(x) - 1):
        upper, lower = reached[:, k], reached[:, k + 1]
        here = (losses <= upper) & (losses >= lower) & (upper > lower)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (upper - losses) / (upper - lower)
        found = np.where(here & np.isinf(found), x[k] + share * (x[k + 1] - x[k]), found)
    return np.asarray(found)


def saving(
    control: Control,
    flops: float,
    loss_nats: float,
    found: tuple[Array, Array] | tuple[Sequence[int], int],
    floor: NoiseFloor,
    config: FitConfig,
    label: str,
) -> Saving:
    """Return the saving of a looped model with `loss_nats` at `flops`.

    `found` says how: the resamples of a fitted minimum with the factors of their noise level, or the seeds of
    every trained cell and which of them is the lowest. That one lies low by chance, so for the lower end its
    loss is raised by the largest error among the cells. The control's noise is drawn apart, under a stream
    named by `label`.
    """
    if len(control.budgets_flops) < 2:
        return Saving(refusal="the control has one budget")
    losses = np.array(control.loss_nats)
    at = float(equivalent(losses[None], np.array([loss_nats]), control.budgets_flops)[0])
    if np.isinf(at):
        last = number(control.budgets_flops[-1])
        first = number(control.budgets_flops[0])
        side = f"lower than the control's at {last}" if at > 0 else f"higher than the control's at {first}"
        return Saving(refusal=f"the loss {loss_nats:.4f} is {side} FLOPs")
    ratio = float(np.exp(at) / flops)
    if floor.sd_nats is None:
        return Saving(ratio=ratio)
    level = NoiseLevel(sd_nats=floor.sd_nats, degrees_of_freedom=floor.degrees_of_freedom, source=REPLICATES)
    count = len(losses)
    if isinstance(found[1], int):
        seeds, lowest = found[0], found[1]
        drawn = draws(config.bootstrap, count + len(seeds), config.seed, f"saving, {label}")
        error = drawn.noise(level) / np.sqrt([*control.seeds, *seeds])
        factor = drawn.factor(level)
        worst, looped = loss_nats + error[:, count:].max(1), loss_nats + error[:, count + lowest]
    else:
        looped, factor = found[0], found[1]
        worst = looped
        drawn = draws(len(looped), count, config.seed, f"saving, {label}")
        error = drawn.noise(level) / np.sqrt(control.seeds)

    def ends(losses_at: Array) -> tuple[float | None, float | None]:
        at_draws = equivalent(losses + error[:, :count], losses_at, control.budgets_flops)
        return interval(studentised(at_draws, factor), config.confidence)

    low, high = ends(worst)[0], ends(looped)[1]
    return Saving(
        ratio=ratio,
        low=None if low is None else float(np.exp(low) / flops),
        high=None if high is None else float(np.exp(high) / flops),
    )
