"""The parametric estimator: optima of the fitted surface under the FLOP function of the runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from scipy.special import ndtr

from analysis.config import MIN_SURFACE_RUNS, MIN_SURFACE_VALUES, Array
from analysis.format import plural
from analysis.isoflop.curves import Optimum, Quantity, interior_bounds
from analysis.isoflop.estimator import (
    EstimatorFit,
    Inputs,
    Minima,
    assess_minima,
    first_of,
    not_fitted,
    power_laws,
)
from analysis.isoflop.geometry import REACH, IsoflopPath, log_optimum, optimum_slopes
from analysis.laws.identification import Ends, identification
from analysis.laws.intervals import ProfileModel, profile_intervals
from analysis.laws.objective import evaluate, evaluation_bytes
from analysis.laws.surface import HIGH, LAW, LOW, PARAMETERS, Surface, fit_surface, refit
from analysis.stats.bootstrap import NoiseLevel
from analysis.stats.noise import ROUNDING


def fit_parametric(inputs: Inputs) -> EstimatorFit:
    """Fit the surface to every run, odd recurrences included, and return its optima at the budgets."""
    runs, count = inputs.runs, len(inputs.runs.rows)
    values = min(len(np.unique(runs.params)), len(np.unique(runs.tokens)))
    if count < MIN_SURFACE_RUNS:
        has = f"{plural(count, 'run')} for {len(PARAMETERS)} parameters"
        reason = f"{has}, at least {MIN_SURFACE_RUNS} are needed"
        return not_fitted("surface", inputs, reason)
    if values < MIN_SURFACE_VALUES:
        reason = f"{values} distinct sizes or token counts, at least {MIN_SURFACE_VALUES} are needed"
        return not_fitted("surface", inputs, reason)
    if np.ptp(runs.loss_nats) <= ROUNDING * runs.loss_nats.mean():
        return not_fitted("surface", inputs, "the losses of all runs are equal")
    u, v, losses = np.log(runs.params), np.log(runs.tokens), runs.loss_nats
    point = fit_surface(u, v, losses, inputs.config.huber_delta)
    base = point.losses(u, v)[0]
    squares = float(np.square(losses - base).sum())
    level = inputs.level(squares, count - len(PARAMETERS), runs.rows)
    drawn, weights = inputs.resamples(
        level, base, runs.rows, losses, inputs.shape.flops_of(runs.params, runs.tokens)
    )
    # The log loss is fitted: noise at a run far from the fit must not make a loss negative.
    resampled = refit(point, np.maximum(drawn, base / 10), weights)

    everywhere = list(range(inputs.budgets))
    path = inputs.path(everywhere)
    optima = assess_minima(inputs, everywhere, minima(path, point), minima(path, resampled), level)
    fitted = EstimatorFit(
        name="surface",
        noise=level,
        intervals="by profile",
        parameters={**point.coefficients(), "huber_objective": float(point.fit.objective[0])},
        notes=_notes(point),
        optima=optima,
        laws=power_laws(inputs, optima, level),
        curve=partial(first_of, partial(_curves, inputs, point)),
        band=inputs.band(level, partial(_curves, inputs, resampled)),
        across=partial(_across, inputs, level, point, resampled),
    )
    # A profile treats the errors of all runs as independent and of one size.
    unequal = not level.trend.is_constant or inputs.draws.independent < 1
    if not inputs.config.profiles or inputs.draws.weights is not None or unequal:
        return replace(fitted, intervals="by bootstrap")
    model = _profile_model(point, path, losses, level)
    return with_profiles(fitted, path.budgets_flops, model, inputs.config.confidence)


def _curves(inputs: Inputs, surface: Surface, quantity: Quantity, budget: int, values: Array) -> Array:
    """Return the fitted losses [resamples, values] at values of a quantity on one isoFLOP curve."""
    return surface.losses(*inputs.along(quantity, budget, values))


def _across(
    inputs: Inputs, level: NoiseLevel, point: Surface, resampled: Surface, values: Array, flops: Array
) -> tuple[Array, Array, Array]:
    """Return the loss with the ends of its interval at values of the swept variable and any budgets."""
    place = np.log(inputs.shape.params(values)), np.log(inputs.shape.tokens(values, flops))
    return point.losses(*place)[0], *inputs.ends(level, resampled.losses(*place))


def _profile_model(surface: Surface, path: IsoflopPath, losses: Array, level: NoiseLevel) -> ProfileModel:
    """Return what the profile needs of the fitted surface.

    For a Huber cost rho the deviance 2 (rho - rho_min) is in units of E psi^2 / E psi', here for normal
    errors at the noise level.
    """
    means = (surface.log_params_mean, surface.log_tokens_mean)

    def optima(theta: Array) -> tuple[Array, Array]:
        a, b, alpha, beta = (theta[:, i, None] for i in range(1, 5))
        amplitudes = np.stack([np.ones_like(a), alpha * np.exp(a), beta * np.exp(b)], -1)
        s = log_optimum(path, theta[:, 3:], amplitudes, means)
        s = np.clip(s, path.middle - REACH, path.middle + REACH)
        more, in_a, in_b = optimum_slopes(path, s, theta[:, 3:], means)
        # p = alpha e^a and r = beta e^b, so both exponents also act through the amplitudes.
        slopes = np.stack([0 * more, more, -more, in_a + more / alpha, in_b - more / beta], -1)
        tokens = -slopes * path.at(s)[3][..., None]
        return np.concatenate([s, path.log_tokens(s)], 1), np.concatenate([slopes, tokens], 1)

    noise = level.sd_nats / surface.predict()
    jacobian = surface.jacobian() / noise[:, None]
    cut = np.minimum(surface.objective.delta / noise, 40.0)
    within, density = 2 * ndtr(cut) - 1, np.exp(-(cut**2) / 2) / np.sqrt(2 * np.pi)
    square = noise**2 * (within - 2 * cut * density + cut**2 * (1 - within))
    return ProfileModel(
        evaluate=lambda rows, theta: evaluate(
            surface.objective, np.broadcast_to(losses, (len(theta), len(losses))), np.ones((1, 1)), theta
        ),
        row_bytes=evaluation_bytes(surface.objective, surface.fit.parameters[:1]),
        bounds=(LOW, HIGH),
        best=surface.fit.parameters[0],
        value=float(surface.fit.objective[0]),
        unit=float(square.sum() / within.sum()),
        covariance=np.asarray(np.linalg.pinv(jacobian.T @ jacobian, hermitian=True), dtype=np.float64),
        freedom=level.degrees_of_freedom,
        optima=optima,
    )


def minima(path: IsoflopPath, surface: Surface) -> Minima:
    """Return the log of the optimum and the loss there in nats, both [resamples, budgets]."""
    means = (surface.log_params_mean, surface.log_tokens_mean)
    s = log_optimum(path, surface.exponents(), surface.amplitudes(), means)
    at = np.where(np.isfinite(s), s, path.middle)
    u, v = path.log_params(at) - means[0], path.log_tokens(at) - means[1]
    parameters = {name: each[:, None] for name, each in LAW.public(surface.fit.parameters).items()}
    return s, LAW.loss({"params": np.exp(u), "tokens": np.exp(v)}, **parameters)


def _notes(point: Surface) -> tuple[str, ...]:
    """Return the certificate of the fit and what the runs do not determine.

    The fit is centred, which changes the amplitudes only: floor and exponents trade off as in the law itself.
    """
    fit = point.fit
    certificate = (
        f"{point.starts_agreeing} of {point.starts} starts reach the optimum, "
        f"gradient {fit.gradient[0]:.1e}, least curvature {fit.curvature[0]:.1e}"
    )
    return certificate, *identification(LAW, point.objective.terms, fit, {}).phrases


def with_profiles(
    fitted: EstimatorFit, budgets_flops: Array, model: ProfileModel, confidence: float
) -> EstimatorFit:
    """Return the fit with profile intervals of accepted laws and optima in place of the bootstrap's.

    Which budgets have their optimum inside the grid is itself uncertain. The interval of an exponent
    therefore spans that of the slope over the accepted budgets and that over all budgets whose optimum may
    lie inside.
    """
    budgets = len(budgets_flops)
    units = {q: np.eye(2 * budgets)[k * budgets :][:budgets] for k, q in enumerate(fitted.optima)}
    ends = profile_intervals(model, np.concatenate(list(units.values())), confidence)
    places = {q: ends[k * budgets :][:budgets] for k, q in enumerate(fitted.optima)}
    sets = {
        q: _budget_sets(fitted.optima[q], places[q])
        for q, law in fitted.laws.items()
        if law.exponent is not None
    }
    slopes = [(q, used) for q, choices in sets.items() for used in choices]
    rows = [row for q, used in slopes for row in _line(budgets_flops, used) @ units[q]]
    ends = profile_intervals(model, np.array(rows), confidence) if rows else []
    lines = dict(zip(slopes, zip(ends[::2], ends[1::2], strict=True), strict=True))
    laws = dict(fitted.laws)
    for quantity, choices in sets.items():
        slope = _hull([lines[quantity, used][0] for used in choices])
        level = [_exp(end) for end in lines[quantity, choices[0]][1]]
        laws[quantity] = replace(
            laws[quantity],
            exponent_low=slope[0],
            exponent_high=slope[1],
            coefficient_low=level[0],
            coefficient_high=level[1],
        )
    optima = {
        quantity: tuple(
            optimum if optimum.refusal else replace(optimum, low=_exp(low), high=_exp(high))
            for optimum, (low, high) in zip(fitted.optima[quantity], places[quantity], strict=True)
        )
        for quantity in fitted.optima
    }
    return replace(fitted, optima=optima, laws=laws)


def _budget_sets(optima: tuple[Optimum, ...], ends: list[Ends]) -> list[tuple[int, ...]]:
    """Return the accepted budgets and, where they are others, those whose optimum may lie inside the grid."""
    accepted = tuple(k for k, optimum in enumerate(optima) if optimum.value is not None)
    possible = []
    for k, (optimum, (low, high)) in enumerate(zip(optima, ends, strict=True)):
        first, last = interior_bounds(optimum.swept)
        if k in accepted or (
            optimum.fitted and (low is None or low < last) and (high is None or high > first)
        ):
            possible.append(k)
    return [accepted] if tuple(possible) == accepted else [accepted, tuple(possible)]


def _line(budgets_flops: Array, used: tuple[int, ...]) -> Array:
    """Return the weights of the least-squares slope and of the mean over some budgets [2, budgets]."""
    at = np.isin(np.arange(len(budgets_flops)), used)
    x = np.where(at, np.log(budgets_flops) - np.log(budgets_flops[at]).mean(), 0.0)
    return np.stack([x / (x @ x), at / at.sum()])


def _hull(ends: list[Ends]) -> Ends:
    lows, highs = ([pair[side] for pair in ends] for side in (0, 1))
    low = None if None in lows else min(end for end in lows if end is not None)
    return low, None if None in highs else max(end for end in highs if end is not None)


def _exp(end: float | None) -> float | None:
    return None if end is None else float(np.exp(end))
