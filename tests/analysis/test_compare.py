import numpy as np
import pytest
from scipy.stats import t as student

from analysis import FitConfig, compare
from tests.analysis.synthetic import INSIDE, PAPER_GRID, Truth, study

QUICK = FitConfig(bootstrap=200, validation=False)


def test_differences_are_those_of_the_law():
    truth = Truth()
    comparison = compare(study(budgets=PAPER_GRID, fixed_penalty_nats=0.02)[0], QUICK)
    assert [row.budget_flops for row in comparison.rows] == sorted(PAPER_GRID)
    for row in comparison.rows[:5]:
        best = truth.optimum(row.budget_flops)
        fixed = float(truth.loss(1, row.budget_flops / truth.flops(1, 1))) + 0.02
        expected = float(truth.loss(best, row.budget_flops / truth.flops(best))) - fixed
        assert row.choice == "fitted curve"
        assert row.difference.nats == pytest.approx(expected, abs=1e-6)
        assert row.difference.bits_per_byte == pytest.approx(expected / np.log(2) / 4.65, abs=1e-6)
        assert row.mean_recurrence == pytest.approx(best, rel=1e-4)
    assert comparison.rows[5].choice == "lowest cell (selection)"
    assert comparison.rows[5].mean_recurrence == 12
    assert comparison.rows[5].why.startswith("the minimum lies above the swept range")


def test_one_seed_gives_no_verdict():
    comparison = compare(study(noise_nats=0.002)[0], QUICK)
    assert {row.difference.verdict for row in comparison.rows} == {"training noise unknown"}
    assert all(row.difference.low_nats is None for row in comparison.rows)
    assert "training noise unknown" in comparison.summary()


def test_replicates_give_verdicts_with_students_intervals():
    runs = study(noise_nats=0.003, replicates=((0, 1), (2, 2)), seed=5)[0]
    comparison = compare(runs)
    row = comparison.rows[0]
    assert row.difference.verdict == "looped lower"
    assert row.difference.low_nats < row.difference.nats < row.difference.high_nats < 0
    cell = next(c for c in row.recurrences if c.mean_recurrence == 4)
    assert cell.seeds == 3
    half = student.ppf(0.975, 4) * comparison.noise.sd_nats * np.sqrt(1 / 3 + 1)
    assert cell.difference.high_nats - cell.difference.nats == pytest.approx(half, rel=1e-9)


def test_a_gap_within_the_noise_is_not_resolved():
    runs = study(noise_nats=0.0, budgets=INSIDE[:3], replicates=((0, 1), (1, 2)))[0]
    fixed = runs["kind"] == "fixed"
    runs.loc[fixed, "val_loss_nats"] = runs.groupby("target_flops")["val_loss_nats"].transform("min")[fixed]
    runs["val_loss_nats"] += 0.01 * np.random.default_rng(0).standard_normal(len(runs))
    verdicts = {row.difference.verdict for row in compare(runs, QUICK).rows}
    assert verdicts == {"not resolved"}


def test_a_study_without_a_control_says_so():
    comparison = compare(study(fixed=False)[0], QUICK)
    assert comparison.rows == ()
    assert comparison.notes == ("140M, paper FLOPs: no fixed-depth control",)


def test_shuffled_rows_give_the_same_bytes():
    runs = study(noise_nats=0.002, replicates=((0, 1),))[0]
    assert compare(runs.sample(frac=1, random_state=0)).to_json() == compare(runs).to_json()
