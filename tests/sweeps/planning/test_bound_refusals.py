"""A plan says that a law will be refused exactly where `fit` of the same grid refuses it."""

import pytest

import loopscale
from analysis import FitConfig
from analysis.isoflop.group import fit_groups
from analysis.isoflop.shared_shape import fit_shared
from analysis.stats.noise import NoiseFloor
from sweeps.planning.plan import bound_refusals, plan
from tests.analysis.synthetic import INSIDE, study


@pytest.mark.parametrize(
    ("budgets", "recurrences", "refused"),
    [
        (3, (2, 4, 6, 8), False),
        (2, (2, 4, 6, 8, 10, 12), True),
        (5, (2, 6, 12), True),
        (3, (2, 3, 4, 5, 6, 7), True),  # odd recurrences are not on the curve
    ],
)
def test_the_rule_is_that_of_fit(budgets, recurrences, refused):
    runs = study(budgets=INSIDE[1 : 1 + budgets], recurrences=recurrences)[0]
    notes = bound_refusals(runs.assign(verdict="OK"))
    floor = NoiseFloor(sd_nats=None, degrees_of_freedom=0)
    config = FitConfig(bootstrap=100, validation=False)
    (group,) = fit_groups(runs, floor, config, (fit_shared,))[0]
    law = group.estimator().laws["mean_recurrence"]
    assert bool(notes) == refused == (law.exponent is None)


def test_dropped_cells_do_not_count_and_a_scale_has_one_line():
    runs = study(budgets=INSIDE[:3], recurrences=(2, 4, 6, 8))[0].assign(verdict="OK")
    runs.loc[runs["target_flops"] == INSIDE[0], "verdict"] = "DROP"
    (note,) = bound_refusals(runs)
    assert note == (
        "140M: fit is bound to refuse a law of the optimal recurrence. It needs 3 budgets with 4 or more "
        "recurrences on the curve (even µ); 2 of 2 have them"
    )


def test_a_plan_on_budgets_says_so_before_launch(tiny_sweep):
    grid = ["sweep.tokens=[]", "sweep.budgets_flops=[1e9,2e9]", "sweep.mean_recurrences=[2,4,6,8]"]
    notes = plan(loopscale.compose([*tiny_sweep, *grid, "sweep.min_steps=1"])).notes
    assert any("2 of 2 have them" in note for note in notes)
    enough = [*tiny_sweep, *grid[:1], "sweep.budgets_flops=[1e9,2e9,4e9]", *grid[2:], "sweep.min_steps=1"]
    assert not any("refuse" in note for note in plan(loopscale.compose(enough)).notes)
