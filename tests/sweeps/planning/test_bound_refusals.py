"""A plan says that a law will be refused exactly where `fit` of the same grid refuses it."""

import pandas as pd
import pytest

import loopscale
from analysis import FitConfig, compare
from analysis.format import number
from analysis.isoflop.group import fit_groups
from analysis.isoflop.shared_shape import fit_shared
from analysis.isoflop.surface_estimator import fit_parametric
from analysis.stats.noise import NoiseFloor
from analysis.study.cross_run_laws import cross_run_laws, iso_depth_laws
from analysis.study.depth import depth_study
from sweeps.planning.bound_refusals import bound_refusals
from sweeps.planning.plan import plan
from tests.analysis.synthetic import INSIDE, Truth, study

QUICK = FitConfig(bootstrap=100, validation=False, profiles=False)
UNKNOWN = NoiseFloor(sd_nats=None, degrees_of_freedom=0)
LARGE = Truth(
    n_core=42_476_544,
    n_other=88_521_984,
    flops_fixed=1210e6,
    flops_per_loop=123e6,
    flops_per_backprop_loop=245e6,
)


def planned(runs):
    """Return runs as rows of a plan, in which None stands for no value."""
    return runs.astype(object).where(runs.notna(), None).to_dict("records")


def said(runs, words, max_depth=24):
    """Return True if one note on these runs has these words."""
    notes = [note for note in bound_refusals(planned(runs.assign(verdict="OK")), max_depth) if words in note]
    assert len(notes) < 2
    return bool(notes)


@pytest.mark.parametrize(
    ("budgets", "recurrences", "refused"),
    [
        (3, (2, 4, 6, 8), False),
        (2, (2, 4, 6, 8, 10, 12), True),
        (5, (2, 6, 12), True),
        (3, (2, 3, 4, 5, 6, 7), True),  # odd recurrences are not on the curve
    ],
)
def test_the_rule_of_optima_is_that_of_fit(budgets, recurrences, refused):
    runs = study(budgets=INSIDE[1 : 1 + budgets], recurrences=recurrences)[0]
    (group,) = fit_groups(runs, UNKNOWN, QUICK, (fit_shared,))[0]
    laws = group.estimator().laws
    assert said(runs, "laws of the optimal recurrence and tokens") == refused
    assert [law.exponent is None for law in laws.values()] == [refused] * 2


@pytest.mark.parametrize(
    ("budgets", "recurrences", "refused"),
    [(2, (2, 4, 6, 8), False), (2, (2, 4, 6), True), (4, (2, 4), True)],
)
def test_the_rule_of_the_surface_is_that_of_fit(budgets, recurrences, refused):
    runs = study(budgets=INSIDE[:budgets], recurrences=recurrences)[0]
    (group,) = fit_groups(runs, UNKNOWN, QUICK, (fit_parametric,))[0]
    assert said(runs, "the surface") == refused == bool(group.estimators[0].refusal)


@pytest.mark.parametrize(
    ("recurrences", "depths", "words"),
    [
        ((2, 4, 6, 8), 24, ""),
        ((2, 4), 24, "the law of the depth rate z over µ. It needs 4 looped runs at 3 recurrences"),
        ((2, 4, 6), 24, "4 looped runs at 3 recurrences; there are 3 at 3"),
        ((2, 4, 6, 8), 4, "every law of test-time depth. It needs 5 depths; evaluation.max_depth=4"),
    ],
)
def test_the_rule_of_depth_curves_is_that_of_fit(recurrences, depths, words):
    runs, rows = study(budgets=INSIDE[:1], recurrences=recurrences)
    found = depth_study(runs, rows[rows["depth"] <= depths], QUICK)
    assert (found.slope is None) == bool(words)
    refused = "depth rate", "test-time depth"
    assert any(said(runs, name, depths) for name in refused) == bool(words)
    assert not words or said(runs, words, depths)


@pytest.mark.parametrize(("curves", "refused"), [(2, True), (3, False)])
def test_the_rule_of_the_unified_law_is_that_of_fit(curves, refused):
    runs, rows = study(budgets=INSIDE[:1], recurrences=(2, 4, 6, 8)[:curves])
    groups = fit_groups(runs, UNKNOWN, QUICK, (fit_shared,))[0]
    (law,) = [law for law in cross_run_laws(groups, rows, QUICK) if law.law == "unified"]
    assert said(runs, "the unified law") == refused == (law.refusal is not None)


@pytest.mark.parametrize(
    ("scales", "budgets", "recurrences", "words"),
    [
        (2, 3, (2, 4), None),
        (
            1,
            3,
            (2, 4, 6, 8),
            "phi of the iso-depth law open, for which it needs two sizes (sweep.scales=[140M,...])",
        ),
        (2, 4, (4,), "phi of the iso-depth law open, for which it needs two recurrences"),
        (2, 1, (2, 4, 6), "the iso-depth law. It needs 7 runs of one recipe; there are 6"),
    ],
)
def test_the_rule_of_the_iso_depth_law_is_that_of_fit(scales, budgets, recurrences, words):
    parts = [
        study(truth, budgets=INSIDE[:budgets], recurrences=recurrences, scale=scale, fixed=False)[0]
        for truth, scale in ((Truth(), "140M"), (LARGE, "370M"))[:scales]
    ]
    runs = pd.concat(parts)
    (law,) = iso_depth_laws(fit_groups(runs, UNKNOWN, QUICK, (fit_shared,))[0], QUICK)
    lost = law.fit is None or any("phi" in phrase for phrase in law.fit.undetermined)
    assert lost == (words is not None)
    assert said(runs, words or "iso-depth") == lost


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"replicates": ((0, 0),)}, ""),
        ({}, "no interval and no verdict: no cell has two seeds"),
        (
            {"fixed": False, "replicates": ((0, 0),)},
            "140M: compare is bound to leave out 2 of 2 budgets, which have no fixed-depth control",
        ),
    ],
)
def test_the_rule_of_the_comparison_is_that_of_compare(change, words):
    runs = study(budgets=INSIDE[:2], recurrences=(2, 4), **change)[0]
    rows = compare(runs, QUICK).rows
    decided = [row for row in rows if row.difference.verdict != "training noise unknown"]
    assert len(decided) == (0 if words else 2)
    assert said(runs, words or "compare") == bool(words)


def test_cells_beside_the_budgets_have_no_control_and_the_remedy_says_where():
    inside = study(budgets=INSIDE[:2], recurrences=(2, 4))[0]
    beside = study(budgets=INSIDE[2:3], recurrences=(2, 4), fixed=False)[0]
    notes = bound_refusals(planned(pd.concat([inside, beside]).assign(verdict="OK")), 24)
    (note,) = (note for note in notes if "fixed-depth control" in note)
    assert "leave out 1 of 3 budgets" in note and f"control: {number(INSIDE[2])}. Add them to" in note


def test_dropped_cells_do_not_count_and_a_scale_has_one_line():
    runs = study(budgets=INSIDE[:3], recurrences=(2, 4, 6, 8))[0].assign(verdict="OK")
    runs.loc[runs["target_flops"] == INSIDE[0], "verdict"] = "DROP"
    (note,) = [note for note in bound_refusals(planned(runs), 24) if "recurrence and tokens" in note]
    assert note == (
        "140M: fit is bound to refuse laws of the optimal recurrence and tokens. They need 3 budgets with 4 "
        "or more recurrences on the curve (even µ); 2 of 2 have them"
    )


def test_a_plan_on_budgets_says_so_before_launch(tiny_sweep):
    grid = ["sweep.tokens=[]", "sweep.budgets_flops=[1e9,2e9]", "sweep.mean_recurrences=[2,4,6,8]"]
    notes = plan(loopscale.compose([*tiny_sweep, *grid, "sweep.min_steps=1"])).notes
    assert any("2 of 2 have them" in note for note in notes)
    enough = [*tiny_sweep, *grid[:1], "sweep.budgets_flops=[1e9,2e9,4e9]", *grid[2:], "sweep.min_steps=1"]
    assert not any("refuse laws" in note for note in plan(loopscale.compose(enough)).notes)
