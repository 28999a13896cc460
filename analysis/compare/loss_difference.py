"""The difference of validation losses, looped minus fixed, with its interval and verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr, stdtrit

from analysis.config import Array, FitConfig
from analysis.stats.bootstrap import REPLICATES, NoiseLevel, draws, interval, studentised
from analysis.stats.noise import NoiseFloor

Verdict = Literal["looped lower", "fixed lower", "not resolved", "training noise unknown"]


@dataclass(frozen=True, kw_only=True)
class LossDifference:
    """Looped minus fixed: below zero, looping wins. Intervals are None where training noise is unknown."""

    nats: float
    low_nats: float | None = None
    high_nats: float | None = None
    bits_per_byte: float | None = None
    low_bits_per_byte: float | None = None
    high_bits_per_byte: float | None = None
    verdict: Verdict = "training noise unknown"

    def interval(self) -> str:
        """Return the interval in brackets, "unknown" without one."""
        if self.low_nats is None or self.high_nats is None:
            return "unknown"
        return f"[{self.low_nats:+.4f}, {self.high_nats:+.4f}]"

    def summary(self) -> str:
        """Return the difference in nats, with its interval if there is one."""
        known = self.low_nats is not None and self.high_nats is not None
        return f"{self.nats:+.4f} {self.interval()}" if known else f"{self.nats:+.4f}"


@dataclass(frozen=True, kw_only=True)
class LowestCell:
    """The lowest of several trained cells, which lies below the others partly by chance."""

    seeds: tuple[int, ...]  # of every trained cell
    index: int  # of the lowest


@dataclass(frozen=True, kw_only=True)
class FittedMinimum:
    """Resamples of the loss at a fitted curve's minimum."""

    loss_draws: Array  # [resamples], NaN where a curve has no minimum
    factor: Array  # of each resample's noise level [resamples]


def difference_of_means(
    nats: float, runs: tuple[int, int], floor: NoiseFloor, bits_per_nat: float | None, config: FitConfig
) -> LossDifference:
    """Return a difference of means over `runs` seeds each, with Student's interval at the pooled variance.

    The same holds for a mean of paired differences at the level of `noise.paired_floor`.
    """
    if floor.sd_nats is None:
        return _judged(nats, None, None, bits_per_nat)
    quantile = float(stdtrit(floor.degrees_of_freedom, (1 + config.confidence) / 2))
    half = quantile * floor.sd_nats * float(np.sqrt(1 / runs[0] + 1 / runs[1]))
    return _judged(nats, nats - half, nats + half, bits_per_nat)


def difference_of_lowest(
    nats: float,
    cell: LowestCell,
    fixed_seeds: int,
    floor: NoiseFloor,
    bits_per_nat: float | None,
    config: FitConfig,
) -> LossDifference:
    """Return the lowest of several cells less the control, with an upper end that allows for the selection.

    Notes
    -----
    The lowest of several noisy cells lies below the control by chance. The upper end is that of Dunnett's
    comparison of many cells with one control: "looped lower" is stated falsely in at most half of
    1 - confidence.
    """
    lowest = cell.seeds[cell.index]
    unselected = difference_of_means(nats, (lowest, fixed_seeds), floor, bits_per_nat, config)
    if floor.sd_nats is None or unselected.low_nats is None:
        return unselected
    error = floor.sd_nats * float(np.sqrt(1 / lowest + 1 / fixed_seeds))
    level = (1 + config.confidence) / 2
    high = nats + error * dunnett_quantile(cell.seeds, fixed_seeds, floor.degrees_of_freedom, level)
    return _judged(nats, unselected.low_nats, high, bits_per_nat)


def difference_of_minimum(
    losses: tuple[float, float],
    minimum: FittedMinimum,
    fixed_seeds: int,
    floor: NoiseFloor,
    bits_per_nat: float | None,
    config: FitConfig,
    label: str,
) -> LossDifference:
    """Return a fitted curve's minimum less a control's mean.

    Parameters
    ----------
    losses : (minimum, control) in nats.
    minimum : resamples of the minimum.
    label : names the random stream from which the control's own noise is drawn.
    """
    gap = losses[0] - losses[1]
    if floor.sd_nats is None:
        return _judged(gap, None, None, bits_per_nat)
    level = NoiseLevel(
        sd_nats=floor.sd_nats / float(np.sqrt(fixed_seeds)),
        degrees_of_freedom=floor.degrees_of_freedom,
        source=REPLICATES,
    )
    count = len(minimum.loss_draws)
    noise = draws(count, 1, config.seed, f"fixed control, {label}").noise(level)[:, 0]
    scatter = studentised(minimum.loss_draws - losses[1] - noise, minimum.factor)
    low, high = interval(scatter, config.confidence)
    return _judged(gap, low, high, bits_per_nat)


def dunnett_quantile(cells: Sequence[int], control: int, freedom: int, level: float) -> float:
    """Return Dunnett's one-sided quantile: of the largest t among several cells and one control.

    Parameters
    ----------
    cells : runs of every cell.
    control : runs of the control.
    freedom : degrees of freedom of the noise level.
    level : probability that the largest t stays below the quantile.

    Notes
    -----
    Given the control's error and the noise level the cells are independent, which leaves two integrals.
    """
    share = np.sqrt(np.array(cells) / (np.array(cells) + control))[:, None, None]  # of the control's error
    nodes, weights = np.polynomial.hermite_e.hermegauss(48)
    levels = (np.arange(400) + 0.5) / 400
    factor = np.sqrt(chdtri(freedom, levels) / freedom)

    def excess(quantile: float) -> float:
        inside = ndtr((quantile * factor - share * nodes[:, None]) / np.sqrt(1 - share**2)).prod(0)
        return float(weights @ inside.mean(1) / weights.sum() - level)

    return float(brentq(excess, 0.0, 1.0 + 2 * float(stdtrit(freedom, 1 - (1 - level) / len(cells)))))


def _judged(nats: float, low: float | None, high: float | None, bits_per_nat: float | None) -> LossDifference:
    """Return a difference in nats and in bits per byte; the verdict needs an interval."""
    verdict: Verdict = "training noise unknown"
    if low is not None and high is not None:
        verdict = "looped lower" if high < 0 else "fixed lower" if low > 0 else "not resolved"
    scale = np.nan if bits_per_nat is None else bits_per_nat
    bits = [None if end is None or np.isnan(scale) else end * scale for end in (nats, low, high)]
    return LossDifference(
        nats=nats,
        low_nats=low,
        high_nats=high,
        bits_per_byte=bits[0],
        low_bits_per_byte=bits[1],
        high_bits_per_byte=bits[2],
        verdict=verdict,
    )
