"""The shared-shape estimator: isoFLOP curves E_C + P_C N(mu)^-a + R_C D^-b, one (a, b) for all budgets.

Amplitudes are free at every budget, so no law across budgets is assumed. The form is that of the loss itself,
so there is no parabola bias. N and D are those of each run; the minimum is that on the continuous isoFLOP
curve.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from analysis.config import Array
from analysis.format import plural
from analysis.isoflop.curves import Quantity
from analysis.isoflop.estimator import (
    EstimatorFit,
    Inputs,
    Minima,
    assess_minima,
    first_of,
    not_fitted,
    power_laws,
)
from analysis.isoflop.geometry import IsoflopPath, log_optimum
from analysis.laws.variable_projection import BOX, SharedShape, fit_shared_shape


def fit_shared(inputs: Inputs) -> EstimatorFit:
    """Fit one curve shape to all budgets of a group, with free amplitudes per budget."""
    cells, usable = inputs.cells, inputs.usable
    at = np.isin(cells.budget, usable)
    freedom = int(at.sum()) - 3 * len(usable) - 2
    if not usable or inputs.no_curve:
        return not_fitted("shared shape", inputs, inputs.no_curve)
    if freedom < 1:
        return not_fitted(
            "shared shape", inputs, f"{plural(int(at.sum()), 'run')} for {3 * len(usable) + 2} parameters"
        )
    index = np.searchsorted(usable, cells.budget[at])
    u, v = np.log(cells.params[at]), np.log(cells.tokens[at])
    point = fit_shared_shape(u, v, cells.loss_nats[at][None], index)
    level = inputs.level(float(point.squared_error[0]), freedom, cells.rows[at])
    base = np.zeros(len(index))
    for k in range(len(usable)):
        base[index == k] = point.losses(k, u[index == k], v[index == k])[0]
    flops = cells.budgets_flops[cells.budget[at]]
    losses, weights = inputs.resamples(level, base, cells.rows[at], cells.loss_nats[at], flops)
    resampled = fit_shared_shape(u, v, losses, index, start=point.exponents[0], weights=weights)
    path = inputs.path(usable)
    optima = assess_minima(inputs, usable, minima(path, point), minima(path, resampled), level)
    a, b = (float(value) for value in point.exponents[0])
    return EstimatorFit(
        name="shared shape",
        noise=level,
        parameters={"a": a, "b": b},
        notes=_notes(a, b),
        optima=optima,
        laws=power_laws(inputs, optima, level),
        curve=partial(first_of, partial(_curves, inputs, point)),
        band=inputs.band(level, partial(_curves, inputs, resampled)),
    )


def _curves(inputs: Inputs, fitted: SharedShape, quantity: Quantity, budget: int, values: Array) -> Array:
    """Return the fitted losses [resamples, values] at values of a quantity on one isoFLOP curve."""
    return fitted.losses(inputs.usable.index(budget), *inputs.along(quantity, budget, values))


def _notes(a: float, b: float) -> tuple[str, ...]:
    """Return a note per exponent at an edge of its range."""
    low, high = BOX
    return tuple(
        f"{name} = {value:g} lies at an edge of its range, {low:g} to {high:g}: the curves do not determine "
        "it, and optima and intervals are those of shapes within the range"
        for name, value in (("a", a), ("b", b))
        if value in BOX
    )


def minima(path: IsoflopPath, fit: SharedShape) -> Minima:
    """Return the log of the optimum and the loss there in nats, both [resamples, budgets]."""
    means = (fit.log_params_mean, fit.log_tokens_mean)
    s = log_optimum(path, fit.exponents, fit.amplitudes, means)
    at = np.where(np.isfinite(s), s, path.middle)
    u, v = path.log_params(at) - means[0], path.log_tokens(at) - means[1]
    a, b = fit.exponents[:, 0, None], fit.exponents[:, 1, None]
    level, p, r = np.moveaxis(fit.amplitudes, -1, 0)
    return s, level + p * np.expm1(-a * u) / a + r * np.expm1(-b * v) / b
