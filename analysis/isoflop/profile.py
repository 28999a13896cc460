"""Profile intervals for exponents and optima.

Where parameters trade off against one another, the width of a percentile bootstrap depends on the
estimate, and it misses too often. The profile does not: for a target value of the exponent the objective
is minimised over all curves that give that value, and the interval holds the targets whose objective stays
within the limit of the confidence level. Coverage is simulated in `validation/coverage.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from analysis.config import Array
from analysis.isoflop.curves import Optimum, believed
from analysis.isoflop.estimator import EstimatorFit
from analysis.laws.newton import Evaluate, Evaluation, descend

Ends = tuple[float | None, float | None]
# parameters [rows, parameters] -> log optima [rows, 2 budgets] and slopes [rows, 2 budgets, parameters]
Functional = Callable[[Array], tuple[Array, Array]]

STIFFNESS = 1e4  # of the penalty that holds a target, in units of the functional's information
# Targets on either side, in units of the interval that a linear law would give.
STEPS = np.array([0.25, 0.5, 0.75, 1.0, 1.3, 1.7, 2.3, 3.2, 5.0, 8.0])


@dataclass(frozen=True, kw_only=True)
class Model:
    """A fitted model as a profile sees it: its objective around the optimum and what is read off it."""

    evaluate: Evaluate = field(repr=False)
    bounds: tuple[Array, Array] = field(repr=False)
    best: Array  # parameters at the optimum
    value: float  # objective there
    unit: float  # objective per half unit of deviance
    covariance: Array = field(repr=False)  # of the parameters in linear theory
    freedom: int  # degrees of freedom of the noise
    optima: Functional = field(repr=False)  # recurrences at the budgets, then tokens


def profile_intervals(model: Model, weights: Array, confidence: float) -> list[Ends]:
    """Return the interval of each linear combination `weights` [functionals, 2 budgets] of the log optima.

    An end is None where the profile stays within its limit as far as it was followed.
    """
    value, gradient = (part[0] for part in model.optima(model.best[None]))
    centres, directions = weights @ value, weights @ gradient
    spread = np.sqrt(np.maximum(np.einsum("fp,pq,fq->f", directions, model.covariance, directions), 1e-18))
    quantile = float(stdtrit(model.freedom, (1 + confidence) / 2))
    steps = np.concatenate([-STEPS[::-1], STEPS]) * quantile
    which = np.repeat(np.arange(len(weights)), len(steps))
    targets = (centres[:, None] + spread[:, None] * steps).ravel()
    stiffness = STIFFNESS * model.unit / spread[which] ** 2

    def held(rows: Any, theta: Array) -> Evaluation:
        found, slopes = model.optima(theta)
        chosen, k = weights[which[rows]], stiffness[rows]
        gap = (chosen * found).sum(-1) - targets[rows]
        slope = np.einsum("rk,rkp->rp", chosen, slopes)
        own = model.evaluate(rows, theta)
        outer = k[:, None, None] * slope[:, :, None] * slope[:, None, :]
        return own[0] + k * gap**2 / 2, own[1] + (k * gap)[:, None] * slope, own[2] + outer

    start = np.repeat(model.best[None], len(targets), 0)
    fit = descend(held, start, model.bounds, iterations=40, tolerance=1e-12)
    # A held curve is the best one for the value that it reached, whatever its target was.
    reached = (weights[which] * model.optima(fit.parameters)[0]).sum(-1)
    excess = model.evaluate(np.arange(len(targets)), fit.parameters)[0] - model.value
    root = np.sqrt(np.maximum(2 * excess / model.unit, 0.0))
    return [_ends(centres[f], reached[which == f], root[which == f], quantile) for f in range(len(weights))]


def _ends(centre: float, reached: Array, root: Array, limit: float) -> Ends:
    """Interpolate the signed root deviance at the limit on either side of the optimum."""
    ends: list[float | None] = []
    for side in (-1.0, 1.0):
        at = side * (reached - centre) > 0
        order = np.argsort(side * reached[at])
        x = np.concatenate([[centre], reached[at][order]])
        climb = np.maximum.accumulate(np.concatenate([[0.0], root[at][order]]))
        if climb[-1] <= limit:
            ends.append(None)
            continue
        beyond = int(np.argmax(climb > limit))
        share = (limit - climb[beyond - 1]) / (climb[beyond] - climb[beyond - 1])
        ends.append(float(x[beyond - 1] + share * (x[beyond] - x[beyond - 1])))
    return ends[0], ends[1]


def with_profiles(
    fitted: EstimatorFit, budgets_flops: Array, model: Model, confidence: float
) -> EstimatorFit:
    """Replace the bootstrap's intervals of accepted laws and optima.

    Which budgets have their optimum inside the grid is itself uncertain. The interval of an exponent
    therefore spans those of the slope over the accepted budgets and over all that cannot be excluded.
    """
    budgets = len(budgets_flops)
    units = {q: np.eye(2 * budgets)[k * budgets :][:budgets] for k, q in enumerate(fitted.optima)}
    ends = profile_intervals(model, np.concatenate(list(units.values())), confidence)
    places = {q: ends[k * budgets :][:budgets] for k, q in enumerate(fitted.optima)}
    sets = {q: _budget_sets(fitted.optima[q], places[q]) for q, law in fitted.laws.items() if law.exponent}
    wanted = [(q, used) for q, choices in sets.items() for used in choices]
    rows = [row for q, used in wanted for row in _line(budgets_flops, used) @ units[q]]
    ends = profile_intervals(model, np.array(rows), confidence) if rows else []
    lines = dict(zip(wanted, zip(ends[::2], ends[1::2], strict=True), strict=True))
    laws = dict(fitted.laws)
    for quantity, choices in sets.items():
        slope = _hull([lines[quantity, used][0] for used in choices])
        level = [_raised(end) for end in lines[quantity, choices[0]][1]]
        laws[quantity] = replace(
            laws[quantity],
            exponent_low=slope[0],
            exponent_high=slope[1],
            coefficient_low=level[0],
            coefficient_high=level[1],
        )
    optima = {
        quantity: tuple(
            found if found.refusal else replace(found, low=_raised(low), high=_raised(high))
            for found, (low, high) in zip(fitted.optima[quantity], places[quantity], strict=True)
        )
        for quantity in fitted.optima
    }
    return replace(fitted, optima=optima, laws=laws)


def _budget_sets(optima: tuple[Optimum, ...], ends: list[Ends]) -> list[tuple[int, ...]]:
    """Return the accepted budgets and, where they are others, those whose optimum may lie inside the grid."""
    accepted = tuple(k for k, found in enumerate(optima) if found.value is not None)
    possible = []
    for k, (found, (low, high)) in enumerate(zip(optima, ends, strict=True)):
        first, last = believed(found.swept)
        if k in accepted or (found.fitted and (low is None or low < last) and (high is None or high > first)):
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


def _raised(end: float | None) -> float | None:
    return None if end is None else float(np.exp(end))
