"""Many studies of a grid simulated, some of them analysed as `fit` does, and what they resolve."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.compare.loss_difference import FittedMinimum, difference_of_minimum
from analysis.config import Array, FitConfig, Progress
from analysis.design.ground_truth import GroundTruth
from analysis.design.power import DesignConfig, EstimatePrecision, Outlook, PowerAnalysis
from analysis.design.simulate import QUANTITIES, Estimates, Grid, Noise, estimate
from analysis.isoflop.curves import Quantity, is_interior
from analysis.isoflop.estimator import DEFAULT_ESTIMATOR, EstimatorFit, Inputs
from analysis.isoflop.geometry import MIN_BUDGETS
from analysis.isoflop.shared_shape import fit_shared

Analysis = tuple[Inputs, EstimatorFit]
MOST = 0.5  # past this share of analyses without an interval there is no typical one
BATCH = 250  # studies fitted at once between two steps of the progress bar


def analyse_power(
    grid: Grid,
    law: GroundTruth,
    noise: Noise,
    config: DesignConfig,
    progress: Progress = lambda stage, done: None,
) -> PowerAnalysis:
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
    estimates = [joined([part[k] for part in parts]) for k in range(len(parts[0]))]
    analyses = _analyses(grid, losses[: config.analysts], noise.shared, config, progress)
    target = config.target_flops or 4 * float(grid.cells.budgets_flops.max())
    default = next(item for item in estimates if item.name == DEFAULT_ESTIMATOR)
    outlooks = _outlooks(grid, law, default, losses, analyses)
    runs = grid.runs
    within = default.inside["mean_recurrence"]
    return PowerAnalysis(
        law=law.name,
        noise=noise,
        config=config,
        runs=len(grid.looped),
        controls=int((runs["kind"] == "fixed").sum()),
        nominal_flops=float(runs["nominal_flops"].sum()),
        replicates=analyses[0][0].floor.degrees_of_freedom,
        resolved={item.name: _resolved(grid, law, item, target, analyses) for item in estimates},
        outlooks=outlooks,
        all_inside=float(within.all(1).mean()) if len(default.budgets) == len(outlooks) else 0.0,
        estimates=default.line(grid, "mean_recurrence", target)[1],
        grid=grid,
    )


def _analyses(
    grid: Grid, losses: Array, shared: float, config: DesignConfig, progress: Progress
) -> list[Analysis]:
    """Return what an analyst of each study [studies, runs] is given by the default estimator.

    The analyst knows how much of the noise's variance is common to the runs of a trunk.
    """
    analyses = []
    for k, ended in enumerate(losses):
        progress("analyses with intervals", k / len(losses))
        settings = FitConfig(
            bootstrap=config.bootstrap, seed=config.seed + k, validation=False, shared_noise=shared
        )
        inputs = grid.inputs(ended, settings, f"study {k}")
        analyses.append((inputs, fit_shared(inputs)))
    progress("analyses with intervals", 1.0)
    return analyses


def expected_losses(grid: Grid, law: GroundTruth, margin_nats: float) -> Array:
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


def true_optima(grid: Grid, law: GroundTruth, flops: Array, quantity: Quantity) -> Array:
    """Return the law's compute-optimal recurrence or tokens at each budget."""
    depth = np.array([law.optimum(grid.shape, float(c)) for c in flops])
    return depth if quantity == "mean_recurrence" else grid.shape.tokens(depth, flops)


def true_exponent(grid: Grid, law: GroundTruth, quantity: Quantity, budgets: list[int]) -> float | None:
    """Return the slope of the true optima over the budgets where they lie inside the grid."""
    flops = grid.cells.budgets_flops[budgets]
    logs = np.log(true_optima(grid, law, flops, quantity))
    kept = np.array(
        [is_interior(logs[i : i + 1], grid.cells.swept(quantity, k))[0] for i, k in enumerate(budgets)]
    )
    if kept.sum() < MIN_BUDGETS:
        return None
    return float(np.polyfit(np.log(flops[kept]), logs[kept], 1)[0])


def _resolved(
    grid: Grid, law: GroundTruth, estimates: Estimates, target: float, analyses: list[Analysis]
) -> tuple[EstimatePrecision, ...]:
    result = []
    for quantity in QUANTITIES:
        logs, slopes = estimates.line(grid, quantity, target)
        widths = (
            _intervals(analyses, quantity, target) if estimates.name == DEFAULT_ESTIMATOR else (None, None)
        )
        exponent = true_exponent(grid, law, quantity, estimates.budgets)
        optimum = float(true_optima(grid, law, np.array([target]), quantity)[0])
        result.append(_summarised(quantity, None, exponent, slopes, widths[0]))
        result.append(_summarised(quantity, target, optimum, np.exp(logs), widths[1]))
    return tuple(result)


def _summarised(
    quantity: Quantity, at_flops: float | None, true: float | None, values: Array, widths: Array | None
) -> EstimatePrecision:
    """Summarise estimates [studies] and the widths of intervals [analyses], NaN where there is none."""
    known = values[np.isfinite(values)]
    ends = [float(end) for end in np.quantile(known, [0.025, 0.5, 0.975])] if len(known) else [None] * 3
    lacking = None if widths is None else float(np.mean(~np.isfinite(widths)))
    typical = widths is not None and lacking is not None and lacking <= MOST
    return EstimatePrecision(
        quantity=quantity,
        at_flops=at_flops,
        true=true,
        low=ends[0],
        median=ends[1],
        high=ends[2],
        interval=float(np.nanmedian(widths)) if typical and widths is not None else None,
        without_estimate=1 - len(known) / len(values),
        without_interval=lacking,
    )


def _intervals(analyses: list[Analysis], quantity: Quantity, target: float) -> tuple[Array, Array]:
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
    law: GroundTruth,
    estimates: Estimates,
    losses: Array,
    analyses: list[Analysis],
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
        if k not in estimates.budgets:
            result.append(
                Outlook(
                    **common, low=None, high=None, below=0, above=0, without=1, power=None, power_known=None
                )
            )
            continue
        column = estimates.budgets.index(k)
        logs = estimates.log_optima["mean_recurrence"][:, column]
        within = estimates.inside["mean_recurrence"][:, column]
        middle = float(np.log(swept).mean())
        shown = np.quantile(np.where(np.isnan(logs), middle, logs), [0.025, 0.975], method="nearest")
        low, high = (float(np.exp(end)) if abs(end) < 100 else None for end in shown)
        power, known = _power(grid, k, within, estimates.loss_nats[:, column], losses, analyses)
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
    analyses: list[Analysis],
) -> tuple[float | None, float | None]:
    """Return how often looped less fixed has an interval below zero, as given and with known noise.

    The difference is that of all studies; how far an interval reaches above it is taken from the analyses,
    each reach with each difference. A study whose minimum is refused resolves nothing.
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
        minimum_draws = FittedMinimum(loss_draws=optimum.loss_draws, factor=optimum.factor)
        losses_of_pair, seeds = (optimum.loss_nats, fixed), int(control.sum())
        difference = difference_of_minimum(
            losses_of_pair, minimum_draws, seeds, inputs.floor, None, inputs.config, f"{flops}"
        )
        if difference.high_nats is not None:
            reaches.append(difference.high_nats - difference.nats)
    if not reaches:
        return (None, known) if analyses[0][0].floor.sd_nats is None else (0.0, known)
    below = gap[within][:, None] + np.array(reaches) < 0
    return float(below.sum() / len(reaches) / len(gap)), known
