"""Inputs and results of the estimators of compute-optimal recurrence, size and tokens.

All estimators of a group see the same noise draws: their joint scatter shows whether they disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from analysis.config import Array, Counts, FitConfig, Indices, Labels, Mask
from analysis.format import number, percent
from analysis.isoflop.curves import (
    QUANTITY_NAMES,
    Curves,
    Optimum,
    Quantity,
    assess,
    refused_optimum,
    too_few_values,
)
from analysis.isoflop.geometry import Geometry, IsoflopPath
from analysis.isoflop.power_law import PowerLaw, power_law
from analysis.serialize import HIDDEN
from analysis.stats.bootstrap import Draws, NoiseLevel, interval, noise_level, studentised
from analysis.stats.noise import CONSTANT, NoiseFloor, NoiseTrend

EstimatorName = Literal["shared shape", "parabola", "surface"]
# Shared shape has no parabola bias and assumes no law across budgets.
DEFAULT_ESTIMATOR: EstimatorName = "shared shape"
# P value of the test for lack of fit below which the group is flagged; intervals use the scatter of the
# residuals below `stats.bootstrap.LACK_OF_FIT`.
LACK_OF_FIT_FLAG = 0.05

# (quantity, index of the budget, values of the swept variable) -> loss in nats
Curve = Callable[[Quantity, int, Array], Array]
# the same, to the ends of the loss's interval
Band = Callable[[Quantity, int, Array], tuple[Array, Array]]
# (values of the swept variable, FLOPs of any budget) -> loss in nats and the ends of its interval
Across = Callable[[Array, Array], tuple[Array, Array, Array]]
# log mean recurrence of the optimum and the loss there, both [resamples, budgets]
Minima = tuple[Array, Array]


@dataclass(frozen=True, kw_only=True)
class EstimatorFit:
    """One estimator's results for a group: optima per budget, power laws and the fitted curve."""

    name: EstimatorName
    refusal: str | None = None
    noise: NoiseLevel | None = None
    intervals: str = "by bootstrap"
    parameters: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    optima: dict[Quantity, tuple[Optimum, ...]] = field(default_factory=dict)
    laws: dict[Quantity, PowerLaw] = field(default_factory=dict)
    curve: Curve | None = field(default=None, repr=False, compare=False, metadata=HIDDEN)
    band: Band | None = field(default=None, repr=False, compare=False, metadata=HIDDEN)
    across: Across | None = field(default=None, repr=False, compare=False, metadata=HIDDEN)

    def summary(self, confidence: float) -> str:
        """Return the laws, the optima and the notes, or the refusal; `confidence` is the intervals' level."""
        source = (
            f" ({percent(confidence)} intervals {self.intervals}, noise from {self.noise.source})"
            if self.noise
            else ""
        )
        lines = [f"  {self.name}{source}"]
        if self.refusal:
            return "\n".join([*lines, f"    refused: {self.refusal}"])
        for law in self.laws.values():
            lines.append(f"    {QUANTITY_NAMES[law.quantity]}: {law.summary()}")
        for quantity, optima in self.optima.items():
            lines += [
                f"      {number(optimum.budget_flops)} FLOPs: {optimum.summary(quantity)}"
                for optimum in optima
            ]
        return "\n".join([*lines, *(f"    {note}" for note in self.notes)])


@dataclass(frozen=True, kw_only=True)
class Points:
    """Runs that a surface may use, on an isoFLOP curve or not [runs]; `rows` as in `Curves`."""

    rows: Indices
    params: Array
    tokens: Array
    loss_nats: Array

    def only(self, kept: Mask) -> Points:
        """Return some of the runs."""
        return Points(**{f.name: getattr(self, f.name)[kept] for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs of the estimators for one group: isoFLOP cells, runs for the surface, noise and settings."""

    cells: Curves
    runs: Points
    shape: Geometry
    draws: Draws
    floor: NoiseFloor
    config: FitConfig
    run_ids: Labels  # [runs of the table]
    trend: NoiseTrend = CONSTANT  # of the residuals over the budget
    no_curve: str | None = None  # why the isoFLOP curves have no minimum to find

    @property
    def budgets(self) -> int:
        """Return the number of budgets."""
        return len(self.cells.budgets_flops)

    @property
    def usable(self) -> list[int]:
        """Return the budgets whose curve has enough swept values."""
        return [k for k in range(self.budgets) if too_few_values(self.cells, k) is None]

    def screened(self, kept: Mask, trend: NoiseTrend, no_curve: str | None) -> Inputs:
        """Return the inputs without the runs that are not kept; `kept` marks isoFLOP cells."""
        if kept.all():
            return replace(self, trend=trend, no_curve=no_curve)
        others = ~np.isin(self.runs.rows, self.cells.rows[~kept])
        cells, runs = self.cells.only(kept), self.runs.only(others)
        return replace(self, cells=cells, runs=runs, trend=trend, no_curve=no_curve)

    def level(self, squares: float, freedom: int, rows: Indices) -> NoiseLevel:
        """Return the noise level of the replicate seeds, or of the residuals where these exceed it.

        Parameters
        ----------
        squares : sum of the squared residuals in nats².
        freedom : their degrees of freedom.
        rows : of the table, that were fitted.
        """
        ids, independent = self.run_ids[rows], self.draws.independent
        return noise_level(self.floor, squares, freedom, ids, independent=independent, trend=self.trend)

    def resamples(
        self, level: NoiseLevel, base: Array, rows: Indices, seen: Array, flops: Array
    ) -> tuple[Array, Counts | None]:
        """Return losses and weights [resamples, points]: noise about the fit `base`, or `seen` redrawn.

        Parameters
        ----------
        rows, flops : the points' rows in the table and budgets.
        """
        weights = self.draws.weights
        if weights is None:
            return base + self.draws.noise(level, rows, flops), None
        return np.broadcast_to(seen, (len(weights), len(seen))), weights[:, rows]

    def band(self, level: NoiseLevel, resampled: Curve) -> Band:
        """Return the pointwise band of a fitted curve; `resampled` returns losses [resamples, values]."""
        return partial(_ends, self, level, resampled)

    def ends(self, level: NoiseLevel, resampled: Array) -> tuple[Array, Array]:
        """Return the ends of the intervals [places] of `resampled` values [resamples, places]."""
        factor = self.draws.factor(level)
        ends = [interval(studentised(at, factor), self.config.confidence) for at in resampled.T]
        low, high = np.array(ends, dtype=float).T
        return low, high

    def path(self, budgets: list[int]) -> IsoflopPath:
        """Return the isoFLOP curves of some budgets as functions of the log of the swept variable."""
        return IsoflopPath(
            shape=self.shape,
            budgets_flops=self.cells.budgets_flops[budgets],
            middle=float(np.log(self.cells.values).mean()),
        )

    def along(self, quantity: Quantity, budget: int, values: Array) -> tuple[Array, Array]:
        """Return log N and log D at values of the swept variable on one isoFLOP curve."""
        flops, depth = float(self.cells.budgets_flops[budget]), np.asarray(values, float)
        if quantity == "tokens":
            depth = (flops / depth - self.shape.flops_fixed) / self.shape.flops_slope
        return np.log(self.shape.params(depth)), np.log(self.shape.tokens(depth, flops))


def _ends(inputs: Inputs, level: NoiseLevel, resampled: Curve, *place: Any) -> tuple[Array, Array]:
    return inputs.ends(level, resampled(*place))


def first_of(curves: Curve, *place: Any) -> Array:
    """Return the first of several fitted curves: that of the data."""
    return np.asarray(curves(*place)[0])


def power_laws(
    inputs: Inputs, optima: dict[Quantity, tuple[Optimum, ...]], level: NoiseLevel
) -> dict[Quantity, PowerLaw]:
    """Return the power law of each quantity."""
    factor = inputs.draws.factor(level)
    return {quantity: power_law(quantity, each, factor, inputs.config) for quantity, each in optima.items()}


def not_fitted(name: EstimatorName, inputs: Inputs, reason: str | None = None) -> EstimatorFit:
    """Return the result of an estimator that was not fitted, with the reason at every budget."""
    quantities = inputs.cells.quantities
    why = reason or "no budget has enough points"
    each = [too_few_values(inputs.cells, k) or why for k in range(inputs.budgets)]
    return EstimatorFit(
        name=name,
        refusal=why,
        optima={
            q: tuple(refused_optimum(inputs.cells, q, k, each[k]) for k in range(inputs.budgets))
            for q in quantities
        },
        laws={quantity: PowerLaw(quantity=quantity, refusal=why) for quantity in quantities},
    )


def assess_minima(
    inputs: Inputs, budgets: list[int], point: Minima, resampled: Minima, level: NoiseLevel
) -> dict[Quantity, tuple[Optimum, ...]]:
    """Return the optima in the swept variable and in the tokens that it leaves, accepted or refused."""
    optima: dict[Quantity, tuple[Optimum, ...]] = {}
    factor = inputs.draws.factor(level)
    for quantity in inputs.cells.quantities:
        assessed = []
        for k in range(inputs.budgets):
            if k not in budgets:
                assessed.append(
                    refused_optimum(inputs.cells, quantity, k, too_few_values(inputs.cells, k) or "")
                )
                continue
            column, flops = budgets.index(k), float(inputs.cells.budgets_flops[k])
            place, draws = (
                as_quantity(quantity, inputs.shape, flops, m[0][:, column]) for m in (point, resampled)
            )
            at = (float(place[0]), float(point[1][0, column]))
            assessed.append(
                assess(inputs.cells, quantity, k, at, (draws, resampled[1][:, column], factor), inputs.config)
            )
        optima[quantity] = tuple(assessed)
    return optima


def as_quantity(quantity: Quantity, shape: Geometry, flops: float, log_depth: Array) -> Array:
    """Return logs of a quantity from logs of the swept variable; tokens fall as it rises."""
    if quantity != "tokens":
        return log_depth
    logs, finite = -log_depth, np.isfinite(log_depth)
    with np.errstate(invalid="ignore"):  # far below the sizes that FLOPs were fitted to
        logs[finite] = np.log(shape.tokens(np.exp(log_depth[finite]), flops))
    return logs
