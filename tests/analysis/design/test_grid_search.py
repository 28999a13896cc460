"""Ranking cells to first order, and choosing them within limits."""

import numpy as np
import pytest
from scipy import stats

from analysis.design.fisher_information import HOPELESS, fisher_information
from analysis.design.grid_search import Limits, best_grids, cost, next_runs
from analysis.design.ground_truth import at_published_optima, published
from analysis.design.simulate import Noise, estimate, grid
from tests.analysis.synthetic import study

BUDGETS = np.array([2e18, 4e18, 8e18, 16e18, 32e18])
DEPTHS = np.array([2.0, 4, 6, 8, 10, 12, 16, 20, 24, 32])


def bench(budgets=BUDGETS, recurrences=DEPTHS):
    return grid(study(budgets=budgets, recurrences=recurrences, fixed=False)[0], "non_embedding")


def law_of(made):
    return at_published_optima(published("140m", made.runs, "non_embedding"), "140m", made.shape)


def knowledge(sd=0.005, target=None):
    made = bench()
    return fisher_information([law_of(made)], made.shape, BUDGETS, DEPTHS, sd, target)


def limits(**changes):
    given = {"run_flops": BUDGETS, "control_flops": 0 * BUDGETS, "allowance_flops": 6e20, "runs": 48}
    return Limits(**{**given, **changes})


@pytest.mark.parametrize("target", [None, 1.28e20])
def test_first_order_is_what_many_studies_scatter_by_at_low_noise(target):
    """Student's factor taken out, the width is that of the central 95 % of 600 estimates."""
    made, sd = bench(), 2e-4
    law = law_of(made)
    clean = made.expected(law)
    losses = clean + Noise(seed_nats=sd).draw(made.runs, 600, 1)
    found = estimate(made, clean, losses, thorough=False)[0]
    level, slope = found.line(made, "mean_recurrence", target or 1.0)
    spread = np.ptp(np.quantile(level if target else slope, [0.025, 0.975]))
    freedom = len(made.runs) - 3 * len(BUDGETS) - 2
    (width,) = fisher_information([law], made.shape, BUDGETS, DEPTHS, sd, target).widths(
        np.ones((5, 10), int)
    )
    student = stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)
    assert np.exp(width) / student == pytest.approx(spread, rel=0.12)


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_more_run_is_what_the_larger_grid_would_give(seeds):
    known = knowledge()
    counts = np.zeros((5, 10), int)
    counts[:4, [0, 2, 4, 7]] = seeds
    counts[4, 3] = 1
    after = known.widths_with_one_more(counts)
    for place in np.ndindex(counts.shape):
        larger = counts.copy()
        larger[place] += 1
        assert after[(0, *place)] == pytest.approx(known.widths(larger)[0], rel=1e-7)


def test_too_few_budgets_or_runs_give_no_interval():
    known = knowledge()
    counts = np.zeros((5, 10), int)
    counts[:2] = 1
    assert known.widths(counts, penalised=False)[0] == HOPELESS  # two budgets carry no exponent
    counts[:3], counts[:3, [0, 2, 4, 7]] = 0, 1
    assert known.widths(counts, penalised=False)[0] < HOPELESS  # 12 runs, one degree of freedom
    assert known.widths(np.zeros((5, 10), int), penalised=False)[0] == HOPELESS


def test_a_minimum_near_the_end_of_the_grid_costs():
    known = knowledge()
    counts = np.zeros((5, 10), int)
    counts[1:4, :8] = 1
    cut = counts.copy()
    cut[3, 5:8] = 0  # the optimum at 16e18 lies at 7.6, the last run there is now at 10
    assert known.widths(cut)[0] - known.widths(cut, penalised=False)[0] > 0.1
    assert known.widths(counts)[0] == pytest.approx(known.widths(counts, penalised=False)[0], abs=0.05)


def test_next_runs_keep_to_their_limits_and_narrow_the_interval():
    known, start = knowledge(), np.zeros((5, 10), int)
    start[:3, [0, 1, 3, 5]] = 1
    before = float(known.widths(start)[0])
    for runs, allowance in ((3, 1e20), (8, 1.92e20), (8, 3e19)):
        within = limits(allowance_flops=allowance, runs=runs)
        counts = next_runs(known, start, within)
        assert (counts >= start).all() and 0 < (counts - start).sum() <= runs
        assert cost(counts, start, within) <= allowance
        assert counts.max() == 1  # one seed a cell unless more are allowed
        assert known.widths(counts)[0] < before
    assert np.array_equal(next_runs(known, start, limits(allowance_flops=1e17, runs=8)), start)


def test_an_opened_budget_counts_with_its_control():
    start, counts = np.zeros((5, 10), int), np.zeros((5, 10), int)
    start[0, :4], counts[0, :5], counts[1, :4] = 1, 1, 1
    within = limits(control_flops=BUDGETS)
    assert cost(counts, start, within) == pytest.approx(2e18 + 4 * 4e18 + 4e18)


def test_best_grids_are_grids_within_the_allowance(monkeypatch):
    monkeypatch.setattr("analysis.design.grid_search.PROMISING", 3)
    known = knowledge()
    within = limits(allowance_flops=4e20, runs=40, per_cell=2)
    found = best_grids(known, within, 3)
    widths = [float(known.widths(counts)[0]) for counts in found]
    for counts in found:
        rows = counts[counts.sum(1) > 0]
        assert len(rows) >= 4 and ((rows > 0).sum(1) >= 4).all()
        assert counts.sum() <= 40 and cost(counts, 0 * counts, within) <= 4e20
    assert widths == sorted(widths)
    plain = np.zeros((5, 10), int)
    plain[:4, :4] = 1
    assert widths[0] < known.widths(plain)[0]
    assert best_grids(known, limits(allowance_flops=1e19), 3) == []
