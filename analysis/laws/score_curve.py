"""The gain of a score from test-time depth: C(T) = C_inf - Z exp(-z T), the depth law with its sign changed.

Resamples are drawn over items, all depths of an item together, because the errors at two depths are strongly
correlated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.config import MIN_DEPTHS, Array
from analysis.laws.decay import Decay
from analysis.laws.depth_curve import EXPONENTIAL
from analysis.laws.registry import LAWS


@dataclass(frozen=True, kw_only=True)
class GainFit:
    """The gain from the least to the greatest depth, the ceiling and the rate, each with its interval.

    Where the law is refused, ceiling and rate are None and the gain is still reported.
    """

    depths: tuple[int, ...]
    gain: float
    gain_low: float
    gain_high: float
    ceiling: float | None = None
    ceiling_low: float | None = None
    ceiling_high: float | None = None
    rate: float | None = None
    rate_low: float | None = None
    rate_high: float | None = None
    refusal: str | None = None

    def summary(self) -> str:
        """Return the fit in one line."""
        first, last = self.depths[0], self.depths[-1]
        line = f"{self.gain:+.4f} [{self.gain_low:+.4f}, {self.gain_high:+.4f}] from T = {first} to {last}"
        if self.refusal is not None:
            return f"{line}; no saturating exponential: {self.refusal}"
        return (
            f"{line}; ceiling {self.ceiling:.4f} [{self.ceiling_low:.4f}, {self.ceiling_high:.4f}], "
            f"z = {self.rate:.2f} [{self.rate_low:.2f}, {self.rate_high:.2f}] per loop"
        )


def fit_gain(depths: Array, curve: Array, resampled: Array, confidence: float = 0.95) -> GainFit:
    """Fit one score over depths by least squares, with percentile intervals.

    The law is refused with fewer than five depths, where the interval of the gain contains 0, and where the
    interval of the rate reaches an end of the searched range.

    Parameters
    ----------
    depths : in loops [D].
    curve : the score at every depth [D].
    resampled : the same over resampled items [R, D].
    """
    depths, curve = np.asarray(depths, float), np.asarray(curve, float)
    tails = 100 * np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    gain = np.percentile(resampled[:, -1] - resampled[:, 0], tails)
    known: dict[str, Any] = {
        "depths": tuple(int(depth) for depth in depths),
        "gain": float(curve[-1] - curve[0]),
        "gain_low": float(gain[0]),
        "gain_high": float(gain[1]),
    }
    if len(depths) < MIN_DEPTHS:
        return GainFit(**known, refusal=f"{len(depths)} depths, at least {MIN_DEPTHS} are needed")
    if gain[0] <= 0 <= gain[1]:
        return GainFit(**known, refusal="the gain may be 0")
    every = Decay(
        law=LAWS[EXPONENTIAL],
        depths=depths,
        values=np.vstack([curve, resampled]),
        weights=np.ones((1, len(depths))),
    )
    rates = every.best_rates()
    ceilings = every.fitted(rates)[0]
    rate_low, rate_high = np.percentile(rates[1:], tails)
    if rate_low <= every.rates[1] or rate_high >= every.rates[-2]:
        return GainFit(**known, refusal="z is not identified")
    low, high = np.percentile(ceilings[1:], tails)
    return GainFit(
        **known,
        ceiling=float(ceilings[0]),
        ceiling_low=float(low),
        ceiling_high=float(high),
        rate=float(rates[0]),
        rate_low=float(rate_low),
        rate_high=float(rate_high),
    )
