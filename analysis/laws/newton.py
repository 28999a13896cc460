"""Damped Newton minimisation of many rows at once, each with its own damping, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from analysis.config import Array, Indices, Mask

CHUNK_BYTES = 2**23  # of the arrays of the rows that are worked on at a time: about a core's cache
VANISHED = 1e-16  # of the largest curvature
EXACT = 1e-14  # an objective below this is rounding
FLATTEST = 1e-9  # scaled curvature below which a full Newton step may lead away
AGREEMENT = 1e-8  # relative difference of objectives at the same optimum

# value [rows], gradient [rows, parameters], Hessian [rows, parameters, parameters]
Evaluation = tuple[Array, Array, Array]
# (indices of the rows, their parameters [rows, parameters]) -> evaluation
Evaluate = Callable[[Any, Array], Evaluation]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Parameters [rows, parameters] with objective, scaled gradient and least scaled curvature [rows]."""

    parameters: Array = field(repr=False)
    objective: Array
    gradient: Array
    curvature: Array
    at_bound: Mask  # [rows, parameters]

    @property
    def best(self) -> int:
        """Return the row with the least objective."""
        return int(np.argmin(self.objective))

    @property
    def agreeing(self) -> int:
        """Return the number of rows that reach the least objective."""
        return int(np.sum(self.objective <= self.objective.min() * (1 + AGREEMENT) + EXACT))

    def row(self, index: int) -> Fit:
        """Return one row as a fit of its own."""
        return self.rows(np.array([index]))

    def rows(self, indices: Indices) -> Fit:
        """Return some rows as a fit of their own."""
        return Fit(**{f.name: getattr(self, f.name)[indices] for f in fields(self)})


def row_chunks(rows: int, row_bytes: int) -> Iterator[Indices]:
    """Yield the indices of `rows` rows in chunks whose arrays take about `CHUNK_BYTES`.

    The rows are independent of each other, so their results do not depend on the chunks.
    """
    count = max(1, CHUNK_BYTES // max(row_bytes, 1))
    # glibc gives freed arrays back to the system, and maps the next ones page by page, if they are larger
    # than any that was freed before.
    np.empty(min(CHUNK_BYTES, rows * row_bytes), np.uint8)
    for first in range(0, rows, count):
        yield np.arange(first, min(first + count, rows))


def descend(
    evaluate: Evaluate,
    start: Array,
    bounds: tuple[Array, Array],
    *,
    row_bytes: int = 0,
    iterations: int = 300,
    tolerance: float = 1e-16,
) -> Fit:
    """Minimise every row from `start` [rows, parameters] within `bounds`, low and high [parameters].

    Parameters
    ----------
    row_bytes : that `evaluate` needs per row. Rows are minimised in chunks of about `CHUNK_BYTES`.
    tolerance : a row has converged when a step lowers its objective by less than this share.
    """
    fits = [
        _descend(evaluate, rows, start[rows], bounds, iterations, tolerance)
        for rows in row_chunks(len(start), row_bytes)
    ]
    return fits[0] if len(fits) == 1 else _joined(fits)


def polish(evaluate: Evaluate, fit: Fit, bounds: tuple[Array, Array]) -> Fit:
    """Return a fit of one row after full Newton steps, as long as they lower its gradient.

    Near an optimum the objective changes by less than rounding while parameters still move by 1e-8; the
    gradient resolves what is left.
    """
    row = np.zeros(1, int)
    while fit.curvature[0] > FLATTEST:
        theta = fit.parameters
        _, gradient, hessian = evaluate(row, theta)
        trial = theta + _step(theta, gradient, hessian, np.zeros(1), bounds)
        moved = _certify(trial, *evaluate(row, trial), *bounds)
        if moved.gradient[0] >= fit.gradient[0] / 2 or moved.objective[0] > fit.objective[0] * (1 + 1e-13):
            break
        fit = moved
    return fit


def _joined(fits: Sequence[Fit]) -> Fit:
    """Return the rows of several fits as one fit."""
    return Fit(**{f.name: np.concatenate([getattr(fit, f.name) for fit in fits]) for f in fields(Fit)})


def _descend(
    evaluate: Evaluate,
    rows: Indices,
    start: Array,
    bounds: tuple[Array, Array],
    iterations: int,
    tolerance: float,
) -> Fit:
    """Minimise some rows; `rows` are their indices for `evaluate`."""
    theta = np.clip(start, *bounds)
    active = np.arange(len(theta))
    damping = np.full(len(theta), 1e-3)
    value, gradient, hessian = evaluate(rows, theta)
    for _ in range(iterations):
        step = _step(theta[active], gradient[active], hessian[active], damping[active], bounds)
        trial = theta[active] + step
        new_value, new_gradient, new_hessian = evaluate(rows[active], trial)
        better = new_value < value[active]
        done = _converged(step, value[active], new_value, better, damping[active], tolerance)
        moved = active[better]
        theta[moved], value[moved] = trial[better], new_value[better]
        gradient[moved], hessian[moved] = new_gradient[better], new_hessian[better]
        damping[active] = np.where(better, damping[active] / 8, damping[active] * 6).clip(1e-14, 1e14)
        active = active[~done]
        if not len(active):
            break
    return _certify(theta, value, gradient, hessian, *bounds)


def _step(
    theta: Array, gradient: Array, hessian: Array, damping: Array, bounds: tuple[Array, Array]
) -> Array:
    """Return a damped Newton step that keeps the bounds and descends where the curvature is negative."""
    low, high = bounds
    at_bound = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    free = np.where(at_bound, 0.0, 1.0)
    scale = np.sqrt(np.maximum(np.abs(np.diagonal(hessian, axis1=1, axis2=2)), 1e-30))
    scaled = hessian / (scale[:, :, None] * scale[:, None, :]) * free[:, :, None] * free[:, None, :]
    pull = gradient * free / scale
    values, vectors = np.linalg.eigh(scaled)
    rotated = np.einsum("bij,bi->bj", vectors, pull)
    rotated /= np.maximum(np.abs(values), 1e-14) + damping[:, None]
    solved = np.einsum("bij,bj->bi", vectors, rotated)
    step = -solved / scale * free
    longest = np.abs(step).max(1, keepdims=True)
    step = step * np.minimum(1.0, 4.0 / np.maximum(longest, 1e-300))
    return np.asarray(np.clip(theta + step, low, high) - theta)


def _converged(
    step: Array, value: Array, new_value: Array, better: Any, damping: Array, tolerance: float
) -> Any:
    small = np.abs(step).max(1) < 1e-13
    flat = better & (value - new_value <= tolerance * value) & (damping < 1.0)
    return small | flat | (~better & (damping > 1e10))


def _certify(theta: Array, value: Array, gradient: Array, hessian: Array, low: Array, high: Array) -> Fit:
    at_bound = (theta <= low) | (theta >= high)
    diagonal = np.abs(np.diagonal(hessian, axis1=1, axis2=2))
    # Along the amplitude of a term that vanished, curvature is rounding of the gradient over that amplitude.
    vanished = diagonal < VANISHED * diagonal.max(1, keepdims=True)
    free = np.where(at_bound | vanished, 0.0, 1.0)
    scale = np.sqrt(np.maximum(diagonal, 1e-30))
    scaled = hessian / (scale[:, :, None] * scale[:, None, :]) * free[:, :, None] * free[:, None, :]
    values = np.linalg.eigvalsh(scaled + np.eye(theta.shape[1]) * (1 - free)[:, None, :])
    size = np.abs(gradient * free / scale).max(1) / np.sqrt(np.maximum(value, 1e-300))
    return Fit(parameters=theta, objective=value, gradient=size, curvature=values[:, 0], at_bound=at_bound)
