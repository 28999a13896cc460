"""Power laws of the compute-optimal recurrence and tokens over the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.config import Array, FitConfig
from analysis.format import fixed, number, percent
from analysis.isoflop.curves import SYMBOLS, Optimum, Quantity, is_interior
from analysis.isoflop.geometry import MIN_BUDGETS
from analysis.serialize import HIDDEN
from analysis.stats.bootstrap import interval, studentised

MAX_WITHOUT_LAW = 0.25  # share of resamples without three optima above which a law is refused


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """value = coefficient (C / reference)^exponent, or the reason why the law is refused.

    The exponent is the least-squares slope of log optimum on log C over the accepted budgets.
    """

    quantity: Quantity
    exponent: float | None = None
    exponent_low: float | None = None
    exponent_high: float | None = None
    reference_flops: float | None = None
    coefficient: float | None = None
    coefficient_low: float | None = None
    coefficient_high: float | None = None
    budgets_flops: tuple[float, ...] = ()
    refusal: str | None = None
    draws: Array = field(  # (log coefficient, exponent) of every resample, NaN where it has none
        default_factory=lambda: np.empty((0, 2)), repr=False, compare=False, metadata=HIDDEN
    )

    def summary(self) -> str:
        """Return the law with the interval of its exponent, or the refusal."""
        if self.exponent is None:
            return f"refused: {self.refusal}"
        low, high = fixed(self.exponent_low, 3), fixed(self.exponent_high, 3)
        return (
            f"{SYMBOLS[self.quantity]} = {number(self.coefficient)} "
            f"(C / {number(self.reference_flops)} FLOPs)"
            f"^{self.exponent:.3f} [{low}, {high}], {len(self.budgets_flops)} budgets"
        )

    def predict(self, flops: Array) -> Array:
        """Return the law's value at budgets of `flops`."""
        if self.exponent is None or self.coefficient is None or self.reference_flops is None:
            raise ValueError(f"no power law of {self.quantity}: {self.refusal}")
        return np.asarray(self.coefficient * (flops / self.reference_flops) ** self.exponent)

    def band(self, flops: Array, confidence: float) -> tuple[Array, Array]:
        """Return the pointwise interval of the law at budgets of `flops`."""
        draws = self.draws[~np.isnan(self.draws[:, 1])]
        lines = draws[:, :1] + draws[:, 1:] * np.log(flops / (self.reference_flops or 1.0))
        tail = (1 - confidence) / 2
        low, high = np.quantile(lines, [tail, 1 - tail], axis=0)
        return np.exp(low), np.exp(high)


def power_law(quantity: Quantity, optima: Sequence[Optimum], factor: Array, config: FitConfig) -> PowerLaw:
    """Return the power law through the accepted optima, refused with fewer than three budgets.

    Parameters
    ----------
    optima : one per budget.
    factor : each resample's factor of the noise level [resamples].

    Notes
    -----
    Every resample selects its own budgets by the same rule: the optimum lies inside the swept range. Near an
    edge this selection is part of the scatter, and intervals at fixed budgets would miss it
    (`validation/coverage.py`).
    """
    accepted = [optimum for optimum in optima if optimum.value is not None]
    budgets = np.array([optimum.budget_flops for optimum in accepted])
    chosen = tuple(budgets.tolist())
    if len(accepted) < MIN_BUDGETS:
        return PowerLaw(quantity=quantity, budgets_flops=chosen, refusal=_too_few(len(accepted)))
    reference = float(np.exp(np.mean(np.log(budgets))))
    values = np.log([[optimum.value or np.nan for optimum in accepted]])
    level, slope = lines(np.log(budgets / reference), values, np.ones(values.shape, bool))
    fitted = [optimum for optimum in optima if optimum.fitted]
    logs = np.stack([optimum.log_draws for optimum in fitted], -1)
    used = np.stack([is_interior(optimum.log_draws, optimum.swept) for optimum in fitted], -1)
    x = np.log(np.array([optimum.budget_flops for optimum in fitted]) / reference)
    levels, slopes = lines(x, logs, used)
    lacking = float(np.mean(np.isnan(slopes)))
    if lacking > MAX_WITHOUT_LAW:
        reason = f"{percent(lacking)} of the resamples have fewer than {MIN_BUDGETS} budgets with an optimum"
        return PowerLaw(quantity=quantity, budgets_flops=chosen, refusal=reason)
    levels, slopes = studentised(levels, factor), studentised(slopes, factor)
    low, high = interval(slopes, config.confidence)
    level_low, level_high = interval(levels, config.confidence)
    return PowerLaw(
        quantity=quantity,
        exponent=float(slope[0]),
        exponent_low=low,
        exponent_high=high,
        reference_flops=reference,
        coefficient=float(np.exp(level[0])),
        coefficient_low=None if level_low is None else float(np.exp(level_low)),
        coefficient_high=None if level_high is None else float(np.exp(level_high)),
        budgets_flops=chosen,
        draws=np.stack([levels, slopes], -1),
    )


def lines(x: Array, logs: Array, used: Any) -> tuple[Array, Array]:
    """Return level at x = 0 and slope of each row's line through its used points; NaN below three points."""
    count = np.where(used.sum(-1) >= MIN_BUDGETS, used.sum(-1), np.nan)
    y = np.where(used, logs, 0.0)
    x_mean = (used * x).sum(-1) / count
    centred = used * (x - x_mean[:, None])
    slope = (centred * y).sum(-1) / np.where(np.isnan(count), np.nan, (centred**2).sum(-1))
    return y.sum(-1) / count - slope * x_mean, slope


def _too_few(count: int) -> str:
    if count == 0:
        return "no budget has an accepted optimum"
    noun = "budget is" if count == 1 else "budgets are"
    return f"{count} {noun} not enough for an exponent with an interval"
