"""Profile intervals for exponents and optima.

Where parameters trade off against one another, the width of a percentile bootstrap depends on the
estimate, and it misses too often. The profile does not: for a target value of the exponent the objective
is minimised over all curves that give that value, and the interval holds the targets whose objective stays
within the limit of the confidence level. Coverage is simulated in `benchmarks/coverage.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from analysis.descent import Evaluate, Evaluation, descend
from analysis.estimator import EstimatorFit
from analysis.isoflop import Quantity

Array = np.ndarray[Any, np.dtype[np.float64]]
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
    fit = descend(held, start, model.bounds, iterations=80, tolerance=1e-12)
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
    """Replace the bootstrap's intervals of accepted laws and optima."""
    budgets = len(budgets_flops)
    rows: list[Array] = []
    places: list[tuple[str, Quantity, int]] = []
    for offset, quantity in zip((0, budgets), fitted.optima, strict=True):
        unit = np.eye(2 * budgets)[offset : offset + budgets]
        for k, flops in enumerate(budgets_flops):
            found = next(o for o in fitted.optima[quantity] if o.budget_flops == flops)
            if found.refusal is None:
                rows.append(unit[k])
                places.append(("optimum", quantity, fitted.optima[quantity].index(found)))
        law = fitted.laws[quantity]
        if law.exponent is not None and law.reference_flops is not None:
            used = np.isin(budgets_flops, law.budgets_flops)
            x = np.where(used, np.log(budgets_flops / law.reference_flops), 0.0)
            rows += [x / (x @ x) @ unit, used / used.sum() @ unit]
            places += [("exponent", quantity, 0), ("level", quantity, 0)]
    if not rows:
        return fitted
    optima = {quantity: list(items) for quantity, items in fitted.optima.items()}
    laws = dict(fitted.laws)
    ends = profile_intervals(model, np.array(rows), confidence)
    for (kind, quantity, k), (low, high) in zip(places, ends, strict=True):
        raised = [None if end is None else float(np.exp(end)) for end in (low, high)]
        if kind == "optimum":
            optima[quantity][k] = replace(optima[quantity][k], low=raised[0], high=raised[1])
        elif kind == "exponent":
            laws[quantity] = replace(laws[quantity], exponent_low=low, exponent_high=high)
        else:
            laws[quantity] = replace(laws[quantity], coefficient_low=raised[0], coefficient_high=raised[1])
    return replace(fitted, optima={name: tuple(items) for name, items in optima.items()}, laws=laws)
