"""The isoFLOP parabola: a quadratic of the loss in the log of the swept variable (Hoffmann et al. 2022,
approach 2).

It reproduces published numbers. Its minimum is biased where the swept values are not centred on the optimum
(arXiv 2603.22339), so it is only reported together with the other estimators.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from analysis.config import Array, Counts
from analysis.isoflop.curves import Optimum, Quantity, assess, refused_optimum, too_few_values
from analysis.isoflop.estimator import EstimatorFit, Inputs, not_fitted, power_laws
from analysis.stats.bootstrap import NoiseLevel


def fit_parabola(x: Array, losses: Array, weights: Counts | None = None) -> tuple[Array, Array]:
    """Fit one quadratic to every row of `losses` [..., points] over `x`.

    Parameters
    ----------
    x : log of the swept variable [points].
    weights : how often each point counts [..., points]. A row with fewer than three distinct points has no
        parabola (NaN).

    Returns
    -------
    Coefficients of (x - mean x)^2, (x - mean x) and 1 [..., 3], and residuals [..., points].
    """
    centred = x - x.mean()
    columns = np.stack([centred**2, centred, np.ones_like(centred)], axis=-1)
    if weights is not None:
        solved = np.einsum("...n,ni,nj->...ij", weights, columns, columns)
        target = np.einsum("...n,ni,...n->...i", weights, columns, losses)
        coefficients = np.einsum("...ij,...j->...i", np.linalg.pinv(solved, hermitian=True), target)
        coefficients[np.linalg.matrix_rank(solved, hermitian=True) < 3] = np.nan
        return coefficients, losses - coefficients @ columns.T
    coefficients = losses @ np.linalg.pinv(columns).T
    return coefficients, losses - coefficients @ columns.T


def minimum(x: Array, coefficients: Array) -> tuple[Array, Array]:
    """Return where each parabola has its minimum, in units of `x`, and its value there; NaN without one."""
    curvature, slope, level = np.moveaxis(coefficients, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.where(curvature > 0, -slope / (2 * curvature), np.nan)
    return x.mean() + offset, level + slope * offset / 2


def predict(x: Array, coefficients: Array, at: Array) -> Array:
    """Return one parabola's loss at `at`, given the `x` that it was fitted to."""
    return np.asarray(np.polyval(coefficients, at - x.mean()))


def fit_parabolas(inputs: Inputs) -> EstimatorFit:
    """Fit a quadratic per budget in the log of the swept variable, and another in log tokens."""
    cells, usable = inputs.cells, inputs.usable
    if not usable or inputs.no_curve:
        return not_fitted("parabola", inputs, inputs.no_curve)
    optima: dict[Quantity, tuple[Optimum, ...]] = {}
    fitted: dict[tuple[Quantity, int], tuple[Array, Array]] = {}
    resampled: dict[tuple[Quantity, int], Array] = {}
    squares = dict.fromkeys(cells.quantities, 0.0)
    for quantity in cells.quantities:
        for k in usable:
            x = np.log(cells.axis(quantity)[cells.budget == k])
            coefficients, residual = fit_parabola(x, cells.loss_nats[cells.budget == k])
            fitted[quantity, k] = x, coefficients
            squares[quantity] += float(residual @ residual)
    at = np.isin(cells.budget, usable)
    freedom = int(at.sum()) - 3 * len(usable)
    levels = {q: inputs.level(squares[q], freedom, cells.rows[at]) for q in cells.quantities}
    for quantity, level in levels.items():
        resampled |= {(quantity, k): _resampled(inputs, k, fitted[quantity, k], level) for k in usable}
        optima[quantity] = tuple(
            _optimum(inputs, quantity, k, fitted[quantity, k], resampled[quantity, k], level)
            if k in usable
            else refused_optimum(cells, quantity, k, too_few_values(cells, k) or "")
            for k in range(inputs.budgets)
        )

    return EstimatorFit(
        name="parabola",
        noise=levels[max(squares, key=squares.__getitem__)],  # the worse fit's
        optima=optima,
        laws=power_laws(inputs, optima, level),
        curve=partial(_curve, fitted),
        band=inputs.band(level, partial(_curves, fitted, resampled)),
    )


Parabolas = dict[tuple[Quantity, int], tuple[Array, Array]]  # x and coefficients, by quantity and budget


def _curve(fitted: Parabolas, quantity: Quantity, budget: int, values: Array) -> Array:
    return predict(*fitted[quantity, budget], np.log(values))


def _curves(
    fitted: Parabolas,
    resampled: dict[tuple[Quantity, int], Array],
    quantity: Quantity,
    budget: int,
    values: Array,
) -> Array:
    x, coefficients = fitted[quantity, budget][0], resampled[quantity, budget]
    return predict(x, coefficients.T[..., None], np.log(values))


def _resampled(inputs: Inputs, budget: int, fitted: tuple[Array, Array], level: NoiseLevel) -> Array:
    """Return the coefficients of every resample of one budget [resamples, 3]."""
    x, coefficients = fitted
    at = inputs.cells.budget == budget
    base, seen = predict(x, coefficients, x), inputs.cells.loss_nats[at]
    flops = inputs.cells.budgets_flops[inputs.cells.budget[at]]
    losses, weights = inputs.resamples(level, base, inputs.cells.rows[at], seen, flops)
    return fit_parabola(x, losses, weights)[0]


def _optimum(
    inputs: Inputs,
    quantity: Quantity,
    budget: int,
    fitted: tuple[Array, Array],
    resampled: Array,
    level: NoiseLevel,
) -> Optimum:
    x, coefficients = fitted
    place, value = minimum(x, coefficients)
    draws, losses = minimum(x, resampled)
    point = (float(place), float(value))
    spread = (draws, losses, inputs.draws.factor(level))
    return assess(inputs.cells, quantity, budget, point, spread, inputs.config)
