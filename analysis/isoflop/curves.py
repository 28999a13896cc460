"""The isoFLOP curves of one group of runs, and the rules that accept or refuse an optimum."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from analysis.config import Array, FitConfig, Indices, Mask
from analysis.format import fixed, number, percent, plural, span
from analysis.isoflop.geometry import MIN_SWEPT, Geometry, on_isoflop_curve
from analysis.serialize import HIDDEN
from analysis.stats.bootstrap import interval, studentised

Quantity = Literal["mean_recurrence", "params", "tokens"]

EDGE_SHARE = 0.02  # of the log width of the swept range: an optimum this close to an end is at the edge
MAX_WITHOUT_MINIMUM = 0.5  # share of resamples without a minimum above which an optimum is refused
AXIS_LABELS: dict[Quantity, str] = {
    "mean_recurrence": "mean recurrence µ (loops)",
    "params": "parameters N",
    "tokens": "training tokens D",
}
QUANTITY_NAMES: dict[Quantity, str] = {
    "mean_recurrence": "mean recurrence",
    "params": "parameters",
    "tokens": "tokens",
}
SYMBOLS: dict[str, str] = {"mean_recurrence": "µ*", "params": "N*", "tokens": "D*"}
NOUNS = {"mean_recurrence": "recurrence", "params": "size"}


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The minimum of one isoFLOP curve with its interval, or the reason why it is refused."""

    budget_flops: float
    value: float | None = None
    low: float | None = None  # None: the interval is open on that side
    high: float | None = None
    loss_nats: float | None = None
    loss_low_nats: float | None = None
    loss_high_nats: float | None = None
    swept: tuple[float, float]
    refusal: str | None = None
    log_draws: Array = field(repr=False, compare=False, metadata=HIDDEN)
    loss_draws: Array = field(repr=False, compare=False, metadata=HIDDEN)
    factor: Array = field(repr=False, compare=False, metadata=HIDDEN)

    @property
    def fitted(self) -> bool:
        """Return True if a curve was fitted at this budget, even one whose minimum was refused."""
        return len(self.log_draws) > 0

    def summary(self, quantity: Quantity) -> str:
        """Return the optimum and the loss there with their intervals, or the refusal."""
        if self.refusal:
            return f"{SYMBOLS[quantity]} refused: {self.refusal}"
        low, high = fixed(self.loss_low_nats, 4), fixed(self.loss_high_nats, 4)
        return f"{SYMBOLS[quantity]} = {self.short_summary()}, loss {self.loss_nats:.4f} [{low}, {high}] nats"

    def short_summary(self) -> str:
        """Return the optimum with its interval, or the first clause of the refusal."""
        if self.refusal:
            return f"refused: {self.refusal.split(' (')[0].split(', which')[0]}"
        return f"{number(self.value)} {span(self.low, self.high)}"


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Runs on the continuous FLOP curve as arrays [runs], with the budgets [budgets]."""

    variable: Quantity = "mean_recurrence"  # swept at every budget; parameters for plain transformers
    budgets_flops: Array  # [budgets]
    budget: Indices  # index of each run's budget
    rows: Indices  # positions in the group's table and in its noise draws
    values: Array  # of the swept variable
    tokens: Array
    params: Array
    loss_nats: Array

    def axis(self, quantity: Quantity) -> Array:
        """Return the swept variable, or the tokens [runs]."""
        return self.tokens if quantity == "tokens" else self.values

    def swept(self, quantity: Quantity, budget: int) -> tuple[float, float]:
        """Return the least and largest value of a quantity at one budget."""
        values = self.axis(quantity)[self.budget == budget]
        return float(values.min()), float(values.max())

    def distinct(self, budget: int) -> int:
        """Return the number of distinct values of the swept variable at one budget."""
        return len(np.unique(self.values[self.budget == budget]))

    def only(self, kept: Mask) -> Curves:
        """Return the curves of some of the runs; every budget stays."""
        names = ("budget", "rows", "values", "tokens", "params", "loss_nats")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    @property
    def quantities(self) -> tuple[Quantity, Quantity]:
        """Return the swept variable and the tokens."""
        return self.variable, "tokens"


def isoflop_curves(group: pd.DataFrame, shape: Geometry) -> Curves:
    """Return the isoFLOP curves of a group's table (index 0 to n - 1): its looped runs with a budget."""
    looped = (group["kind"] == "looped").to_numpy() & group["target_flops"].notna().to_numpy()
    rows = np.flatnonzero(looped)
    rows = rows[on_isoflop_curve(group.iloc[rows], shape.backprop_share)]
    used = group.iloc[rows]
    budgets, index = np.unique(used["target_flops"].to_numpy(float), return_inverse=True)
    depth = used["mean_recurrence"].to_numpy(float)
    return Curves(
        budgets_flops=budgets,
        budget=index,
        rows=rows,
        values=depth,
        tokens=used["tokens"].to_numpy(float),
        params=shape.params(depth),
        loss_nats=used["val_loss_nats"].to_numpy(float),
    )


def too_few_values(cells: Curves, budget: int) -> str | None:
    """Return why a curve has too few swept values for a minimum with an error, None if it has enough."""
    count = cells.distinct(budget)
    if count < MIN_SWEPT:
        return f"{plural(count, NOUNS[cells.variable])}, at least {MIN_SWEPT} are needed"
    return None


def assess(
    cells: Curves,
    quantity: Quantity,
    budget: int,
    point: tuple[float, float],
    draws: tuple[Array, Array, Array],
    config: FitConfig,
) -> Optimum:
    """Return the minimum of one curve, accepted or refused.

    Parameters
    ----------
    point : log of the optimum and the loss there in nats. NaN: the curve has no minimum; an infinity: it
        falls or rises over the whole searched range.
    draws : the same of the resamples, and each one's factor of the noise level, all [resamples].
    """
    log_draws, loss_draws, factor = draws
    low_end, high_end = cells.swept(quantity, budget)
    at_budget = float(cells.budgets_flops[budget])
    refusal = _refusal(quantity, point[0], log_draws, (low_end, high_end))
    low, high = interval(studentised(log_draws, factor), config.confidence)
    losses = np.where(np.isfinite(log_draws), loss_draws, np.nan)
    loss_low, loss_high = interval(studentised(losses, factor), config.confidence)
    # The exponential of a refused minimum may overflow.
    values = (
        {}
        if refusal
        else {
            "value": float(np.exp(point[0])),
            "low": None if low is None else float(np.exp(low)),
            "high": None if high is None else float(np.exp(high)),
            "loss_nats": float(point[1]),
            "loss_low_nats": loss_low,
            "loss_high_nats": loss_high,
        }
    )
    return Optimum(
        budget_flops=at_budget,
        swept=(low_end, high_end),
        refusal=refusal,
        log_draws=log_draws,
        loss_draws=losses,
        factor=factor,
        **values,
    )


def refused_optimum(cells: Curves, quantity: Quantity, budget: int, reason: str) -> Optimum:
    """Return an optimum that is refused without a fit."""
    empty = np.empty(0)
    return Optimum(
        budget_flops=float(cells.budgets_flops[budget]),
        swept=cells.swept(quantity, budget),
        refusal=reason,
        log_draws=empty,
        loss_draws=empty,
        factor=empty,
    )


def interior_bounds(swept: tuple[float, float]) -> tuple[float, float]:
    """Return the logs between which an optimum is inside the swept range and not at its edge."""
    low, high = (float(end) for end in np.log(swept))
    margin = EDGE_SHARE * (high - low)
    return low + margin, high - margin


def is_interior(log_values: Array, swept: tuple[float, float]) -> Mask:
    """Return a mask of the optima (logs) that are inside the swept range and not at its edge."""
    low, high = interior_bounds(swept)
    with np.errstate(invalid="ignore"):
        return np.asarray((log_values > low) & (log_values < high))


def _refusal(
    quantity: Quantity, log_value: float, log_draws: Array, swept: tuple[float, float]
) -> str | None:
    if np.isnan(log_value):
        return "no minimum: the curve has no positive curvature"
    unit = {"mean_recurrence": "µ = {}", "params": "{} parameters", "tokens": "{} tokens"}[quantity]
    first, last = (unit.format(number(end)) for end in swept)
    place = f" (at {unit.format(number(np.exp(log_value)))})" if abs(log_value) < 100 else ""
    low, high = np.log(swept)
    if not is_interior(np.array([log_value]), swept)[0]:
        if low <= log_value <= high:
            return f"the minimum lies at the edge of the swept range{place}"
        if log_value < low:
            return f"the minimum lies below the swept range, which starts at {first}{place}"
        return f"the minimum lies above the swept range, which ends at {last}{place}"
    without = float(np.mean(~np.isfinite(log_draws)))
    if without > MAX_WITHOUT_MINIMUM:
        share = percent(without)
        return f"the noise leaves open whether there is a minimum ({share} of the resamples have none)"
    return None
