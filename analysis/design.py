"""What a planned study would resolve: estimates of many simulated studies, and the intervals of some.

The spread of the estimates is what a perfect analyst would call the error. The interval is what `fit` would
print: some studies go through the very same bootstrap, with the noise level and the degrees of freedom that
their own replicates or residuals give. The two agree where the study can know its own noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pandas as pd
from annotated_types import Ge, Gt

from analysis import plain
from analysis.config import FitConfig
from analysis.difference import of_minimum
from analysis.estimator import DEFAULT, EstimatorFit, EstimatorName, Inputs
from analysis.generator import Generator
from analysis.isoflop import HIDDEN, Quantity, inside
from analysis.numbers import number
from analysis.powerlaw import MIN_BUDGETS
from analysis.shared_shape import fit_shared
from analysis.simulate import QUANTITIES, Estimates, Grid, Noise, estimate
from analysis.words import QUANTITY

Array = np.ndarray[Any, np.dtype[np.float64]]
Progress = Callable[[str, float], None]
BATCH = 250  # studies fitted at once between two steps of the progress bar
FAR = 0.15  # an interval that differs by more from the spread of the estimates is said to be off


@dataclass(frozen=True, kw_only=True)
class DesignConfig:
    """How a design is simulated; the same grid and settings give the same bytes."""

    studies: Annotated[int, Ge(100)] = 1000
    analysts: Annotated[int, Ge(10)] = 40  # of them, how many are analysed as `fit` does, intervals included
    bootstrap: Annotated[int, Ge(100)] = 400  # resamples of each analysis
    seed: Annotated[int, Ge(0)] = 0
    target_flops: float | None = None  # budget of the predicted optimum; None: four times the largest
    margin_nats: Annotated[float, Gt(0)] = 0.01  # of looped below fixed depth, for the power


@dataclass(frozen=True, kw_only=True)
class Resolved:
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


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The optimum of one budget by the default estimator, and the power there to tell looped from fixed."""

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


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What a grid resolves under one law."""

    law: str
    noise: Noise
    config: DesignConfig
    runs: int
    controls: int
    nominal_flops: float
    replicates: int  # degrees of freedom of the noise level, zero without replicate seeds
    resolved: dict[EstimatorName, tuple[Resolved, ...]]
    outlooks: tuple[Outlook, ...]
    all_inside: float  # share of the studies whose minima all lie inside the grid
    estimates: Array = field(repr=False, compare=False, metadata=HIDDEN)  # exponents of µ* [studies]
    grid: Grid = field(repr=False, compare=False, metadata=HIDDEN)

    def of(
        self, quantity: Quantity = "mean_recurrence", name: EstimatorName = DEFAULT, *, target: bool = False
    ) -> Resolved:
        """Return the exponent of a quantity by one estimator, or with `target` its value there."""
        found = (item for item in self.resolved[name] if item.quantity == quantity)
        return next(item for item in found if (item.at_flops is not None) == target)

    def to_json(self) -> str:
        """Return the result as JSON text."""
        return plain.to_json(self)

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
            *(f"  {_sentence(item, self.config)}" for item in self.resolved[DEFAULT]),
            f"  minima all lie inside the grid in {self.all_inside:.0%} of the studies"
            f"{_worst(self.outlooks)}",
            f"  {self._power()}",
        ]
        return "\n".join(lines)

    def _power(self) -> str:
        margin = f"looped {self.config.margin_nats:g} nats below fixed depth"
        if not self.controls:
            return f"{margin}: no control in the grid"
        shown = [
            f"{power:.0%} at {number(item.budget_flops)}"
            for item in self.outlooks
            if (power := item.power if self.replicates else item.power_known) is not None
        ]
        powers = f"{', '.join(shown)} FLOPs"
        if self.replicates:
            return f"{margin} is told with a power of {powers}"
        return (
            f"{margin}: not told, no cell has a second seed (`compare`: training noise unknown); were the "
            f"noise known, with a power of {powers}"
        )

    def frame(self) -> pd.DataFrame:
        """Return one row per budget."""
        return pd.DataFrame([vars(item) for item in self.outlooks])


def _sentence(item: Resolved, config: DesignConfig) -> str:
    name = QUANTITY[item.quantity]
    what = f"exponent of {name}" if item.at_flops is None else f"{name} at {number(item.at_flops)} FLOPs"
    if item.true is None:
        what += " (no true one: fewer than three optima inside the grid)"
    elif item.at_flops is None:
        what += f" (true {item.true:.3f})"
    else:
        what += f" (true {number(item.true)})"
    if item.spread is None or item.without_estimate > 0.5:
        return (
            f"{what}: not resolved, {item.without_estimate:.0%} of the studies have fewer than {MIN_BUDGETS} "
            "optima inside the grid"
        )
    factor = item.at_flops is not None
    spread = f"a factor of {number(float(np.exp(item.spread)))}" if factor else f"{item.spread:.3f}"
    said = f"{what}: the estimates spread over {spread} ({number(item.low)} to {number(item.high)})"
    if item.interval is None:
        said += ", an analyst's 95 % interval is mostly refused or open"
    else:
        width = f"a factor of {number(float(np.exp(item.interval)))}" if factor else f"{item.interval:.3f}"
        said += f", an analyst's 95 % interval over {width}"
        ratio = item.interval / item.spread
        if abs(ratio - 1) > FAR:
            said += f", which is {ratio:.2f} of the spread"
    refused = max(item.without_estimate, item.without_interval or 0.0)
    return f"{said}; none in {refused:.0%} of the studies"


def _worst(outlooks: tuple[Outlook, ...]) -> str:
    worst = max(outlooks, key=lambda item: item.below + item.above + item.without)
    share = worst.below + worst.above + worst.without
    if share < 0.005:
        return ""
    side = "above" if worst.above >= max(worst.below, worst.without) else "below"
    side = "without" if worst.without > max(worst.above, worst.below) else side
    place = "without a minimum" if side == "without" else f"{side} it"
    return f"; at {number(worst.budget_flops)} FLOPs {share:.0%} do not, mostly {place}"


def resolve(
    grid: Grid,
    law: Generator,
    noise: Noise,
    config: DesignConfig,
    progress: Progress = lambda stage, done: None,
) -> Resolution:
    """Simulate a study many times and return what its estimators would resolve.

    Fixed-depth controls are put `margin_nats` above the loss of the true optimum of their budget.
    """
    clean = expected_losses(grid, law, config.margin_nats)
    losses = clean + noise.draw(grid.runs, config.studies, config.seed)
    parts = []
    for first in range(0, config.studies, BATCH):
        progress("simulated studies", first / config.studies)
        parts.append(estimate(grid, clean, losses[first : first + BATCH]))
    progress("simulated studies", 1.0)
    found = [joined([part[k] for part in parts]) for k in range(len(parts[0]))]
    analyses = []
    for k in range(min(config.analysts, config.studies)):
        progress("analyses with intervals", k / config.analysts)
        settings = FitConfig(bootstrap=config.bootstrap, seed=config.seed + k, validation=False)
        inputs = grid.inputs(losses[k], settings, f"study {k}")
        analyses.append((inputs, fit_shared(inputs)))
    progress("analyses with intervals", 1.0)
    target = config.target_flops or 4 * float(grid.cells.budgets_flops.max())
    default = next(item for item in found if item.name == DEFAULT)
    outlooks = _outlooks(grid, law, default, losses, analyses)
    runs = grid.runs
    within = default.inside["mean_recurrence"]
    return Resolution(
        law=law.name,
        noise=noise,
        config=config,
        runs=len(grid.looped),
        controls=int((runs["kind"] == "fixed").sum()),
        nominal_flops=float(runs["nominal_flops"].sum()),
        replicates=analyses[0][0].floor.degrees_of_freedom,
        resolved={item.name: _resolved(grid, law, item, target, analyses) for item in found},
        outlooks=outlooks,
        all_inside=float(within.all(1).mean()) if len(default.budgets) == len(outlooks) else 0.0,
        estimates=default.line(grid, "mean_recurrence", target)[1],
        grid=grid,
    )


def expected_losses(grid: Grid, law: Generator, margin_nats: float) -> Array:
    """Return the noise-free loss of every run, controls by the margin above the best looped loss."""
    clean = grid.expected(law)
    for row in np.flatnonzero((grid.runs["kind"] == "fixed").to_numpy()):
        flops = float(grid.runs["target_flops"].iloc[row])
        best = law.optimum(grid.shape, flops)
        clean[row] = float(law.loss(best, grid.shape.tokens(best, flops))) + margin_nats
    return clean


def joined(parts: list[Estimates]) -> Estimates:
    """Return the studies of several batches as one."""
    first = parts[0]
    return Estimates(
        name=first.name,
        budgets=first.budgets,
        log_optima={q: np.concatenate([part.log_optima[q] for part in parts]) for q in QUANTITIES},
        inside={q: np.concatenate([part.inside[q] for part in parts]) for q in QUANTITIES},
        loss_nats=np.concatenate([part.loss_nats for part in parts]),
    )


def true_optima(grid: Grid, law: Generator, flops: Array, quantity: Quantity) -> Array:
    """Return the law's compute-optimal recurrence or tokens at each budget."""
    depth = np.array([law.optimum(grid.shape, float(c)) for c in flops])
    return depth if quantity == "mean_recurrence" else grid.shape.tokens(depth, flops)


def true_exponent(grid: Grid, law: Generator, quantity: Quantity, budgets: list[int]) -> float | None:
    """Return the slope of the true optima over the budgets where they lie inside the grid."""
    flops = grid.cells.budgets_flops[budgets]
    logs = np.log(true_optima(grid, law, flops, quantity))
    kept = np.array(
        [inside(logs[i : i + 1], grid.cells.swept(quantity, k))[0] for i, k in enumerate(budgets)]
    )
    if kept.sum() < MIN_BUDGETS:
        return None
    return float(np.polyfit(np.log(flops[kept]), logs[kept], 1)[0])


def _resolved(
    grid: Grid, law: Generator, found: Estimates, target: float, analyses: list[tuple[Inputs, EstimatorFit]]
) -> tuple[Resolved, ...]:
    result = []
    for quantity in QUANTITIES:
        logs, slopes = found.line(grid, quantity, target)
        intervals = _intervals(analyses, quantity, target) if found.name == DEFAULT else None
        for at, values in ((None, slopes), (target, np.exp(logs))):
            known = values[np.isfinite(values)]
            ends = np.quantile(known, [0.025, 0.5, 0.975]) if len(known) else [None] * 3
            truth = (
                true_exponent(grid, law, quantity, found.budgets)
                if at is None
                else float(true_optima(grid, law, np.array([target]), quantity)[0])
            )
            widths = np.empty(0) if intervals is None else intervals[0 if at is None else 1]
            lacking = float(np.mean(~np.isfinite(widths))) if len(widths) else None
            told = lacking is not None and lacking <= 0.5
            low, middle, high = (None if end is None else float(end) for end in ends)
            result.append(
                Resolved(
                    quantity=quantity,
                    at_flops=at,
                    true=truth,
                    median=middle,
                    low=low,
                    high=high,
                    interval=float(np.median(widths[np.isfinite(widths)])) if told else None,
                    without_estimate=1 - len(known) / len(values),
                    without_interval=lacking,
                )
            )
    return tuple(result)


def _intervals(
    analyses: list[tuple[Inputs, EstimatorFit]], quantity: Quantity, target: float
) -> tuple[Array, Array]:
    """Return the widths of the analysts' intervals of the exponent and of the log optimum at `target`."""
    exponents, optima = np.full((2, len(analyses)), np.nan)
    for k, (inputs, fit) in enumerate(analyses):
        law = fit.laws[quantity]
        if law.exponent_low is not None and law.exponent_high is not None:
            exponents[k] = law.exponent_high - law.exponent_low
            low, high = law.band(np.array([target]), inputs.config.confidence)
            optima[k] = np.log(high[0] / low[0])
    return exponents, optima


def _outlooks(
    grid: Grid,
    law: Generator,
    found: Estimates,
    losses: Array,
    analyses: list[tuple[Inputs, EstimatorFit]],
) -> tuple[Outlook, ...]:
    cells, result = grid.cells, []
    for k, flops in enumerate(cells.budgets_flops):
        swept = cells.swept("mean_recurrence", k)
        common: dict[str, Any] = {
            "budget_flops": float(flops),
            "runs": int((cells.budget == k).sum()),
            "swept_low": swept[0],
            "swept_high": swept[1],
            "true": law.optimum(grid.shape, float(flops)),
        }
        if k not in found.budgets:
            result.append(
                Outlook(
                    **common, low=None, high=None, below=0, above=0, without=1, power=None, power_known=None
                )
            )
            continue
        column = found.budgets.index(k)
        logs = found.log_optima["mean_recurrence"][:, column]
        within = found.inside["mean_recurrence"][:, column]
        middle = float(np.log(swept).mean())
        shown = np.quantile(np.where(np.isnan(logs), middle, logs), [0.025, 0.975], method="nearest")
        low, high = (float(np.exp(end)) if abs(end) < 100 else None for end in shown)
        power, known = _power(grid, k, within, found.loss_nats[:, column], losses, analyses)
        result.append(
            Outlook(
                **common,
                low=low,
                high=high,
                below=float(np.mean(~within & (logs < middle))),
                above=float(np.mean(~within & (logs >= middle))),
                without=float(np.mean(np.isnan(logs))),
                power=power,
                power_known=known,
            )
        )
    return tuple(result)


def _power(
    grid: Grid,
    budget: int,
    within: np.ndarray[Any, np.dtype[np.bool_]],
    minimum: Array,
    losses: Array,
    analyses: list[tuple[Inputs, EstimatorFit]],
) -> tuple[float | None, float | None]:
    """Return how often looped less fixed has an interval below zero, as given and were the noise known.

    The difference is that of all studies; how far an interval reaches above it is taken from the analyses,
    each reach with each difference. A study whose minimum is refused does not tell.
    """
    flops = float(grid.cells.budgets_flops[budget])
    control = ((grid.runs["kind"] == "fixed") & (grid.runs["target_flops"] == flops)).to_numpy()
    if not control.any():
        return None, None
    gap = minimum - losses[:, control].mean(1)
    known = float(np.mean(within & (gap + 1.96 * np.nanstd(gap[within]) < 0))) if within.any() else 0.0
    reaches = []
    for k, (inputs, fit) in enumerate(analyses):
        optimum = fit.optima["mean_recurrence"][budget]
        if inputs.floor.sd_nats is None or optimum.value is None or optimum.loss_nats is None:
            continue
        fixed = float(losses[k, control].mean())
        draws = (optimum.loss_draws, optimum.factor)
        pair = (optimum.loss_nats, fixed)
        told = of_minimum(pair, draws, int(control.sum()), inputs.floor, None, inputs.config, f"{flops}")
        if told.high_nats is not None:
            reaches.append(told.high_nats - told.nats)
    if not reaches:
        return (None, known) if analyses[0][0].floor.sd_nats is None else (0.0, known)
    below = gap[within][:, None] + np.array(reaches) < 0
    return float(below.sum() / len(reaches) / len(gap)), known
