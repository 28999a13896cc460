import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from analysis import FitConfig, compare
from tests.analysis.compare.test_score_difference import items_of
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
    assert compare(runs.sample(frac=1, random_state=0), QUICK).to_json() == compare(runs, QUICK).to_json()


def test_the_summary_tells_every_recurrence_and_marks_the_best():
    runs = study(budgets=PAPER_GRID[3:], noise_nats=0.003, replicates=((0, 1), (2, 2)), seed=5)[0]
    comparison = compare(runs, QUICK)
    lines = comparison.summary().splitlines()
    head = next(line for line in lines if line.lstrip().startswith("budget"))
    told = lines[lines.index(head) + 1 :][: 3 * 7]
    trained = [line for line in told if "*" not in line]
    cells = [cell for row in comparison.rows for cell in row.recurrences]
    assert len(trained) == len(cells) == 18
    for line, cell in zip(trained, cells, strict=True):
        d = cell.difference
        assert f"  {cell.mean_recurrence:g}  " in line
        assert f"{d.nats:+.4f}  [{d.low_nats:+.4f}, {d.high_nats:+.4f}]" in line
        assert f"{d.bits_per_byte:+.4f}  {d.verdict}" in line
        assert line.find("[") == told[0].find("[")  # aligned
    assert sum(" 3/1 " in line for line in trained) == 2
    for line, row in zip([line for line in told if "*" in line], comparison.rows, strict=True):
        d = row.difference
        assert line.split("*")[1].split()[0] == f"{row.mean_recurrence:.3g}"
        assert f"{d.nats:+.4f}  [{d.low_nats:+.4f}, {d.high_nats:+.4f}]" in line
        assert ("curve" if row.choice == "fitted curve" else "lowest") in line


def test_one_paragraph_says_who_is_lower_by_how_much_and_what_is_not_known():
    runs = study(budgets=PAPER_GRID[3:], noise_nats=0.003, replicates=((0, 1), (2, 2)), seed=5)[0]
    comparison = compare(runs, QUICK)
    text = " ".join(comparison.summary().split("\n\n")[-1].split())
    lowest = min(comparison.rows, key=lambda row: row.difference.nats)
    d = lowest.difference
    assert "3 budgets: 3 with looped lower." in text
    least = f"{d.nats:+.4f} [{d.low_nats:+.4f}, {d.high_nats:+.4f}]"
    assert f"lies between {least} at {lowest.budget_flops / 1e19:g}e19 FLOPs and " in text
    assert "the best recurrence at 1 budget, where no minimum of a fitted curve was accepted" in text
    refused = sum(row.saving.ratio is None for row in comparison.rows)
    assert f"the compute at equal loss at {refused} budget" in text
    assert "Core (no runs to compare were evaluated on tasks)" in text


def test_verdicts_of_all_kinds_are_counted():
    budgets = INSIDE[:3]
    runs = study(noise_nats=0.0, budgets=budgets, fixed_penalty_nats=0.0)[0]
    fixed = runs["kind"] == "fixed"
    best = runs[~fixed].groupby("target_flops")["val_loss_nats"].min()
    for budget, gap in zip(budgets, (0.1, 0.0, -0.1), strict=True):  # looped lower, equal, fixed lower
        runs.loc[fixed & (runs["target_flops"] == budget), "val_loss_nats"] = best[budget] + gap
    twice = [runs.assign(seed=seed, run_id=runs["run_id"] + f"-{seed}") for seed in (0, 1)]
    runs = pd.concat(twice)
    runs["val_loss_nats"] += 0.003 * np.random.default_rng(0).standard_normal(len(runs))
    chances = {run.run_id: 0.9 if run.kind == "looped" else 0.3 for run in runs.itertuples()}
    comparison = compare(runs, QUICK, items_of(runs, chances))
    text = " ".join(comparison.summary().split("\n\n")[-1].split())
    assert "3 budgets: 1 with looped lower, 1 with fixed depth lower, 1 not resolved." in text
    assert "In core points (2 tasks), at the trained recurrence next to the best, at 3 of 3 budgets: " in text
    assert "2 paired" in comparison.summary()
    quiet = compare(runs[runs["seed"] == 0], QUICK)
    text = " ".join(quiet.summary().split("\n\n")[-1].split())
    assert "3 budgets: 3 with the verdict unknown." in text
    assert "[" not in text
    assert "the training noise (no cell has two seeds), so that no difference has a verdict" in text


def test_runs_that_scatter_more_than_seeds_widen_every_interval_of_the_group():
    runs, _ = study(noise_nats=0.002, replicates=((0, 1), (2, 2), (3, 4)), seed=3)
    bent = runs.copy()
    wave = 0.02 * np.cos(2.0 * bent["mean_recurrence"])  # no curve of the form bends like this
    bent["val_loss_nats"] += np.where(bent["kind"] == "looped", wave, 0.0)
    quiet, loud = compare(runs), compare(bent)
    assert loud.noise.sd_nats == pytest.approx(quiet.noise.sd_nats)
    (note,) = [note for note in loud.notes if "scatter around the fitted curves" in note]
    assert note.endswith("nats") and not any("scatter" in note for note in quiet.notes)
    for calm, wide in zip(quiet.rows, loud.rows, strict=True):
        for before, after in zip(calm.recurrences, wide.recurrences, strict=True):
            assert half(after.difference) > 2 * half(before.difference)
        assert half(wide.difference) > 2 * half(calm.difference)


def half(difference):
    return (difference.high_nats - difference.low_nats) / 2
