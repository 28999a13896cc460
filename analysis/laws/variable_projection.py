"""Variable projection for isoFLOP curves that differ in amplitudes and share two exponents.

L_C = E_C + P_C N^-a + R_C D^-b with one (a, b) for all budgets. The amplitudes are linear and projected out
(Golub and Pereyra 1973), which leaves a problem in two variables. It is solved for all resamples in one
array.

The code fits L = E - p (1 - e^(-a u))/a - r (1 - e^(-b v))/b, with u = log N and v = log D less their means.
These columns span the same curves as N^-a and D^-b, but stay distinct from the constant as an exponent
approaches zero. A minimum needs p > 0 and r > 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analysis.config import Array, Counts, Indices
from analysis.laws.newton import row_chunks

BOX = (0.1, 2.0)  # of both exponents; published ones lie between 0.15 and 1
START_GRID = 14
ARRAYS = 14  # of one number per point that a step of the descent holds at a time


@dataclass(frozen=True, kw_only=True)
class SharedShape:
    """Exponents [resamples, 2], amplitudes [resamples, budgets, 3] = (E, p, r), squared error [resamples]."""

    exponents: Array = field(repr=False)
    amplitudes: Array = field(repr=False)
    squared_error: Array = field(repr=False)
    log_params_mean: float
    log_tokens_mean: float

    def losses(self, budget: int, log_params: Array, log_tokens: Array) -> Array:
        """Return the fitted losses of one budget along a path [resamples, points]."""
        a, b = self.exponents.T[..., None]
        level, p, r = self.amplitudes[:, budget].T[..., None]
        return np.asarray(
            level
            - p * _saturation(a, log_params - self.log_params_mean)
            - r * _saturation(b, log_tokens - self.log_tokens_mean)
        )


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Padded arrays [budgets, points]; `weight` is the root of a point's count, 0 on padding."""

    u: Array
    v: Array
    weight: Array  # [budgets, points], or [resamples, budgets, points]
    losses: Array  # [resamples, budgets, points]


def fit_shared_shape(
    log_params: Array,
    log_tokens: Array,
    losses: Array,
    budget: Indices,
    *,
    start: Array | None = None,
    weights: Counts | None = None,
) -> SharedShape:
    """Fit one curve shape to all budgets, with free amplitudes per budget, for every resample.

    Parameters
    ----------
    log_params, log_tokens : log N and log D [points].
    losses : [resamples, points] in nats.
    budget : index of each point's budget, 0 to K - 1 [points].
    start : exponents [2]; without it the best of a grid is refined.
    weights : how often each point enters a resample [resamples, points]. A curve with fewer than three
        distinct points has no amplitudes (NaN).
    """
    means = float(log_params.mean()), float(log_tokens.mean())
    u, v, counts = log_params - means[0], log_tokens - means[1], np.bincount(budget)
    row_bytes = 8 * ARRAYS * counts.size * int(counts.max())
    parts = []
    for rows in row_chunks(len(losses), row_bytes):
        problem = _pad(u, v, losses[rows], budget, None if weights is None else weights[rows])
        parts.append(_fit(problem, start))
    exponents, amplitudes, squared_error = (np.concatenate(part) for part in zip(*parts, strict=True))
    return SharedShape(
        exponents=exponents,
        amplitudes=amplitudes,
        squared_error=squared_error,
        log_params_mean=means[0],
        log_tokens_mean=means[1],
    )


def _fit(problem: _Problem, start: Array | None) -> tuple[Array, Array, Array]:
    """Return exponents, amplitudes and squared error of every resample of a problem."""
    first = _grid_start(problem) if start is None else np.broadcast_to(start, (len(problem.losses), 2)).copy()
    theta = _descend(problem, first)
    amplitudes, residual, _ = _project(problem, theta)
    amplitudes = np.where((np.sum(problem.weight > 0, -1) < 3)[..., None], np.nan, amplitudes)
    return theta, amplitudes, np.square(residual).sum((1, 2))


def leverages(fit: SharedShape, log_params: Array, log_tokens: Array, budget: Indices) -> Array:
    """Return the leverages of the points in a fit to one row of losses, by linear theory [points].

    A leverage is the derivative of a point's fitted loss by its own loss. An exponent at an edge of `BOX` is
    taken as fixed.
    """
    u, v = log_params - fit.log_params_mean, log_tokens - fit.log_tokens_mean
    problem = _pad(u, v, np.zeros((1, len(u))), budget, None)
    basis = _project(problem, fit.exponents)[2]
    columns = _exponent_columns(problem, fit.exponents, fit.amplitudes, basis)[0]
    free = ~np.isin(fit.exponents[0], BOX)
    orthonormal = np.linalg.qr(columns[:, free])[0].reshape(*problem.u.shape, -1)
    padded = sum(np.square(q[0]) for q in basis) + np.square(orthonormal).sum(-1)
    return np.asarray(padded[budget, _slots(budget)])


def _slots(budget: Indices) -> Indices:
    """Return the place of each point among those of its budget."""
    slot = np.zeros(len(budget), int)
    for index in range(int(budget.max()) + 1):
        at = budget == index
        slot[at] = np.arange(at.sum())
    return slot


def _pad(u: Array, v: Array, losses: Array, budget: Any, weights: Counts | None) -> _Problem:
    counts = np.bincount(budget)
    shape = (len(counts), int(counts.max()))
    slot = _slots(budget)
    padded = {name: np.zeros(shape) for name in ("u", "v", "weight")}
    for name, values in (("u", u), ("v", v), ("weight", np.ones(len(u)))):
        padded[name][budget, slot] = values
    padded_losses = np.zeros((len(losses), *shape))
    padded_losses[:, budget, slot] = losses
    if weights is not None:
        padded["weight"] = np.zeros((len(losses), *shape))
        padded["weight"][:, budget, slot] = np.sqrt(weights, dtype=float)
    return _Problem(losses=padded_losses, **padded)


def _saturation(exponent: Any, x: Any) -> Array:
    """Return (1 - exp(-a x)) / a."""
    return np.asarray(-np.expm1(-exponent * x) / exponent)


def _saturation_slope(exponent: Any, x: Any) -> Array:
    """Return the derivative of (1 - exp(-a x)) / a in a."""
    return np.asarray((x * np.exp(-exponent * x) - _saturation(exponent, x)) / exponent)


def _project(problem: _Problem, theta: Array) -> tuple[Array, Array, tuple[Array, Array, Array]]:
    """Return the amplitudes at given exponents, the residuals and an orthonormal basis of the columns.

    Shapes are [resamples, budgets, 3], [resamples, budgets, points] and the same for each basis vector. The
    columns are nearly collinear: Gram-Schmidt keeps the accuracy that normal equations would lose.
    """
    weight = problem.weight
    a, b = theta[:, 0, None, None], theta[:, 1, None, None]
    size = np.maximum(np.sqrt(np.square(weight).sum(-1)), 1e-300)
    q0 = np.broadcast_to(weight / size[..., None], problem.losses.shape)
    c1, c2 = -weight * _saturation(a, problem.u), -weight * _saturation(b, problem.v)
    q1, r01, r11 = _orthogonal(c1, (q0,))
    q2, r02, r12, r22 = _orthogonal(c2, (q0, q1))
    y = problem.losses * weight
    z0, z1, z2 = (np.sum(q * y, -1) for q in (q0, q1, q2))
    residual = y - z0[..., None] * q0 - z1[..., None] * q1 - z2[..., None] * q2
    r = z2 / r22
    p = (z1 - r12 * r) / r11
    level = (z0 - r01 * p - r02 * r) / size
    return np.stack([level, p, r], -1), residual, (q0, q1, q2)


def _orthogonal(column: Array, basis: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return the column orthogonalised twice (enough for full accuracy), its projections and its length."""
    parts = [np.zeros(column.shape[:-1]) for _ in basis]
    for _ in range(2):
        for index, q in enumerate(basis):
            part = np.sum(q * column, -1)
            parts[index] = parts[index] + part
            column = column - part[..., None] * q
    length = np.sqrt(np.sum(column**2, -1))
    return (column / np.maximum(length, 1e-300)[..., None], *parts, np.maximum(length, 1e-300))


def _grid_start(problem: _Problem) -> Array:
    """Return the best exponents of a logarithmic grid for every resample [resamples, 2]."""
    axis = np.geomspace(*BOX, START_GRID)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    if len(problem.losses) == 1:  # all of the grid at a time
        losses = np.broadcast_to(problem.losses, (len(grid), *problem.losses.shape[1:]))
        error = np.square(_project(replace(problem, losses=losses), grid)[1]).sum((1, 2))
        return grid[[int(np.argmin(error))]]
    best = np.full(len(problem.losses), np.inf)
    theta = np.zeros((len(problem.losses), 2))
    for place in grid:
        error = np.square(_project(problem, np.broadcast_to(place, theta.shape))[1]).sum((1, 2))
        better = error < best
        best[better], theta[better] = error[better], place
    return theta


def _descend(problem: _Problem, theta: Array, iterations: int = 200) -> Array:
    """Return exponents [resamples, 2] by Levenberg-Marquardt with Kaufman's approximate Jacobian.

    Every resample has its own damping.
    """
    active = np.arange(len(theta))
    damping = np.full(len(theta), 1e-3)
    error = np.square(_project(problem, theta)[1]).sum((1, 2))
    for _ in range(iterations):
        weight = problem.weight if problem.weight.ndim == 2 else problem.weight[active]
        part = _Problem(u=problem.u, v=problem.v, weight=weight, losses=problem.losses[active])
        gradient, normal = _normal_equations(part, theta[active])
        step = _boxed_step(theta[active], gradient, normal, damping[active])
        trial = theta[active] + step
        trial_error = np.square(_project(part, trial)[1]).sum((1, 2))
        better = trial_error < error[active]
        theta[active[better]] = trial[better]
        gain = error[active] - trial_error
        small = np.abs(step).max(-1) < 1e-12
        stuck = (~better & (damping[active] > 1e8)) | (better & (gain <= 1e-15 * error[active])) | small
        error[active[better]] = trial_error[better]
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 4).clip(1e-12, 1e12)
        active = active[~stuck]
        if not len(active):
            break
    return theta


def _normal_equations(problem: _Problem, theta: Array) -> tuple[Array, Array]:
    amplitudes, residual, basis = _project(problem, theta)
    jacobian = _exponent_columns(problem, theta, amplitudes, basis)
    flat = residual.reshape(len(theta), 1, -1)
    return (flat @ jacobian)[:, 0], np.swapaxes(jacobian, 1, 2) @ jacobian


def _exponent_columns(
    problem: _Problem, theta: Array, amplitudes: Array, basis: tuple[Array, Array, Array]
) -> Array:
    """Return the derivatives of the residuals by the exponents [resamples, budgets x points, 2]."""
    columns = []
    for index, x in enumerate((problem.u, problem.v)):
        slope = problem.weight * _saturation_slope(theta[:, index, None, None], x)
        column = amplitudes[..., index + 1, None] * slope
        for q in basis:
            column = column - np.sum(q * column, -1)[..., None] * q
        columns.append(column)  # = d residual / d exponent, since the model carries a minus sign
    return np.stack([column.reshape(len(theta), -1) for column in columns], -1)


def _boxed_step(theta: Array, gradient: Array, normal: Array, damping: Array) -> Array:
    """Return a damped Gauss-Newton step [resamples, 2] that keeps the exponents inside the box."""
    low, high = BOX
    at_bound = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    free = ~at_bound
    diagonal = normal[:, [0, 1], [0, 1]]
    scale = diagonal * (1 + damping[:, None]) + 1e-300
    cross = normal[:, 0, 1] * (free[:, 0] & free[:, 1])
    determinant = scale[:, 0] * scale[:, 1] - cross**2
    g = gradient * free
    step = -np.stack([scale[:, 1] * g[:, 0] - cross * g[:, 1], scale[:, 0] * g[:, 1] - cross * g[:, 0]], -1)
    step = step / np.maximum(determinant, 1e-300)[:, None]
    # Exponents are positive scales: no step may change one by more than a factor of two.
    step = np.clip(step, -theta / 2, theta) * free
    return np.asarray(np.clip(theta + step, low, high) - theta)
