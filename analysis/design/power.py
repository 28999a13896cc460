"""What a planned study would resolve, as numbers, words and JSON.

The spread of the estimates is what a perfect analyst would call the error. The interval is what `fit` would
print: some studies go through the very same bootstrap, with the noise level and the degrees of freedom that
their own replicates or residuals give. The two agree where the study can know its own noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pandas as pd
from annotated_types import Ge, Gt

from analysis import serialize
from analysis.config import Array
from analysis.design.simulate import Grid, Noise
from analysis.format import number, percent
from analysis.isoflop.curves import QUANTITY_NAMES, Quantity
from analysis.isoflop.estimator import DEFAULT_ESTIMATOR, EstimatorName
from analysis.isoflop.geometry import MIN_BUDGETS
from analysis.serialize import HIDDEN

FAR = 0.15  # of the spread: an interval of another width, or estimates off by more, are said to be so


@dataclass(frozen=True, kw_only=True)
class DesignConfig:
    """How a design is simulated; the same grid and settings give the same bytes."""

    studies: Annotated[int, Ge(100)] = 1000
    analysts: Annotated[int, Ge(1)] = 40  # of them, how many are analysed as `fit` does, intervals included
    bootstrap: Annotated[int, Ge(100)] = 400  # resamples of each analysis
    seed: Annotated[int, Ge(0)] = 0
    target_flops: float | None = None  # budget of the predicted optimum; None: four times the largest
    margin_nats: Annotated[float, Gt(0)] = 0.01  # of looped below fixed depth, for the power


@dataclass(frozen=True, kw_only=True)
class EstimatePrecision:
    """One number that a study estimates: the truth, the spread of the estimates, the interval of an analyst.

    `low` and `high` hold the central 95 % of the estimates; `interval` is the median width of the 95 %
    intervals, None where this estimator was not analysed or most intervals are refused or open. Of an optimum
    the logs are meant: widths are then logs of ratios.
    """

    quantity: Quantity
    at_flops: float | None  # None: the exponent
    true: float | None
    median: float | None = None
    low: float | None = None
    high: float | None = None
    interval: float | None = None
    without_estimate: float  # share of the studies
    without_interval: float | None = None  # share of the analyses

    @property
    def spread(self) -> float | None:
        """Return the width of the central 95 % of the estimates."""
        if self.low is None or self.high is None:
            return None
        return float(np.log(self.high / self.low)) if self.at_flops else self.high - self.low

    @property
    def off(self) -> float:
        """Return how far the median estimate lies from the truth, as a share of the spread."""
        if self.true is None or self.median is None or not self.spread:
            return 0.0
        gap = np.log(self.median / self.true) if self.at_flops else self.median - self.true
        return float(abs(gap) / self.spread)


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The optimum of one budget by the default estimator, and the power there of looped against fixed."""

    budget_flops: float
    runs: int
    swept_low: float
    swept_high: float
    true: float
    low: float | None
    high: float | None
    below: float  # shares of the studies whose minimum lies below, above, or nowhere
    above: float
    without: float
    power: float | None  # None: no control, or no replicate seeds
    power_known: float | None  # were the training noise known


@dataclass(frozen=True, kw_only=True, repr=False)
class PowerAnalysis(serialize.Printed):
    """What a grid resolves under one law."""

    law: str
    noise: Noise
    config: DesignConfig
    runs: int
    controls: int
    nominal_flops: float
    replicates: int  # degrees of freedom of the noise level, zero without replicate seeds
    resolved: dict[EstimatorName, tuple[EstimatePrecision, ...]]
    outlooks: tuple[Outlook, ...]
    all_inside: float  # share of the studies whose minima all lie inside the grid
    estimates: Array = field(repr=False, compare=False, metadata=HIDDEN)  # exponents of µ* [studies]
    grid: Grid = field(repr=False, compare=False, metadata=HIDDEN)

    def of(
        self,
        quantity: Quantity = "mean_recurrence",
        name: EstimatorName = DEFAULT_ESTIMATOR,
        *,
        target: bool = False,
    ) -> EstimatePrecision:
        """Return the exponent of a quantity by one estimator, or with `target` its value there."""
        items = (item for item in self.resolved[name] if item.quantity == quantity)
        return next(item for item in items if (item.at_flops is not None) == target)

    @property
    def without_law(self) -> float:
        """Return the share of the studies that end without an exponent of µ* or without its interval."""
        exponent = self.of()
        return max(exponent.without_estimate, exponent.without_interval or 0.0)

    def to_json(self) -> str:
        """Return the result as JSON text."""
        return serialize.to_json(self)

    def summary(self) -> str:
        """Return what the study would resolve, in words."""
        parts = [f"seeds {self.noise.seed_nats:g}"]
        parts += [
            f"{name} {size:g}"
            for name, size in (("trunks", self.noise.trunk_nats), ("evaluation", self.noise.evaluation_nats))
            if size
        ]
        lines = [
            f"{self.runs} looped runs and {self.controls} controls, {number(self.nominal_flops)} FLOPs, "
            f"under {self.law}; noise in nats: {', '.join(parts)}; {self.config.studies} simulated studies",
            *(f"  {_sentence(item, self._largest())}" for item in self.resolved[DEFAULT_ESTIMATOR]),
            f"  minima all lie inside the grid in {percent(self.all_inside)} of the studies"
            f"{_worst(self.outlooks)}",
            f"  {self._power()}",
        ]
        return "\n".join(lines)

    def _largest(self) -> float:
        return max(item.budget_flops for item in self.outlooks)

    def _power(self) -> str:
        margin = f"looped {self.config.margin_nats:g} nats below fixed depth"
        if not self.controls:
            return f"{margin}: no control in the grid"
        shown = [
            f"{percent(power)} at {number(item.budget_flops)}"
            for item in self.outlooks
            if (power := item.power if self.replicates else item.power_known) is not None
        ]
        powers = f"{', '.join(shown)} FLOPs"
        if self.replicates:
            return f"{margin} is resolved with a power of {powers}"
        return (
            f"{margin}: not resolved, as no cell has a second seed (`compare`: training noise unknown); "
            f"with known noise the power would be {powers}"
        )

    def frame(self) -> pd.DataFrame:
        """Return one row per budget."""
        return pd.DataFrame([vars(item) for item in self.outlooks])


def _sentence(item: EstimatePrecision, largest: float) -> str:
    name = QUANTITY_NAMES[item.quantity]
    what = f"exponent of {name}"
    if item.at_flops is not None:
        what = f"{name} at {number(item.at_flops)} FLOPs"
        if item.at_flops > largest:
            what += f", {number(item.at_flops / largest)} times the largest budget"
    if item.true is None:
        what += " (no true one: fewer than three optima inside the grid)"
    elif item.at_flops is None:
        what += f" (true {item.true:.3f})"
    else:
        what += f" (true {number(item.true)})"
    if item.spread is None or item.without_estimate > 0.5:
        return (
            f"{what}: not resolved, {percent(item.without_estimate)} of the studies have fewer than "
            f"{MIN_BUDGETS} optima inside the grid"
        )
    factor = item.at_flops is not None
    spread = f"a factor of {number(float(np.exp(item.spread)))}" if factor else f"{item.spread:.3f}"
    sentence = f"{what}: the estimates spread over {spread} ({number(item.low)} to {number(item.high)})"
    if item.off > FAR:
        sentence += f", around {number(item.median)}"
    if item.interval is None:
        sentence += ", an analyst's 95 % interval is mostly refused or open"
    else:
        width = f"a factor of {number(float(np.exp(item.interval)))}" if factor else f"{item.interval:.3f}"
        sentence += f", an analyst's 95 % interval over {width}"
        ratio = item.interval / item.spread
        if abs(ratio - 1) > FAR:
            sentence += f", which is {ratio:.2f} of the spread"
    refused = max(item.without_estimate, item.without_interval or 0.0)
    return f"{sentence}; without an estimate or interval in {percent(refused)} of the studies"


def _worst(outlooks: tuple[Outlook, ...]) -> str:
    worst = max(outlooks, key=lambda item: item.below + item.above + item.without)
    share = worst.below + worst.above + worst.without
    if share < 0.005:
        return ""
    side = "above" if worst.above >= max(worst.below, worst.without) else "below"
    side = "without" if worst.without > max(worst.above, worst.below) else side
    place = "without a minimum" if side == "without" else f"{side} it"
    return f"; at {number(worst.budget_flops)} FLOPs {percent(share)} do not, mostly {place}"
