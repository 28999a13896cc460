"""`fit law=NAME` on runs: how its points are resampled is what the user asked for."""

import json

import numpy as np
import pytest

from analysis import FitConfig, TableError, fit
from analysis.study.cross_run_laws import fit_law_to_runs
from tests.analysis.synthetic import INSIDE, PAPER_GRID, Truth, study

pytestmark = pytest.mark.xdist_group("run_laws")  # what they share is made once


def width(found, name="beta"):
    low, high = found.intervals[name]
    return high - low


@pytest.fixture(scope="module")
def shared_noise():
    """Six recurrences at six budgets; the runs of one recurrence branched from one trunk, whose noise of .01
    nats they share, with .0005 nats of their own.
    """
    runs, depths = study(budgets=PAPER_GRID, noise_nats=0.0005, fixed=False)
    runs["trunk_id"] = "trunk " + runs["mean_recurrence"].astype(int).astype(str)
    trunks = runs["trunk_id"].unique()
    shared = dict(zip(trunks, 0.01 * np.random.default_rng(3).standard_normal(len(trunks)), strict=True))
    return runs.assign(val_loss_nats=runs["val_loss_nats"] + runs["trunk_id"].map(shared)), depths


def test_a_law_of_runs_is_resampled_as_asked(shared_noise):
    said = {
        how: fit_law_to_runs("surface", *shared_noise, FitConfig(bootstrap=300, resampling=how))
        for how in ("noise", "pairs", "stratified", "block")
    }
    assert said["noise"].resampling == said["pairs"].resampling == "300 resamples, pairs, seed 0"
    assert said["stratified"].resampling == "300 resamples, stratified, seed 0"
    assert said["block"].resampling == (
        "300 resamples, block, seed 0; 6 blocks are too few for percentiles: "
        "Student's t with 5 degrees of freedom"
    )
    # Six recurrences tell of alpha through six trunks, not through 36 independent runs.
    assert width(said["block"], "E") > 1.5 * width(said["pairs"], "E")


def test_budgets_and_other_columns_may_be_blocks(shared_noise):
    by_budget = FitConfig(bootstrap=100, resampling="block", block="target_flops")
    assert "6 blocks are too few" in fit_law_to_runs("surface", *shared_noise, by_budget).resampling
    with pytest.raises(TableError, match=r"^block=nothing is no column of the runs table$"):
        fit_law_to_runs("surface", *shared_noise, FitConfig(resampling="block", block="nothing"))


def test_depth_curves_are_drawn_whole():
    """Every run's own trunk, or none: 24 and more blocks; pairs of points would pretend to 264."""
    runs, depths = study(budgets=INSIDE[:4], noise_nats=0.002, fixed=False)
    for how in ("noise", "pairs"):
        found = fit_law_to_runs("unified", runs, depths, FitConfig(bootstrap=100, resampling=how))
        assert found.resampling == "100 resamples, block, seed 0"
        assert len(runs) == 24 and found.few is None
    trunks = runs.assign(trunk_id=runs["mean_recurrence"].astype(str))
    found = fit_law_to_runs("unified", trunks, depths, FitConfig(bootstrap=100, resampling="block"))
    assert found.few.units == 6
    with pytest.raises(TableError, match=r"^law=unified: resampling=stratified: the unified law draws whole"):
        fit_law_to_runs("unified", runs, depths, FitConfig(bootstrap=100, resampling="stratified"))


def test_the_laws_beside_a_study_take_its_resamples(shared_noise):
    config = FitConfig(bootstrap=250, validation=False, profiles=False)
    laws = {law.law: law.fit for law in fit(*shared_noise, config).run_laws}
    assert laws["iso_depth"].resampling == "250 resamples, pairs, seed 0"
    assert laws["unified"].resampling == "250 resamples, block, seed 0"


def test_two_runs_cannot_give_an_interval():
    runs, depths = study(Truth(), budgets=INSIDE[:1], recurrences=(2, 6), fixed=False)
    with pytest.raises(TableError, match=r"^law=unified: 2 blocks of runs, at least 3 are needed$"):
        fit_law_to_runs("unified", runs, depths, FitConfig(bootstrap=100))


def test_a_law_of_depth_is_fitted_to_every_curve_apart_and_beside_its_rivals():
    """The curves decay with z = 7 / mu by construction; pooled they would have one z and one floor."""
    runs, depths = study(budgets=INSIDE[:2], recurrences=(2, 4, 8), depth_noise_nats=0.0)
    found = fit_law_to_runs("saturating", runs, depths, FitConfig())
    assert len(found.curves) == 6
    for curve in found.curves:
        assert curve.parameters["z"] == pytest.approx(7 / curve.mean_recurrence, rel=1e-3)
        assert curve.rms_nats < 1e-6
    rms = {rival.law: rival.rms_nats for rival in found.rivals}
    ahead = {rival.law: rival.ahead_nats for rival in found.rivals}
    assert list(rms) == ["saturating", "shifted_power", "power", "pure_power"]
    assert min(rms, key=rms.get) == min(ahead, key=ahead.get) == "saturating"
    assert rms["pure_power"] > 100 * rms["saturating"]
    assert "µ = 8, 2 curves: L_inf = " in found.summary() and ", z = 0.875 [0.875, 0.875]" in found.summary()
    assert len(json.loads(found.to_json())["curves"]) == 6
    few = depths[depths["depth"] <= 3]
    with pytest.raises(TableError, match=r"^law=power: no depth curve has 4 depths: evaluate with a larger"):
        fit_law_to_runs("power", runs, few, FitConfig())


def test_curves_that_do_not_determine_the_exponential_are_counted_out():
    runs, depths = study(budgets=INSIDE[:3], depth_noise_nats=0.0)
    lost = runs["run_id"][runs["mean_recurrence"] == 2].iloc[0]
    flat = 3.0 + 1e-5 * np.cos(np.arange((depths["run_id"] == lost).sum()))
    depths.loc[depths["run_id"] == lost, "val_loss_nats"] = flat
    found = fit_law_to_runs("saturating", runs, depths, FitConfig())
    assert {curve.run_id for curve in found.curves if curve.refusal} == {lost}
    assert "µ = 2, 2 of 3 curves: " in found.summary() and "µ = 4, 3 curves: " in found.summary()


@pytest.mark.parametrize("name", ["surface", "iso_depth"])
def test_a_law_whose_descent_ends_in_a_valley_is_refused(name):
    """Under noise a size term of exponent .01 is a constant: floor, amplitude and exponent trade off."""
    runs, depths = study(Truth(a=0.01, a_amplitude=1.0), budgets=INSIDE[:4], noise_nats=0.05, seed=3)
    with pytest.raises(TableError, match=rf"^law={name}: no optimum was reached \(\d+ of 12 starts agree"):
        fit_law_to_runs(name, runs, depths, FitConfig(bootstrap=100, huber_delta=1e-3))
