"""The objective of laws that are sums of exponential terms, for all resamples in one array.

L = sum over terms of exp(theta . phi_term(x)) covers the Chinchilla surface, the saturating exponential and
the unified law: the log of every term is linear in the parameters. Both derivatives are exact, so damped
Newton steps converge to the optimum up to rounding, and gradient and curvature certify it. A law whose log
terms are not linear in a parameter supplies their values and slopes instead. Its Hessian omits the curvature
of those log terms; its gradient, and with it the optimum, is still exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import chdtr, chdtrc

from analysis.config import Array, Counts, Indices
from analysis.laws.newton import AGREEMENT, EXACT, Evaluation, Fit, descend, polish

RESAMPLE_ITERATIONS = 120  # an identified surface takes 60; along a flat direction it does not converge
RESAMPLE_TOLERANCE = 1e-11  # far below the scatter of resamples
PUBLISHED_DELTA = 1e-3  # Huber delta on the log loss of Hoffmann et al. 2022
TUNING = 1.345  # delta over the scatter: 95 % efficiency for normal noise (Huber 1964)
NOISE_FREE = 1e-9  # scatter of log losses below which data count as exact
SCALE_STEPS, SCALE_TOLERANCE = 60, 1e-10


# Features [terms, points, parameters], or parameters [rows, parameters] -> log terms [rows, terms, points]
# and their slopes [rows, terms, points, parameters].
Terms = Array | Callable[[Array], tuple[Array, Array]]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The sum over points of weight x Huber(residual); delta = inf is half the squared error."""

    terms: Terms
    delta: float = 1e-3
    log_loss: bool = True  # residual of the log loss; otherwise of the loss itself

    @cached_property
    def products(self) -> list[tuple[Indices, Indices, Array]]:
        """Return, for every term, indices i <= j of its parameters and slope_i x slope_j [pairs, points].

        Only for constant slopes. A term depends on few of the law's parameters; the others are left out.
        """
        assert not callable(self.terms)
        products = []
        for slopes in self.terms:
            own = np.flatnonzero(slopes.any(0))
            i, j = (own[side] for side in np.triu_indices(len(own)))
            products.append((i, j, np.ascontiguousarray((slopes[:, i] * slopes[:, j]).T)))
        return products


def log_terms(terms: Terms, parameters: Array) -> tuple[Array, Array]:
    """Return log terms [rows, terms, points] and their slopes in the parameters.

    Constant slopes are [terms, points, parameters], others [rows, terms, points, parameters].
    """
    if callable(terms):
        return terms(parameters)
    shape, count = terms.shape[:2], terms.shape[2]
    # A single row would be multiplied by other code than several, and end in other bits.
    rows = np.repeat(parameters, 2, 0) if len(parameters) == 1 else parameters
    logs = rows @ terms.reshape(-1, count).T
    return logs[: len(parameters)].reshape(len(parameters), *shape), terms


def predict(terms: Terms, parameters: Array) -> Array:
    """Return the law's loss [rows, points]."""
    return np.asarray(np.exp(log_terms(terms, parameters)[0]).sum(1))


def minimise(
    objective: Objective,
    losses: Array,
    start: Array,
    bounds: tuple[Array, Array],
    *,
    weights: Counts | None = None,
    iterations: int = 300,
    tolerance: float = 1e-16,
) -> Fit:
    """Minimise the objective for every row of `losses`.

    Parameters
    ----------
    losses : [rows, points] in nats.
    start : [rows or 1, parameters].
    weights : [rows, points], how often a bootstrap draws each point; 1 by default.
    """
    counts = np.broadcast_to(np.ones(losses.shape[1]) if weights is None else weights, losses.shape)

    def at(rows: Any, theta: Array) -> Evaluation:
        return evaluate(objective, losses[rows], counts[rows], theta)

    first = np.broadcast_to(start, (len(losses), start.shape[-1]))
    row_bytes = evaluation_bytes(objective, first[:1])
    return descend(at, first, bounds, row_bytes=row_bytes, iterations=iterations, tolerance=tolerance)


def best_fit(objective: Objective, losses: Array, tried: Fit, bounds: tuple[Array, Array]) -> Fit:
    """Return the best of the fits to `losses` [points], to the last digits."""
    counts = np.ones((1, len(losses)))
    return polish(
        lambda rows, theta: evaluate(objective, losses[None], counts, theta), tried.row(tried.best), bounds
    )


def minimise_resamples(
    objective: Objective, losses: Array, start: Array, bounds: tuple[Array, Array], weights: Counts | None
) -> Fit:
    """Minimise for resampled `losses` or `weights`, both [resamples, points], from one start [parameters]."""
    return minimise(
        objective,
        losses,
        start[None],
        bounds,
        weights=weights,
        iterations=RESAMPLE_ITERATIONS,
        tolerance=RESAMPLE_TOLERANCE,
    )


def residuals(objective: Objective, losses: Array, theta: Array) -> Array:
    """Return the residuals of one fit [points]: of the log loss, or of the loss."""
    logs = log_terms(objective.terms, theta[None])[0][0]
    prediction = np.logaddexp.reduce(logs, 0)
    return np.asarray(
        prediction - np.log(losses) if objective.log_loss else np.exp(prediction) - losses, dtype=np.float64
    )


def noise_scale(residual: Array, parameters: int) -> float:
    """Return Huber's proposal 2 for the standard deviation behind the residuals [points] of a fit.

    Notes
    -----
    The scale s solves sum of min(r / s, c)^2 = (points - parameters) E min(z, c)^2 with z standard normal
    (Huber 1964): outliers count as c each.
    """
    share = TUNING**2 * chdtrc(1, TUNING**2) + chdtr(3, TUNING**2)
    wanted = max(len(residual) - parameters, 1) * share
    square = float(residual @ residual) / wanted
    for _ in range(200):
        capped = float(np.minimum(residual**2, TUNING**2 * square).sum()) / wanted
        if capped >= square * (1 - 1e-14):
            break
        square = capped
    return float(np.sqrt(square))


def minimise_scaled(
    terms: Terms, losses: Array, starts: Array, bounds: tuple[Array, Array], log_loss: bool = True
) -> tuple[Objective, Fit]:
    """Minimise with a Huber delta in units of the residuals' scatter, from squared error down.

    The scatter is that of the optimum itself: fit and scale are updated in turn until both are still.

    Returns
    -------
    The objective with its delta, and the fits of all `starts` [starts, parameters] to `losses` [points].
    """
    many = np.repeat(losses[None], len(starts), 0)
    objective = Objective(terms=terms, delta=np.inf, log_loss=log_loss)
    tried = minimise(objective, many, starts, bounds)
    theta = tried.parameters[tried.best]
    least = NOISE_FREE * (1.0 if log_loss else float(np.abs(losses).mean()))
    scale = np.inf
    for _ in range(SCALE_STEPS):
        before, scale = scale, noise_scale(residuals(objective, losses, theta), theta.size)
        scale = max(scale, least)
        objective = replace(objective, delta=TUNING * scale)
        theta = minimise(
            objective, losses[None], theta[None], bounds, iterations=60, tolerance=1e-13
        ).parameters[0]
        if scale == least or abs(before - scale) <= SCALE_TOLERANCE * scale:
            break
    starts = tried.parameters.copy()
    starts[tried.objective <= tried.objective.min() * (1 + AGREEMENT) + EXACT] = theta
    return objective, minimise(objective, many, starts, bounds)


def evaluation_bytes(objective: Objective, parameters: Array) -> int:
    """Return about how much memory `evaluate` needs per row of losses; `parameters` [1, parameters]."""
    logs, slopes = log_terms(objective.terms, parameters)
    points = 14 + 3 * logs.shape[1] + 2 * parameters.shape[1]  # arrays of one number per point
    return 8 * (points * logs.shape[2] + (3 * slopes.size if slopes.ndim == 4 else 0))


def evaluate(objective: Objective, losses: Array, weights: Array, theta: Array) -> Evaluation:
    """Return value [rows], gradient [rows, parameters] and Hessian [rows, parameters, parameters]."""
    logs, slopes = log_terms(objective.terms, theta)
    top = logs.max(1, keepdims=True)
    share = np.exp(logs - top)
    total = share.sum(1, keepdims=True)
    share /= total
    log_prediction = (top + np.log(total))[:, 0]
    if slopes.ndim == 3:
        mean = np.matmul(share.transpose(2, 0, 1), slopes.transpose(1, 0, 2)).transpose(1, 0, 2)
    else:
        mean = np.einsum("btn,btnp->bnp", share, slopes)
    if objective.log_loss:
        residual = log_prediction - np.log(losses)
    else:
        prediction = np.exp(log_prediction)
        residual = prediction - losses
    size = np.abs(residual)
    inside = np.where(size <= objective.delta, weights, 0.0)
    if logs.shape[1] == 1 and objective.log_loss:
        # The log of one term has no curvature of its own. That of the majorising parabola keeps the descent
        # going where most residuals lie on the linear part of the cost.
        majorising = weights * np.minimum(1.0, objective.delta / np.maximum(size, 1e-300))
        few = inside.sum(1, keepdims=True) < weights.sum(1, keepdims=True) / 2
        inside = np.where(few, majorising, inside)
    psi = np.clip(residual, -objective.delta, objective.delta) * weights
    capped = np.minimum(size, objective.delta)
    value = (weights * (capped * (size - capped / 2))).sum(1)
    # The second derivative of the loss is L sum_j s_j phi phi', with s_j the share of a term and phi its
    # slopes. That of the log loss is the sum less g g', with g the gradient of the log loss.
    if objective.log_loss:
        pull, factor = psi, inside - psi
    else:
        pull, factor = psi * prediction, inside * prediction**2
    gradient = np.matmul(pull[:, None, :], mean)[:, 0]
    spread = _spread(objective, pull[:, None, :] * share, slopes)
    hessian = spread + np.matmul(mean.transpose(0, 2, 1), mean * factor[..., None])
    return value, gradient, hessian


def _spread(objective: Objective, weight: Array, slopes: Array) -> Array:
    """Return the sum of weight x slope slope' over terms and points [rows, parameters, parameters].

    `slopes` as `log_terms` returns them.
    """
    count = slopes.shape[-1]
    if slopes.ndim == 4:
        each = slopes.reshape(len(slopes), -1, count)
        return np.asarray(np.matmul((each * weight.reshape(len(weight), -1, 1)).transpose(0, 2, 1), each))
    upper = np.zeros((len(weight), count, count))
    for term, (i, j, products) in enumerate(objective.products):
        # Not by BLAS, which sums in an order that depends on the number of rows.
        upper[:, i, j] += np.einsum("bn,pn->bp", weight[:, term], products)
    for row in range(1, count):
        upper[:, row, :row] = upper[:, :row, row]
    return upper
