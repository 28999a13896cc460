"""What a pursuit asks, and the answer that its runs give."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.config import Array, FitConfig
from analysis.design.simulate import Grid
from analysis.isoflop.curves import Quantity
from analysis.isoflop.estimator import Inputs
from analysis.isoflop.power_law import power_law
from analysis.isoflop.shared_shape import fit_shared

Asked = Literal["exponent", "optimum", "looped_or_fixed"]
RESAMPLES = 400
# By how much the intervals of `fit` are widened about the value. Cells are chosen by looking at losses and a
# pursuit stops when the interval happens to be narrow. Of 229 simulated pursuits that stopped by the
# intervals of `fit` these held the truth in 92 %; of 307 that stopped by 1.2 times as wide ones, those did in
# 98 %. `validation/pursue.py` measures the factor between with seeds of its own.
STRETCH = 1.1


@dataclass(frozen=True, kw_only=True)
class Question:
    """The number that is asked, of the compute-optimal recurrence or tokens, at `target_flops` if it has any.

    A width is that of the 95 % interval: of the exponent itself, of the natural log of an optimum (0.1 is
    ten percent of it), or in nats of a difference of losses.
    """

    asked: Asked
    quantity: Quantity = "mean_recurrence"
    target_flops: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A value with its 95 % interval, or the reason why there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    width: float | None = None
    budgets_flops: tuple[float, ...] = ()  # with an accepted optimum
    refusal: str | None = None


def inputs_of(grid: Grid, losses: Array, seed: int) -> Inputs:
    """Return what the estimators are given for runs that ended at `losses` [runs]."""
    return grid.inputs(losses, FitConfig(bootstrap=RESAMPLES, seed=seed, validation=False), "pursuit")


def answer(question: Question, inputs: Inputs, budgets_flops: Collection[float]) -> Answer:
    """Return what finished runs say, by the widened intervals of `fit` over some of the budgets.

    The budgets are chosen without a look at their own minima. `fit` keeps those with a minimum inside the
    recurrences, and near an end it keeps a budget only where noise has moved the minimum inwards.
    """
    fit = fit_shared(inputs)
    if fit.noise is None:
        return Answer(refusal=fit.refusal)
    optima = [one for one in fit.optima[question.quantity] if one.budget_flops in budgets_flops]
    law = power_law(question.quantity, optima, inputs.draws.factor(fit.noise), inputs.config)
    if law.exponent is None:
        return Answer(refusal=law.refusal, budgets_flops=law.budgets_flops)
    if question.target_flops is None:
        ends = (law.exponent, law.exponent_low, law.exponent_high)
    else:
        at = np.array([question.target_flops])
        low, high = law.band(at, inputs.config.confidence)
        ends = (float(law.predict(at)[0]), float(low[0]), float(high[0]))
    return _answer(question, *ends, law.budgets_flops)


def _answer(
    question: Question, value: float, low: float | None, high: float | None, budgets: tuple[float, ...]
) -> Answer:
    if low is None or high is None or not np.isfinite([low, high]).all():
        return Answer(value=value, budgets_flops=budgets, refusal="an end of the interval is open")
    if question.target_flops is None:
        low, high = value - STRETCH * (value - low), value + STRETCH * (high - value)
        width = high - low
    else:
        low, high = value * (low / value) ** STRETCH, value * (high / value) ** STRETCH
        width = float(np.log(high / low))
    return Answer(value=value, low=low, high=high, width=width, budgets_flops=budgets)
