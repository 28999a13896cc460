"""Core points, looped minus fixed, against sums done by hand and against simulated populations."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from analysis import FitConfig, compare
from tests.analysis.synthetic import INSIDE, study

QUICK = FitConfig(bootstrap=100, validation=False)


def items_of(runs, chances, tasks=(("arc", 0.25, 40), ("boolq", 0.5, 30)), seed=0):
    """Answers of every run: right with its chance (by run id), items of their own difficulty."""
    rng = np.random.default_rng(seed)
    frames = []
    for task, baseline, count in tasks:
        hardness = rng.random(count)
        for run_id in runs["run_id"]:
            right = (hardness < chances[run_id]).astype(float)
            frames.append(
                pd.DataFrame(
                    {
                        "run_id": run_id,
                        "suite": "core",
                        "task": task,
                        "item": range(count),
                        "data_digest": "0",
                        "baseline": baseline,
                        "correct": right,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def test_points_and_errors_are_those_of_the_definition():
    runs = study(budgets=INSIDE[:1], recurrences=(2, 4), replicates=((0, 0), (0, 2)))[0]
    chances = {run_id: 0.5 + 0.03 * k for k, run_id in enumerate(sorted(runs["run_id"]))}
    items = items_of(runs, chances)
    (row,) = compare(runs, QUICK, items).rows
    cell = row.recurrences[0]
    (found,) = cell.scores
    own = runs[runs["mean_recurrence"] == 2]["run_id"]
    other = runs[runs["kind"] == "fixed"]["run_id"]

    def score(run_id):
        mine = items[items["run_id"] == run_id].groupby("task")["correct"].mean()
        return 100 * ((mine["arc"] - 0.25) / 0.75 + (mine["boolq"] - 0.5) / 0.5) / 2

    looped, fixed = np.array([score(i) for i in own]), np.array([score(i) for i in other])
    assert found.points == pytest.approx(looped.mean() - fixed.mean()) and found.tasks == 2
    assert cell.paired  # both have seeds 0, 1 and 2: residuals of a two-way layout, two degrees of freedom
    residual = (looped - fixed) - (looped - fixed).mean()
    sd = np.sqrt((residual**2).sum() / 2 / 2)
    assert found.seeds_se == pytest.approx(sd * np.sqrt(2 / 3))
    pivot = items.pivot(index=["task", "item"], columns="run_id", values="correct")
    gap = pivot[own].mean(axis=1) - pivot[other].mean(axis=1)
    variance = gap["arc"].var() / 40 / 0.75**2 + gap["boolq"].var() / 30 / 0.5**2
    assert found.items_se == pytest.approx(100 / 2 * np.sqrt(variance))
    total = found.items_se**2 + found.seeds_se**2
    freedom = 2 * (total / found.seeds_se**2) ** 2
    assert found.high - found.points == pytest.approx(student.ppf(0.975, freedom) * np.sqrt(total))


def test_one_seed_gives_items_alone_and_no_verdict():
    runs = study(budgets=INSIDE[:1], recurrences=(2, 4))[0]
    better = {run_id: 0.9 if "looped" in run_id else 0.3 for run_id in runs["run_id"]}
    comparison = compare(runs, QUICK, items_of(runs, better))
    (found,) = comparison.rows[0].nearest().scores
    assert found.low > 0 and found.verdict == "items only, training noise unknown"
    assert "training noise unknown" in comparison.summary()


def test_a_run_without_an_evaluation_has_no_difference():
    runs = study(budgets=INSIDE[:1], recurrences=(2, 4))[0]
    items = items_of(runs, dict.fromkeys(runs["run_id"], 0.5))
    some = items[~items["run_id"].str.contains("mu4")]
    cells = compare(runs, QUICK, some).rows[0].recurrences
    assert [len(cell.scores) for cell in cells] == [1, 0]


def test_intervals_hold_the_truth_over_seeds_and_items():
    """Skill of a run is normal about its side's, items are drawn: 40 studies, three seeds a side."""
    runs = study(budgets=INSIDE[:1], recurrences=(2,), replicates=((0, 0), (0, 1)))[0]
    held, rng = 0, np.random.default_rng(0)
    many = (("arc", 0.25, 400), ("boolq", 0.5, 300))
    middle = {"looped": 0.55, "fixed": 0.50}
    truth = 100 * (0.05 / 0.75 + 0.05 / 0.5) / 2
    from analysis.compare.score_difference import suite_scores

    looped = runs["run_id"][runs["kind"] == "looped"].tolist()
    fixed = runs["run_id"][runs["kind"] == "fixed"].tolist()
    for number in range(40):
        chances = {row.run_id: middle[row.kind] + 0.02 * rng.standard_normal() for row in runs.itertuples()}
        (suite,) = suite_scores(runs, items_of(runs, chances, many, seed=number))
        found = suite.difference(looped, fixed, False, QUICK)
        held += found.low <= truth <= found.high
    assert held >= 33  # of 40, at 95 %: fewer happen once in two hundred times
