"""Intervals of a fit: percentiles, Student's t, profiles.

Where parameters trade off against each other, the width of a percentile bootstrap depends on the estimate and
the interval covers too rarely. A profile interval does not have this fault: for a target value the objective
is minimised over all parameters that give that value, and the interval holds the targets whose objective
stays within the limit of the confidence level. `validation/coverage.py` simulates the coverage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtrit

from analysis.config import Array
from analysis.format import plural
from analysis.laws.identification import (
    Ends,
    Intervals,
    fixed_by_bounds,
    held_by_bounds,
    log_slopes,
    normal_matrix,
    slopes_at,
    unidentified,
)
from analysis.laws.law import Law
from analysis.laws.newton import Evaluate, Evaluation, Fit, descend, row_chunks
from analysis.laws.objective import Objective, Terms, residuals
from analysis.stats.bootstrap import FEW_BLOCKS, interval, student_interval

FEW_FREEDOM = 15  # degrees of freedom below which percentiles over resampled points cover too rarely
# parameters [rows, parameters] -> log optima [rows, 2 budgets] and slopes [rows, 2 budgets, parameters]
Functional = Callable[[Array], tuple[Array, Array]]
STIFFNESS = 1e2  # of the penalty around a target, in units of the functional's information
# Targets on either side, in units of the half width that linear theory gives.
STEPS = np.array([0.25, 0.5, 0.75, 1.0, 1.3, 1.7, 2.3, 3.2, 5.0, 8.0])


@dataclass(frozen=True, kw_only=True)
class Student:
    """Student's interval in place of percentiles: independent units, and how many of them a fit uses up.

    Percentiles of resamples cover too rarely where few units were resampled.
    """

    units: int
    used: int

    @property
    def freedom(self) -> int:
        """Return the degrees of freedom."""
        return self.units - self.used

    def interval(self, value: Array, draws: Array, confidence: float) -> tuple[Array, Array]:
        """Return the ends about `value` of `draws` [resamples, ...]."""
        return student_interval(value, draws, self.units, confidence, self.used)


def student(points: int, parameters: int, blocks: int) -> Student | None:
    """Return Student's interval where the resampled blocks (0: single points) are few, else None."""
    if blocks:
        return Student(units=blocks, used=1) if blocks < FEW_BLOCKS else None
    return Student(units=points, used=parameters) if points - parameters < FEW_FREEDOM else None


def intervals(
    law: Law,
    terms: Terms,
    fitted: Array,
    draws: Array,
    few: Student | None,
    confidence: float,
    covariance: Array | None = None,
) -> Intervals:
    """Return percentile intervals, or Student's where `few` units were resampled.

    An end is open (None) where a bound determines more resamples on that side than lie beyond the end: the
    end would be set by the bound, not by the data. Both ends are open where the data do not identify the
    parameter (see `unidentified`).

    Parameters
    ----------
    terms : of the fitted points.
    fitted, draws : the fit of the data [parameters] and those of the resamples [resamples, parameters].
    covariance : of the fitted form, by linear theory.
    """
    if few:
        low, high = (law.public(end) for end in few.interval(fitted, draws, confidence))
        ends: Intervals = {name: (float(low[name][0]), float(high[name][0])) for name in low}
    else:
        ends = {name: interval(value, confidence) for name, value in law.public(draws).items()}
    least, most = law.bounds
    at_bound = (draws <= least) | (draws >= most)
    lost = unidentified(law, terms, fitted, (fitted <= least) | (fitted >= most), covariance)
    unknown = np.array([parameter.name in lost for parameter in law.parameters])
    tail, slopes = (1 - confidence) / 2, slopes_at(terms, fitted)
    by_amplitude = fixed_by_bounds(law, slopes, at_bound) & ~at_bound
    shares = [((draws <= least) | by_amplitude).mean(0), ((draws >= most) | by_amplitude).mean(0)]
    open_ends = [unknown | (share > tail) for share in shares]
    return {
        name: (None if no_low else low_end, None if no_high else high_end)
        for (name, (low_end, high_end)), no_low, no_high in zip(ends.items(), *open_ends, strict=True)
    }


def band(values: Array, draws: Array, few: Student | None, confidence: float) -> tuple[Array, Array]:
    """Return the pointwise interval about `values` [points] of `draws` [resamples, points].

    Raises ValueError where there are no resamples.
    """
    if not len(draws):
        raise ValueError("the law was fitted without resamples and has no band: set bootstrap=1000")
    if few:
        return few.interval(values, draws, confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def describe_resampling(bootstrap: int, resampling: str, seed: int, few: Student | None) -> str:
    """Return how the intervals were computed, as a phrase."""
    if not bootstrap:
        return "none"
    text = f"{bootstrap} resamples, {resampling}, seed {seed}"
    if few is None:
        return text
    freedom = f"{plural(few.freedom, 'degree')} of freedom"
    units = f"{few.units} {'blocks' if resampling == 'block' else 'points'}"
    return f"{text}; {units} are too few for percentiles: Student's t with {freedom}"


def linear_covariance(law: Law, objective: Objective, losses: Array, point: Fit) -> Array:
    """Return the covariance of the fitted form by linear theory, NaN for what a bound determines.

    Notes
    -----
    Huber (1973): tau^2 (J'J)^-1 with tau^2 = sum psi^2 / (points - parameters) / (mean psi')^2.
    """
    fitted = point.parameters[0]
    lost = held_by_bounds(law, slopes_at(objective.terms, fitted), fitted, point.at_bound[0])
    residual = residuals(objective, losses, fitted)
    jacobian = log_slopes(objective.terms, fitted)[:, ~lost]
    if not objective.log_loss:
        jacobian = jacobian * (losses + residual)[:, None]
    psi = np.clip(residual, -objective.delta, objective.delta)
    free = jacobian.shape[1]
    inside = max(float(np.mean(np.abs(residual) <= objective.delta)), free / len(losses))
    variance = float(psi @ psi) / max(len(losses) - free, 1) / inside**2
    normal, scale = normal_matrix(jacobian)
    matrix = np.full((len(fitted), len(fitted)), np.nan)
    inverse = variance * np.linalg.pinv(normal, hermitian=True) / np.outer(scale, scale)
    matrix[np.ix_(~lost, ~lost)] = inverse
    return matrix


@dataclass(frozen=True, kw_only=True)
class ProfileModel:
    """What a profile needs of a fitted model: its objective near the optimum and the log optima."""

    evaluate: Evaluate = field(repr=False)
    row_bytes: int  # that `evaluate` needs per row
    bounds: tuple[Array, Array] = field(repr=False)
    best: Array  # parameters at the optimum
    value: float  # objective there
    unit: float  # objective per half unit of deviance
    covariance: Array = field(repr=False)  # of the parameters in linear theory
    freedom: int  # degrees of freedom of the noise
    optima: Functional = field(repr=False)  # log recurrence at every budget, then log tokens


def profile_intervals(model: ProfileModel, weights: Array, confidence: float) -> list[Ends]:
    """Return the interval of each linear combination `weights` [functionals, 2 budgets] of the log optima.

    An end is None (open) where the profile stays within its limit over the whole range of targets.

    Notes
    -----
    Either side is followed outwards, each target from where the two before it point, the first by linear
    theory: a descent from the fit itself to a distant target may end on another branch of the optima, with a
    far larger objective.
    """
    value, gradient = (part[0] for part in model.optima(model.best[None]))
    centres, directions = weights @ value, weights @ gradient
    spread = np.sqrt(np.maximum(np.einsum("fp,pq,fq->f", directions, model.covariance, directions), 1e-18))
    limit = float(stdtrit(model.freedom, (1 + confidence) / 2))
    which, side = np.tile(np.arange(len(weights)), 2), np.repeat([-1.0, 1.0], len(weights))
    theta = np.repeat(model.best[None], len(which), 0)
    linear = directions @ model.covariance / spread[:, None]
    pace = (side[:, None] * limit) * linear[which]  # of the parameters per step along the profile
    reached, root = np.full((2, len(STEPS), len(which)), np.nan)
    within = np.arange(len(which))  # rows whose profile has not passed its limit
    for step, (far, stride) in enumerate(zip(STEPS, np.diff(STEPS, prepend=0.0), strict=True)):
        own = which[within]
        targets = centres[own] + side[within] * far * limit * spread[own]
        ahead = np.clip(theta[within] + stride * pace[within], *model.bounds)
        found = _constrained(model, weights[own], targets, spread[own], ahead)
        pace[within], theta[within] = (found - theta[within]) / stride, found
        # The optimum is that of the value reached, which may differ from the target.
        reached[step, within] = (weights[own] * model.optima(theta[within])[0]).sum(-1)
        root[step, within] = _root_deviance(model, theta[within])
        within = within[root[step, within] <= limit]
        if not len(within):
            break
    ends = [_end(centres[f], reached[:, row], root[:, row], limit) for row, f in enumerate(which)]
    return list(zip(ends[: len(weights)], ends[len(weights) :], strict=True))


def _constrained(model: ProfileModel, weights: Array, targets: Array, spread: Array, start: Array) -> Array:
    """Return the parameters [rows, parameters] of the least objective at a value of each functional.

    Parameters
    ----------
    weights : of the functionals [rows, 2 budgets]; targets, spread : their values and standard errors [rows].
    """
    stiffness = STIFFNESS * model.unit / spread**2

    def penalised(rows: Any, theta: Array) -> Evaluation:
        optima, slopes = model.optima(theta)
        chosen, k = weights[rows], stiffness[rows]
        gap = (chosen * optima).sum(-1) - targets[rows]
        slope = np.einsum("rk,rkp->rp", chosen, slopes)
        own = model.evaluate(rows, theta)
        outer = k[:, None, None] * slope[:, :, None] * slope[:, None, :]
        return own[0] + k * gap**2 / 2, own[1] + (k * gap)[:, None] * slope, own[2] + outer

    # A share of 1e-9 of the objective moves an end of an interval in its ninth digit.
    fit = descend(penalised, start, model.bounds, row_bytes=model.row_bytes, iterations=120, tolerance=1e-9)
    return fit.parameters


def _root_deviance(model: ProfileModel, theta: Array) -> Array:
    """Return the root of the deviance at parameters [rows, parameters], in standard deviations [rows]."""
    chunks = row_chunks(len(theta), model.row_bytes)
    excess = np.concatenate([model.evaluate(rows, theta[rows])[0] for rows in chunks]) - model.value
    return np.asarray(np.sqrt(np.maximum(2 * excess / model.unit, 0.0)))


def _end(centre: float, reached: Array, root: Array, limit: float) -> float | None:
    """Return where the root deviance, at values reached one after the other, crosses the limit.

    It is interpolated; None where it stays within.
    """
    passed = root > limit
    if not passed.any():
        return None
    beyond = int(np.argmax(passed))
    x, climb = np.concatenate([[centre], reached]), np.concatenate([[0.0], root])
    share = (limit - climb[beyond]) / (climb[beyond + 1] - climb[beyond])
    return float(x[beyond] + share * (x[beyond + 1] - x[beyond]))
