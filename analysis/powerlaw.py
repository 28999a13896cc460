"""Power laws of the compute-optimal recurrence and tokens over the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.config import FitConfig
from analysis.isoflop import HIDDEN, MAX_WITHOUT_MINIMUM, Optimum, Quantity
from analysis.resample import interval

Array = np.ndarray[Any, np.dtype[np.float64]]
MIN_BUDGETS = 3


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """value = coefficient (C / reference)^exponent, or the reason why the optima carry no such law.

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

    def predict(self, flops: Array) -> Array:
        """Return the law's value at budgets of `flops`."""
        if self.exponent is None or self.coefficient is None or self.reference_flops is None:
            raise ValueError(f"no power law of {self.quantity}: {self.refusal}")
        return np.asarray(self.coefficient * (flops / self.reference_flops) ** self.exponent)

    def band(self, flops: Array, confidence: float) -> tuple[Array, Array]:
        """Return the pointwise interval of the law at budgets of `flops`."""
        lines = self.draws[:, :1] + self.draws[:, 1:] * np.log(flops / self.reference_flops)
        tail = (1 - confidence) / 2
        low, high = np.nanquantile(lines, [tail, 1 - tail], axis=0)
        return np.exp(low), np.exp(high)


def power_law(quantity: Quantity, optima: Sequence[Optimum], config: FitConfig) -> PowerLaw:
    """Fit a power law through the accepted optima; refuse with fewer than three budgets."""
    accepted = [optimum for optimum in optima if optimum.refusal is None]
    budgets = np.array([optimum.budget_flops for optimum in accepted])
    if len(accepted) < MIN_BUDGETS:
        return PowerLaw(
            quantity=quantity, budgets_flops=tuple(budgets.tolist()), refusal=_too_few(len(accepted))
        )
    reference = float(np.exp(np.mean(np.log(budgets))))
    x = np.log(budgets / reference)
    level, slope = _line(x, np.log([[optimum.value or np.nan for optimum in accepted]]))
    logs = np.stack([optimum.log_draws for optimum in accepted], -1)
    whole = np.isfinite(logs).all(1)
    if np.mean(~whole) > MAX_WITHOUT_MINIMUM:
        reason = f"{np.mean(~whole):.0%} of the resamples lack an optimum at one budget or more"
        return PowerLaw(quantity=quantity, budgets_flops=tuple(budgets.tolist()), refusal=reason)
    levels, slopes = _line(x, np.where(whole[:, None], logs, np.nan))
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
        budgets_flops=tuple(budgets.tolist()),
        draws=np.stack([levels, slopes], -1),
    )


def _line(x: Array, logs: Array) -> tuple[Array, Array]:
    """Return level at x = 0 and slope of each row of `logs` [..., budgets]; x has mean zero."""
    return logs.mean(-1), logs @ x / (x @ x)


def _too_few(count: int) -> str:
    if count == 0:
        return "no budget has an accepted optimum"
    noun = "budget is" if count == 1 else "budgets are"
    return f"{count} {noun} not enough for an exponent with an interval"
