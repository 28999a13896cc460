"""What every public result offers: frames, a plot, text, HTML and LaTeX, pickling, copies and equality."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import FitConfig, compare, fit, fit_law, isoflop
from analysis.compare.arms import compare_arms
from analysis.compare.multiplier import compare_with_transformers
from analysis.laws.curve_laws import fit_curves
from analysis.laws.function_law import as_law
from analysis.laws.task_score import fit_task_score
from analysis.published.comparison import published_comparison
from analysis.study.device_hours import fit_device_hours
from tests.analysis.ladders import ladder_runs
from tests.analysis.synthetic import INSIDE, Truth, study

QUICK = FitConfig(bootstrap=100, validation=False, profiles=False)
# Results with figures of their own.
FITTED = ("law", "own", "one_column", "curves", "task", "points", "study", "envelope", "hours")
DRAWN = (*FITTED, "published", "multiplier")


def own(params, tokens, *, E, A, alpha, B, beta):
    return E + A * params**-alpha + B * tokens**-beta


@functools.cache
def result(name):
    rng = np.random.default_rng(0)
    if name in ("law", "own"):
        params, tokens = (
            m.ravel() for m in np.meshgrid(np.geomspace(1e7, 3e9, 5), np.geomspace(1e9, 1e12, 5))
        )
        losses = 1.7 + 406.0 * params**-0.34 + 411.0 * tokens**-0.28 + 0.01 * rng.standard_normal(25)
        law = "surface" if name == "law" else as_law(own, starts={"alpha": 0.3, "beta": 0.3})
        bootstrap = 20 if name == "law" else 0
        return fit_law(law, {"params": params, "tokens": tokens}, losses, bootstrap=bootstrap)
    if name == "one_column":
        x = np.geomspace(1e17, 1e21, 20)
        return fit_law(
            "power_law", {"x": x}, 3 * x**0.5 * np.exp(0.05 * rng.standard_normal(20)), bootstrap=20
        )
    if name == "curves":
        depth = np.tile(np.arange(1.0, 13.0), 2)
        loss = 3 + np.exp(-0.5 * depth) + 1e-3 * rng.standard_normal(24)
        return fit_curves(
            "saturating", pd.DataFrame({"run_id": list("a" * 12 + "b" * 12), "depth": depth, "loss": loss})
        )
    if name == "task":
        loss = np.linspace(2.3, 3.6, 24)
        score = 0.02 + 0.38 / (1 + np.exp(4 * (loss - 2.9))) + 0.005 * rng.standard_normal(24)
        return fit_task_score("core", pd.DataFrame({"loss": loss, "score": score}), QUICK)
    if name == "points":
        budgets = np.repeat(np.geomspace(1e18, 1e20, 3), 6)
        params = np.sqrt(budgets / 120) * np.tile(np.geomspace(0.2, 5, 6), 3)
        loss = 1.69 + 400.0 * params**-0.31 + 400.0 * (budgets / 6 / params) ** -0.31
        return isoflop(pd.DataFrame({"compute": budgets, "x": params, "loss": loss}), config=QUICK)
    runs, depths = study(budgets=INSIDE[:3], noise_nats=0.002)
    if name == "study":
        return fit(runs, depths, QUICK)
    if name == "hours":
        looped = runs[runs["kind"] == "looped"]
        per_token = 2e-5 + 1e-6 * looped["mean_recurrence"]
        return fit_device_hours(looped.assign(device_s=looped["tokens"] * per_token), QUICK)
    if name == "multiplier":
        return compare_with_transformers(ladder_runs(noise_nats=0.003, equal_flops=False), QUICK)
    if name == "published":
        return published_comparison()
    if name == "envelope":
        rates = [
            runs.assign(
                adamw_learning_rate=rate,
                run_id=runs["run_id"] + f"-{rate}",
                val_loss_nats=runs["val_loss_nats"] + worse,
            )
            for rate, worse in ((0.001, 0.02), (0.002, 0.0))
        ]
        (one,) = fit(pd.concat(rates, ignore_index=True), depths[:0], QUICK).envelopes
        return one
    if name == "compare":
        return compare(runs, QUICK)
    other = runs.assign(injection="linear", run_id=runs["run_id"] + "-linear")
    return compare_arms(pd.concat([runs, other], ignore_index=True), "injection", QUICK)


@pytest.mark.parametrize("name", [*DRAWN, "compare", "arms"])
def test_a_result_is_pickled_copied_and_compared(name):
    before = result(name)
    for again in (pickle.loads(pickle.dumps(before)), copy.deepcopy(before)):
        assert again == before and again.to_json() == before.to_json()
        assert again.summary() == before.summary()
    assert before != result("law" if name != "law" else "own")


def test_a_pickled_isoflop_result_predicts_and_draws_as_before():
    before = result("points")
    again = pickle.loads(pickle.dumps(before))
    pd.testing.assert_frame_equal(again.predict(3e19), before.predict(3e19))
    for one, other in zip(again.group.estimators, before.group.estimators, strict=True):
        sizes = np.geomspace(1e8, 1e9, 5)
        np.testing.assert_array_equal(one.curve("params", 1, sizes), other.curve("params", 1, sizes))
        np.testing.assert_array_equal(one.band("params", 1, sizes), other.band("params", 1, sizes))


@pytest.mark.parametrize("name", DRAWN)
def test_a_result_has_frames_text_and_a_plot(name):
    found = result(name)
    frame, ends = found.params, found.conf_int()
    pd.testing.assert_frame_equal(frame, found.to_frame())
    assert {"value", "low", "high"} <= set(frame.columns) and list(ends.columns) == ["low", "high"]
    assert len(ends) == len(frame)
    within = frame["value"].between(ends["low"], ends["high"]) | frame["value"].isna()
    assert within.mean() > 0.6  # at 20 resamples
    assert len(repr(found).split("\n")) < 30
    page = found._repr_html_()
    assert page.count("<table") == 1 and "[" in page and "overflow-x" in page
    assert found.to_latex().startswith(r"\begin{tabular}")
    ax = found.plot()
    assert analysis.plot(found, ax) is ax
    assert ax.get_xlabel() and ax.get_ylabel() and (ax.lines or ax.collections)


@pytest.mark.parametrize("name", DRAWN)
def test_intervals_at_another_level_are_wider_or_narrower_by_it(name):
    """Normal: 1.64 of 1.96 standard errors hold 90 %. Open ends stay open."""
    found = result(name)
    pd.testing.assert_frame_equal(found.conf_int(0.95), found.conf_int())
    width = found.conf_int().diff(axis=1)["high"]
    narrow = found.conf_int(0.5).diff(axis=1)["high"]
    closed = np.isfinite(width) & np.isfinite(narrow)
    assert closed.any()
    assert (narrow[closed] < width[closed]).all()


@pytest.mark.parametrize("name", FITTED)
def test_a_result_has_residuals_and_a_covariance(name):
    found = result(name)
    covariance, frame = found.cov, found.to_frame()
    assert list(covariance.index) == list(covariance.columns)
    assert set(covariance.index) <= set(frame.index)
    known = frame.loc[covariance.index]
    width = (known["high"] - known["low"]).to_numpy(float)
    errors = np.sqrt(np.diagonal(covariance.to_numpy(float)))
    inside = np.isfinite(width) & (width > 0)
    assert inside.any()
    assert np.median(width[inside] / errors[inside]) == pytest.approx(2 * 1.96, rel=0.5)
    assert np.isfinite(found.resid).mean() > 0.9


def test_residuals_and_covariances_are_those_of_the_noise():
    """Of 5 % on optima and .002 nats on a study; an interval is 3.9 standard errors wide."""
    law, found = result("one_column"), result("study")
    assert np.log1p(law.resid / law.predict(law.data)).std() == pytest.approx(0.05, rel=0.4)
    assert len(found.resid) == found.groups[0].cells.loss_nats.size
    assert found.resid.std() == pytest.approx(0.002, rel=0.5) and abs(found.resid.mean()) < 0.001
    row = found.params.iloc[0]
    error = np.sqrt(found.cov.to_numpy()[0, 0])
    assert (row["high"] - row["low"]) / error == pytest.approx(2 * 1.96, rel=0.4)
    assert result("task").resid.std() == pytest.approx(0.005, rel=0.5)
    assert result("curves").resid.std() == pytest.approx(1e-3, rel=0.5)


def test_what_cannot_be_drawn_says_so():
    with pytest.raises(TypeError, match=r"^Truth has no plot: its figures are those of report$"):
        analysis.plot(Truth())
