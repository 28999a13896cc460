"""From loss to a task's score: a known sigmoid is found again within its intervals, noise is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import FitConfig, TableError, fit
from analysis.laws.task_score import fit_task_score
from analysis.study.cross_run_laws import fit_law_to_runs
from analysis.study.points_laws import fit_law_to_points
from tests.analysis.synthetic import INSIDE, study

CONFIG = FitConfig(bootstrap=100)
LOSSES = np.linspace(2.3, 3.6, 24)
BUDGETS = np.repeat([16e18, 8e18, 4e18, 2e18], 6)  # the less the loss, the larger


def score(loss):
    """Chance 0.02, ceiling 0.40, half of the gain at 2.9 nats."""
    return 0.02 + 0.38 / (1 + np.exp(4 * (loss - 2.9)))


def points(noise=0.0, seed=0, curve=score):
    drawn = curve(LOSSES) + noise * np.random.default_rng(seed).standard_normal(len(LOSSES))
    return pd.DataFrame({"loss": LOSSES, "score": drawn, "budget_flops": BUDGETS})


def test_a_sigmoid_without_noise_is_found_exactly_and_predicts_the_largest_budget():
    law = fit_task_score("core", points(), CONFIG)
    expected = {"chance": 0.02, "ceiling": 0.40, "k": 4.0, "L0": 2.9}
    assert law.parameters == pytest.approx(expected, rel=1e-6)
    assert law.predict(np.array([2.0, 2.9])) == pytest.approx(score(np.array([2.0, 2.9])))
    held_out = law.predictions[0]
    assert (held_out.losses, held_out.budget_flops, held_out.runs) == ("measured", 16e18, 6)
    assert held_out.error < 1e-9
    assert "chance 0.02 [0.02, 0.02], ceiling 0.4 [0.4, 0.4]" in law.summary()


def test_intervals_hold_the_true_scores():
    at = np.array([2.4, 2.7, 3.0, 3.3])
    held = []
    for seed in range(12):
        law = fit_task_score("core", points(0.005, seed), CONFIG)
        low, high = law.band(at)
        held.append((low <= score(at)) & (score(at) <= high))
    # 0.95 by design; the four intervals of a study are correlated, so the standard error is about 0.05.
    assert np.mean(held) > 0.8


def test_a_ceiling_that_the_scores_do_not_bend_towards_is_not_identified():
    """The lower tail of a sigmoid is an exponential, which has no ceiling."""
    law = fit_task_score("core", points(0.003, curve=lambda loss: 0.9 * np.exp(-1.5 * (loss - 1.9))), CONFIG)
    assert law.intervals["ceiling"][1] is None


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (points().iloc[:7], "7 runs with a score, at least 8 are needed"),
        (points().assign(loss=3.0), "1 distinct losses, at least 4 are needed"),
        (
            points(0.01, curve=lambda loss: 0 * loss),
            "the scores are at chance as the loss falls",
        ),
        (points(0.01, curve=lambda loss: 0.3 + 0.1 * loss), "the score does not rise as the loss falls"),
        (points().assign(score=1.0), "a score is 1: the error 1 - score must be positive"),
    ],
)
def test_what_the_runs_do_not_determine_is_refused(table, reason):
    law = fit_task_score("core", table, CONFIG)
    assert law.refusal.startswith(reason) and f"refused: {reason}" in law.summary()
    with pytest.raises(ValueError, match="no law of core over the loss"):
        law.predict(LOSSES)


def test_scores_in_per_cent_are_read_as_shares():
    law = fit_task_score("core", points().assign(score=100 * score(LOSSES)), CONFIG)
    assert law.parameters["ceiling"] == pytest.approx(0.4, rel=1e-6)
    assert "scores are read as per cent" in law.summary()


def test_a_table_of_points_is_fitted_by_its_columns():
    law = fit_law_to_points("task_score", points().drop(columns="budget_flops"), config=CONFIG)
    assert law.parameters["L0"] == pytest.approx(2.9) and law.predictions == ()
    with pytest.raises(TableError, match=r"points need score: say columns.score=NAME"):
        fit_law_to_points("task_score", points().drop(columns="score"), config=CONFIG)


def test_a_study_with_scores_shows_them_in_a_section_of_their_own():
    """Without noise the losses of the largest budget follow from those of the others."""
    runs, depths = study(budgets=INSIDE, fixed=False)
    assert fit(runs, depths, FitConfig(bootstrap=100, validation=False)).to_dict().get("task_laws") is None
    centre = float(runs["val_loss_nats"].median())
    scores = 0.02 + 0.38 / (1 + np.exp(4 * (runs["val_loss_nats"] - centre)))
    scored = runs.assign(core=scores, core_tasks=22.0)
    scored.loc[0, "core_tasks"] = 3.0
    fitted = fit(scored, depths, FitConfig(bootstrap=100, validation=False))
    (law,) = fitted.task_laws
    assert law.parameters == pytest.approx({"chance": 0.02, "ceiling": 0.4, "k": 4.0, "L0": centre}, rel=1e-3)
    assert [row.losses for row in law.predictions] == ["measured", "the iso_depth law"]
    assert all(row.error < 1e-4 for row in law.predictions)
    assert "Loss to task: Core, 29 runs: chance" in fitted.summary()
    assert "1 run left out: scored on fewer tasks" in fitted.summary()
    assert fit_law_to_runs("task_score", scored, depths, CONFIG).parameters == pytest.approx(law.parameters)
    with pytest.raises(TableError, match="law=task_score: no run has a score: loopscale eval"):
        fit_law_to_runs("task_score", runs, depths, CONFIG)
