"""Fit laws that are sums of exponential terms, all resamples in one array.

L = sum over terms of exp(theta . phi_term(x)) covers the Chinchilla surface, the saturating exponential,
the unified law and their rivals: the log of every term is linear in the parameters. Both derivatives are
then exact, so a damped Newton iteration converges to the optimum to rounding, and the gradient and
curvature there certify it. A law whose log terms bend in a parameter gives their values and slopes
instead; its Hessian leaves their own curvature out, its gradient and so its optimum are still exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

# Features [terms, points, parameters], or parameters [rows, parameters] -> log terms [rows, terms, points]
# and their slopes [rows, terms, points, parameters].
Terms = Array | Callable[[Array], tuple[Array, Array]]
# (parameters [rows, parameters], indices of the rows) -> value, gradient and Hessian to add
Penalty = Callable[[Array, Any], tuple[Array, Array, Array]]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Sum over points of weight x Huber(residual); delta = inf is half the squared error."""

    terms: Terms
    delta: float = 1e-3
    log_loss: bool = True  # residual of the log loss; otherwise of the loss itself


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Parameters [resamples, parameters], objective, scaled gradient and least curvature [resamples]."""

    parameters: Array = field(repr=False)
    objective: Array
    gradient: Array
    curvature: Array
    at_bound: np.ndarray[Any, np.dtype[np.bool_]]  # [resamples, parameters]


def log_terms(terms: Terms, parameters: Array) -> tuple[Array, Array]:
    """Return log terms [rows, terms, points] and slopes, [terms, points, parameters] where they are
    constant.
    """
    if callable(terms):
        return terms(parameters)
    shape, count = terms.shape[:2], terms.shape[2]
    return (parameters @ terms.reshape(-1, count).T).reshape(len(parameters), *shape), terms


def predict(terms: Terms, parameters: Array) -> Array:
    """Return the law's loss [rows, points]."""
    return np.asarray(np.exp(log_terms(terms, parameters)[0]).sum(1))


def minimise(
    objective: Objective,
    losses: Array,
    start: Array,
    bounds: tuple[Array, Array],
    *,
    weights: Array | None = None,
    penalty: Penalty | None = None,
    iterations: int = 300,
    tolerance: float = 1e-16,
) -> Fit:
    """Minimise for every row of `losses` [resamples, points] from `start` [resamples, parameters].

    `weights` [resamples, points] are the counts of a pairs or block bootstrap; a `penalty` is added to the
    objective of each row. A row ends when a step gains less than `tolerance` of its objective.
    """

    def evaluate(rows: Any, at: Array) -> tuple[Array, Array, Array]:
        found = _evaluate(objective, losses[rows], counts[rows], at)
        if penalty is None:
            return found
        added = penalty(at, rows)
        return found[0] + added[0], found[1] + added[1], found[2] + added[2]

    low, high = bounds
    theta = np.clip(np.broadcast_to(start, (len(losses), start.shape[-1])), low, high).copy()
    counts = np.broadcast_to(np.ones(losses.shape[1]) if weights is None else weights, losses.shape)
    active = np.arange(len(theta))
    damping = np.full(len(theta), 1e-3)
    value, gradient, hessian = evaluate(active, theta)
    for _ in range(iterations):
        step = _step(theta[active], gradient[active], hessian[active], damping[active], low, high)
        trial = theta[active] + step
        new_value, new_gradient, new_hessian = evaluate(active, trial)
        better = new_value < value[active]
        done = _done(step, value[active], new_value, better, damping[active], tolerance)
        moved = active[better]
        theta[moved], value[moved] = trial[better], new_value[better]
        gradient[moved], hessian[moved] = new_gradient[better], new_hessian[better]
        damping[active] = np.where(better, damping[active] / 8, damping[active] * 6).clip(1e-14, 1e14)
        active = active[~done]
        if not len(active):
            break
    return _certify(theta, value, gradient, hessian, low, high)


def _evaluate(
    objective: Objective, losses: Array, weights: Array, theta: Array
) -> tuple[Array, Array, Array]:
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
        first, outer = np.ones_like(residual), np.zeros_like(residual)
    else:
        prediction = np.exp(log_prediction)
        residual, first, outer = prediction - losses, prediction, prediction
    size = np.abs(residual)
    inside = size <= objective.delta
    psi = np.clip(residual, -objective.delta, objective.delta) * weights
    capped = np.minimum(size, objective.delta)
    cost = capped * (size - capped / 2)
    # d2 pred = first * (sum_j s_j phi phi' - g g') + outer * g g', with g the gradient of the log prediction
    value = (weights * cost).sum(1)
    gradient = np.matmul((psi * first)[:, None, :], mean)[:, 0]
    spread = _spread((psi * first)[:, None, :] * share, slopes)
    factor = np.where(inside, weights, 0.0) * first**2 - psi * first + psi * outer
    hessian = spread + np.matmul(mean.transpose(0, 2, 1), mean * factor[..., None])
    return value, gradient, hessian


def _spread(weight: Array, slopes: Array) -> Array:
    """Return the sum of weight x slope slope' over terms and points [rows, parameters, parameters]."""
    count = slopes.shape[-1]
    if slopes.ndim == 4:
        each = slopes.reshape(len(slopes), -1, count)
        return np.asarray(np.matmul((each * weight.reshape(len(weight), -1, 1)).transpose(0, 2, 1), each))
    flat = slopes.reshape(-1, count)
    products = (flat[:, :, None] * flat[:, None, :]).reshape(len(flat), -1)
    return (weight.reshape(len(weight), -1) @ products).reshape(-1, count, count)


def _step(theta: Array, gradient: Array, hessian: Array, damping: Array, low: Array, high: Array) -> Array:
    """Return a damped Newton step; negative curvature is followed downhill and bounds are kept."""
    held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    free = np.where(held, 0.0, 1.0)
    scale = np.sqrt(np.maximum(np.abs(np.diagonal(hessian, axis1=1, axis2=2)), 1e-30))
    scaled = hessian / (scale[:, :, None] * scale[:, None, :]) * free[:, :, None] * free[:, None, :]
    values, vectors = np.linalg.eigh(scaled)
    rotated = np.einsum("bij,bi->bj", vectors, gradient * free / scale)
    rotated /= np.maximum(np.abs(values), 1e-14) + damping[:, None]
    step = -np.einsum("bij,bj->bi", vectors, rotated) / scale * free
    longest = np.abs(step).max(1, keepdims=True)
    step = step * np.minimum(1.0, 4.0 / np.maximum(longest, 1e-300))
    return np.asarray(np.clip(theta + step, low, high) - theta)


def _done(step: Array, value: Array, new_value: Array, better: Any, damping: Array, tolerance: float) -> Any:
    small = np.abs(step).max(1) < 1e-13
    flat = better & (value - new_value <= tolerance * value) & (damping < 1.0)
    return small | flat | (~better & (damping > 1e10))


def _certify(theta: Array, value: Array, gradient: Array, hessian: Array, low: Array, high: Array) -> Fit:
    at_bound = (theta <= low) | (theta >= high)
    free = np.where(at_bound, 0.0, 1.0)
    scale = np.sqrt(np.maximum(np.abs(np.diagonal(hessian, axis1=1, axis2=2)), 1e-30))
    scaled = hessian / (scale[:, :, None] * scale[:, None, :]) * free[:, :, None] * free[:, None, :]
    values = np.linalg.eigvalsh(scaled + np.eye(theta.shape[1]) * (1 - free)[:, None, :])
    size = np.abs(gradient * free / scale).max(1) / np.sqrt(np.maximum(value, 1e-300))
    return Fit(parameters=theta, objective=value, gradient=size, curvature=values[:, 0], at_bound=at_bound)
