"""The budgets at which the known law of a scale has its optimum inside a sweep's recurrences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sweeps.config.study import StudyConfig
from sweeps.planning.new_sweep import Reference
from sweeps.planning.plan import plan

INSIDE = 1.4  # factor between an optimum and the ends of its curve at which most seeds accept it
SEARCHED = (1e8, 1e26)  # FLOPs
EVERYWHERE = (0.0, math.inf)

# recurrences -> the least and the largest budget with the optimum well inside them
Window = Callable[[Sequence[int]], tuple[float, float]]


def everywhere(recurrences: Sequence[int]) -> tuple[float, float]:
    """Return the window where no law is known: all budgets."""
    return EVERYWHERE


def known_window(study: StudyConfig, reference: Reference) -> Window:
    """Return the window of the reference's law for runs of `study`, one that every budget is long enough for.

    It is `everywhere` if the reference is of another scale, its results are not there, or its law has no
    optimum at its own budgets: the runs did not determine it.
    """
    (scale,) = study.runs
    if scale != reference.scale or reference.study is None:
        return everywhere
    from scipy.optimize import brentq  # here: a plan of another scale needs no scipy

    from analysis.config import FitConfig
    from analysis.design.ground_truth import REACH, fitted
    from analysis.isoflop.geometry import geometry

    runs, count = plan(study).accepted, FitConfig().parameter_count
    if runs.empty:
        return everywhere
    law = fitted(reference.study / "laws.json", runs, count)
    shape = geometry(runs[runs["kind"] == "looped"], count)
    own = [law.optimum(shape, flops) for flops in reference.budgets_flops]
    if min(own) < 1.01 * REACH[0] or max(own) > 0.99 * REACH[1]:
        return everywhere
    first, last = (law.optimum(shape, flops) for flops in SEARCHED)

    def budget(optimum: float) -> float:
        if not first < optimum < last:  # no budget is small or large enough
            return 0.0 if optimum <= first else math.inf
        return float(np.exp(brentq(lambda c: law.optimum(shape, np.exp(c)) - optimum, *np.log(SEARCHED))))

    def window(recurrences: Sequence[int]) -> tuple[float, float]:
        low, high = min(recurrences), max(recurrences)
        if high <= INSIDE**2 * low:  # they lie too close together for an optimum well inside
            return EVERYWHERE
        return budget(low * INSIDE), budget(high / INSIDE)

    return window


def outside(recurrences: Sequence[int], budgets: Sequence[float], window: Window) -> int:
    """Return how many budgets have their optimum at an edge of the recurrences or beyond."""
    low, high = window(recurrences)
    return sum(not low <= flops <= high for flops in budgets)
