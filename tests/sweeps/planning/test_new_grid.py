"""The grid of a new sweep where the law of its scale leaves little room."""

from __future__ import annotations

import math

import pytest

from model.config_validation import ConfigError
from sweeps.config.compose import compose_study
from sweeps.planning.known_window import EVERYWHERE, everywhere, known_window
from sweeps.planning.new_grid import Allowance, cost, fitted_grid, inside_grid, shortest
from sweeps.planning.new_sweep import closest_reference, looped_model

RECURRENCES = [2, 4, 6, 8]


def test_a_law_with_all_optima_outside_does_not_make_an_allowance_too_small():
    study = compose_study(["sweep=study_15k"])
    free = fitted_grid(Allowance(flops=1e14), RECURRENCES, study)
    for highest in (0.0, 1.0):
        found = fitted_grid(Allowance(flops=1e14), RECURRENCES, study, lambda swept, top=highest: (0.0, top))
        assert found == free


def test_the_allowance_that_a_refusal_names_is_the_least_that_suffices():
    """With a known law budgets may stand 1.6 apart: (1 + 1.6 + 2.56) x 5 curves and two pairs of seeds."""
    study = compose_study(["sweep=study_15k"])

    def window(swept):
        return 0.0, math.inf

    with pytest.raises(ConfigError) as refused:
        fitted_grid(Allowance(flops=1e6), RECURRENCES, study, window, vary=False)
    needed = float(str(refused.value).split("give allowance=")[1].split(",")[0])
    recurrences, budgets = fitted_grid(Allowance(flops=needed), RECURRENCES, study, window, vary=False)
    assert recurrences == RECURRENCES and len(budgets) == 3
    assert budgets[1] / budgets[0] == pytest.approx(1.6, rel=1e-4)
    assert needed == pytest.approx(budgets[0] * ((1 + 1.6 + 2.56) * 5 + 2 * (1 + 1.6)), rel=1e-2)
    assert cost((recurrences, budgets)) <= needed


def window_of(scale):
    reference = closest_reference(scale, looped_model(scale))
    return known_window(shortest(compose_study([f"sweep={reference.name}"])), reference)


def test_a_law_without_an_optimum_at_its_own_budgets_is_no_known_law():
    """A and alpha of study_60k lie at a bound: its least recurrence was best at 1e23 FLOPs."""
    assert window_of("looped_60k") is everywhere


def test_recurrences_that_no_budget_makes_optimal_have_no_window():
    study, window = compose_study(["sweep=study_30k"]), window_of("looped_30k")
    low, high = window([2, 4, 8])
    assert 1e11 < low < high < 1e15
    assert window([2, 4, 8, 5000]) == (low, math.inf)
    assert window([5000, 20000]) == (math.inf, math.inf) != EVERYWHERE
    assert inside_grid(study, [5000, 6000, 20000], window, vary=False) is None
