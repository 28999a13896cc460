"""The parametric estimator: the fitted surface's optima under the FLOP function of the runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from analysis.estimator import EstimatorFit, Inputs, Minima, laws, nothing, optima_along
from analysis.frontier import Path, optimum
from analysis.isoflop import Quantity
from analysis.profile import Optima, profile_intervals
from analysis.resample import NoiseLevel
from analysis.surface import PARAMETERS, Surface, fit_surface, refit

Array = np.ndarray[Any, np.dtype[np.float64]]
SPARE_RUNS = 3  # runs beyond its five parameters that the surface needs


def fit_parametric(inputs: Inputs) -> EstimatorFit:
    """Fit the surface to every run, odd recurrences included, and read its optima at the budgets."""
    runs, needed = inputs.runs, len(PARAMETERS) + SPARE_RUNS
    count = len(runs.rows)
    if count < needed or min(len(np.unique(runs.params)), len(np.unique(runs.tokens))) < 3:
        reason = f"{count} runs for {len(PARAMETERS)} parameters, at least {needed} are needed"
        return nothing("surface", inputs, reason)
    u, v, losses = np.log(runs.params), np.log(runs.tokens), runs.loss_nats
    point = fit_surface(u, v, losses, inputs.config.huber_delta)
    base = point.loss(u, v)
    level = inputs.level(float(np.square(losses - base).sum()), count - len(PARAMETERS))
    resampled = refit(point, base + inputs.draws.noise(level, runs.rows))

    def curve(quantity: Quantity, budget: int, values: Array) -> Array:
        return point.loss(*inputs.along(quantity, budget, values))

    everywhere = list(range(inputs.budgets))
    path = inputs.path(everywhere)
    optima = optima_along(inputs, everywhere, minima(path, point), minima(path, resampled))
    fitted = EstimatorFit(
        name="surface",
        noise=level,
        parameters={**point.coefficients(), "huber_objective": float(point.fit.objective[0])},
        notes=_notes(point),
        optima=optima,
        laws=laws(optima, inputs.config),
        curve=curve,
    )
    return _with_profiles(fitted, Optima(surface=point, path=path), losses, level, inputs.config.confidence)


def _with_profiles(
    fitted: EstimatorFit, optima: Optima, losses: Array, level: NoiseLevel, confidence: float
) -> EstimatorFit:
    """Replace the bootstrap's intervals of accepted optima and laws by profile intervals."""
    budgets = len(optima.path.budgets_flops)
    rows: list[Array] = []
    places: list[tuple[str, Quantity, int]] = []
    for offset, quantity in zip((0, budgets), fitted.optima, strict=True):
        unit = np.eye(2 * budgets)[offset : offset + budgets]
        for k, found in enumerate(fitted.optima[quantity]):
            if found.refusal is None:
                rows.append(unit[k])
                places.append(("optimum", quantity, k))
        law = fitted.laws[quantity]
        if law.exponent is not None and law.reference_flops is not None:
            used = np.isin(optima.path.budgets_flops, law.budgets_flops)
            x = np.where(used, np.log(optima.path.budgets_flops / law.reference_flops), 0.0)
            rows += [x / (x @ x) @ unit, used / used.sum() @ unit]
            places += [("exponent", quantity, 0), ("level", quantity, 0)]
    if not rows:
        return fitted
    found_optima = {quantity: list(items) for quantity, items in fitted.optima.items()}
    found_laws = dict(fitted.laws)
    ends = profile_intervals(optima, losses, np.array(rows), level, confidence)
    for (kind, quantity, k), (low, high) in zip(places, ends, strict=True):
        raised = [None if end is None else float(np.exp(end)) for end in (low, high)]
        if kind == "optimum":
            found_optima[quantity][k] = replace(found_optima[quantity][k], low=raised[0], high=raised[1])
        elif kind == "exponent":
            found_laws[quantity] = replace(found_laws[quantity], exponent_low=low, exponent_high=high)
        else:
            found_laws[quantity] = replace(
                found_laws[quantity], coefficient_low=raised[0], coefficient_high=raised[1]
            )
    return replace(
        fitted, optima={quantity: tuple(items) for quantity, items in found_optima.items()}, laws=found_laws
    )


def minima(path: Path, surface: Surface) -> Minima:
    """Return log recurrence of the optimum and the loss there, both [resamples, budgets]."""
    means = (surface.log_params_mean, surface.log_tokens_mean)
    s = optimum(path, surface.exponents(), surface.amplitudes(), means)
    at = np.where(np.isfinite(s), s, path.middle)
    u, v = path.log_params(at) - means[0], path.log_tokens(at) - means[1]
    e, a, b, alpha, beta = (surface.fit.parameters[:, i, None] for i in range(len(PARAMETERS)))
    return s, np.exp(e) + np.exp(a - alpha * u) + np.exp(b - beta * v)


def _notes(point: Surface) -> tuple[str, ...]:
    starts = f"{point.starts_agreeing} of {point.starts} starts reach the optimum"
    bound = [name for name, held in zip(PARAMETERS, point.fit.at_bound[0], strict=True) if held]
    if not bound:
        return (starts,)
    return starts, f"{', '.join(bound)} at a bound: not identified by these runs"
