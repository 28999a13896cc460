"""A difference of losses, looped minus fixed, with its interval and verdict."""

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
class Difference:
    """Looped minus fixed: below zero, looping wins. Intervals are None where training noise is unknown."""

    nats: float
    low_nats: float | None = None
    high_nats: float | None = None
    bits_per_byte: float | None = None
    low_bits_per_byte: float | None = None
    high_bits_per_byte: float | None = None
    verdict: Verdict = "training noise unknown"

    def sentence(self) -> str:
        """Return the difference with its interval in one phrase."""
        shown = f"{self.nats:+.4f} nats"
        if self.low_nats is not None and self.high_nats is not None:
            shown += f" [{self.low_nats:+.4f}, {self.high_nats:+.4f}]"
        return shown if self.bits_per_byte is None else f"{shown}, {self.bits_per_byte:+.4f} bits/byte"


def difference(nats: float, low: float | None, high: float | None, bits_per_nat: float | None) -> Difference:
    """Return a difference in nats and in bits per byte; the verdict needs an interval."""
    verdict: Verdict = "training noise unknown"
    if low is not None and high is not None:
        verdict = "looped lower" if high < 0 else "fixed lower" if low > 0 else "not resolved"
    scale = np.nan if bits_per_nat is None else bits_per_nat
    bits = [None if end is None or np.isnan(scale) else end * scale for end in (nats, low, high)]
    return Difference(
        nats=nats,
        low_nats=low,
        high_nats=high,
        bits_per_byte=bits[0],
        low_bits_per_byte=bits[1],
        high_bits_per_byte=bits[2],
        verdict=verdict,
    )


def of_means(
    nats: float, runs: tuple[int, int], floor: NoiseFloor, bits_per_nat: float | None, config: FitConfig
) -> Difference:
    """Return a difference of means over `runs` seeds each, with Student's interval at the pooled variance.

    The same holds for a mean of paired differences at the level of `noise.paired_floor`.
    """
    if floor.sd_nats is None:
        return difference(nats, None, None, bits_per_nat)
    quantile = float(stdtrit(floor.degrees_of_freedom, (1 + config.confidence) / 2))
    half = quantile * floor.sd_nats * float(np.sqrt(1 / runs[0] + 1 / runs[1]))
    return difference(nats, nats - half, nats + half, bits_per_nat)


def of_lowest(
    nats: float,
    runs: tuple[Sequence[int], int, int],
    floor: NoiseFloor,
    bits_per_nat: float | None,
    config: FitConfig,
) -> Difference:
    """Return the lowest of several cells less the control, with the choice in its upper end.

    runs: seeds of every cell, which of them is the lowest, seeds of the control. The lowest of several
    noisy cells lies below the control by chance: the upper end is that of Dunnett's comparison of many cells
    with one control, so that "looped lower" is said falsely in half of 1 - confidence at most.
    """
    counts, lowest, fixed = runs
    plain = of_means(nats, (counts[lowest], fixed), floor, bits_per_nat, config)
    if floor.sd_nats is None or plain.low_nats is None:
        return plain
    error = floor.sd_nats * float(np.sqrt(1 / counts[lowest] + 1 / fixed))
    high = nats + error * many_to_one(counts, fixed, floor.degrees_of_freedom, (1 + config.confidence) / 2)
    return difference(nats, plain.low_nats, high, bits_per_nat)


def many_to_one(cells: Sequence[int], control: int, freedom: int, level: float) -> float:
    """Return Dunnett's one-sided quantile: of the largest t among cells of so many runs and one control.

    Given the control's error and the noise level the cells are independent, which leaves two integrals.
    """
    share = np.sqrt(np.array(cells) / (np.array(cells) + control))[:, None, None]  # of the control's error
    nodes, weights = np.polynomial.hermite_e.hermegauss(48)
    levels = (np.arange(400) + 0.5) / 400
    factor = np.sqrt(chdtri(freedom, levels) / freedom)

    def missed(quantile: float) -> float:
        inside = ndtr((quantile * factor - share * nodes[:, None]) / np.sqrt(1 - share**2)).prod(0)
        return float(weights @ inside.mean(1) / weights.sum() - level)

    return float(brentq(missed, 0.0, 1.0 + 2 * float(stdtrit(freedom, 1 - (1 - level) / len(cells)))))


def of_minimum(
    losses: tuple[float, float],
    resampled: tuple[Array, Array],
    fixed_runs: int,
    floor: NoiseFloor,
    bits_per_nat: float | None,
    config: FitConfig,
    label: str,
) -> Difference:
    """Return a fitted curve's minimum less a control's mean.

    losses: (minimum, control); `resampled` holds the minimum's resamples, NaN where a curve has none, and
    the factors of their noise level, [resamples] both. The control's own noise is drawn apart, under a
    stream named by `label`.
    """
    gap = losses[0] - losses[1]
    if floor.sd_nats is None:
        return difference(gap, None, None, bits_per_nat)
    level = NoiseLevel(
        sd_nats=floor.sd_nats / float(np.sqrt(fixed_runs)),
        degrees_of_freedom=floor.degrees_of_freedom,
        source=REPLICATES,
    )
    minimum, factor = resampled
    noise = draws(len(minimum), 1, config.seed, f"fixed control, {label}").noise(level)[:, 0]
    low, high = interval(studentised(minimum - losses[1] - noise, factor), config.confidence)
    return difference(gap, low, high, bits_per_nat)
