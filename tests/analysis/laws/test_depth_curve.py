import numpy as np
import pandas as pd
import pytest

from analysis import TableError, fit
from analysis.config import FitConfig
from analysis.laws.depth_curve import fit_depth_curve, fit_depth_curves
from analysis.study.points_laws import fit_law_to_points
from tests.analysis.synthetic import INSIDE, study

DEPTHS = np.array([1, 2, 3, 4, 6, 8, 12, 16], float)


def test_an_exact_curve_is_recovered():
    found = fit_depth_curve(DEPTHS, 2.9 + 0.7 * np.exp(-0.85 * DEPTHS))
    assert (found.floor_nats, found.amplitude_nats, found.rate) == pytest.approx((2.9, 0.7, 0.85), rel=1e-6)
    assert found.predict(np.array([0.0])) == pytest.approx(3.6)


def test_the_band_of_a_curve_holds_the_true_curve_as_often_as_it_says():
    draw = np.random.default_rng(0)
    depths = np.arange(1.0, 17.0)
    true = 2.9 + 0.7 * np.exp(-0.5 * depths)
    held = np.zeros(len(depths))
    for fitted in fit_depth_curves(depths, true + 0.003 * draw.normal(size=(400, len(depths)))):
        low, high = fitted.interval(depths)
        held += (low <= true) & (true <= high)
    # The share of 400 intervals has a standard error of .011, and less over all depths.
    assert (held / 400 > 0.915).all() and 0.93 < held.mean() / 400 < 0.97


def test_order_of_depths_does_not_matter():
    losses = 2.9 + 0.7 * np.exp(-0.85 * DEPTHS) + 1e-3 * np.sin(DEPTHS)
    assert fit_depth_curve(DEPTHS[::-1], losses[::-1]) == fit_depth_curve(DEPTHS, losses)


def curves(losses, noise, count=100, errors=True):
    """Fit `count` curves around `losses` with independent noise, whose size is stated or not."""
    drawn = losses + noise * np.random.default_rng(1).standard_normal((count, len(losses)))
    return fit_depth_curves(DEPTHS, drawn, errors=np.full_like(drawn, noise) if errors else None)


def refused(fits, reason=""):
    return sum(fit.refusal is not None and reason in fit.refusal for fit in fits) / len(fits)


@pytest.mark.parametrize("errors", [True, False])
@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_noise_alone_does_not_refuse_a_true_exponential(noise, errors):
    fits = curves(2.9 + 0.7 * np.exp(-0.5 * DEPTHS), noise, errors=errors)
    assert refused(fits) <= 0.1  # 0.05 by design, with a standard error of 0.022
    held = [fit.rate_low <= 0.5 <= (fit.rate_high or np.inf) for fit in fits if fit.refusal is None]
    assert np.mean(held) > 0.9


def test_noise_that_all_depths_share_moves_the_floor_alone():
    shared = 0.05 * np.random.default_rng(0).standard_normal(50)
    truth = 2.9 + 0.7 * np.exp(-0.5 * DEPTHS)
    stated = np.full(len(DEPTHS), 0.05)
    rates = [fit_depth_curve(DEPTHS, truth + shift, errors=stated).rate for shift in shared]
    assert rates == pytest.approx([0.5] * 50, rel=1e-2)


@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_a_curve_that_rises_by_five_standard_errors_is_refused(noise):
    rising = 2.9 + 5 * noise * (DEPTHS - 1) / 15
    fits = curves(rising, noise)
    assert refused(fits) >= 0.9 and refused(fits, "does not fall") > 0.5


def test_a_law_of_another_form_is_refused_beyond_the_stated_noise_only():
    power = 2.9 + 0.7 / DEPTHS
    assert refused(curves(power, 0.005), "the saturating exponential does not hold (rms residual") > 0.95
    assert refused(curves(power, 0.05), "does not hold") < 0.1


def test_a_loss_that_falls_and_then_rises_is_named_with_its_least_depth():
    rise = 0.15 * np.maximum(DEPTHS - 4, 0) / 12
    losses = 2.9 + 0.7 * np.exp(-0.85 * np.minimum(DEPTHS, 4)) + rise
    fit = fit_depth_curve(DEPTHS, losses, errors=np.full(len(DEPTHS), 0.005))
    assert "overthinking: the loss is least at T = 4 and 0.15 nats higher at T = 16" in fit.refusal
    named = curves(losses, 0.005)
    assert refused(named, "overthinking: the loss is least at T = 4") > 0.95


def test_a_rate_that_noise_hides_is_not_identified():
    hidden = 2.9 + 0.02 * np.exp(-0.5 * DEPTHS)
    fits = curves(hidden, 0.02)
    assert refused(fits, "z is not identified") > 0.85 and refused(fits, "within the noise of 0.0") > 0.8


def test_subsets_of_a_curve_are_fitted_as_curves_of_their_own():
    losses = 2.9 + 0.7 * np.exp(-0.5 * DEPTHS) + 1e-3 * np.sin(3 * DEPTHS)
    kept = np.array([DEPTHS != 1, DEPTHS != 3, DEPTHS <= 8, DEPTHS <= 3])
    for row, found in zip(kept, fit_depth_curves(DEPTHS, losses[None], kept), strict=True):
        alone = fit_depth_curve(DEPTHS[row], losses[row])
        assert (found.depths, found.refusal) == (alone.depths, alone.refusal)
        if alone.refusal is None:
            names = ("floor_nats", "amplitude_nats", "rate", "rate_low", "rate_high")
            own, same = ([getattr(fit, name) for name in names] for fit in (alone, found))
            assert same == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("shifted_power", lambda depth: 2.9 + 0.7 * (1 + depth) ** -1.3),
        ("power", lambda depth: 2.9 + 0.7 * depth**-1.3),
        ("pure_power", lambda depth: 0.7 * depth**-0.3),
    ],
)
def test_the_other_laws_of_depth_are_fitted_by_the_same_search(name, shape):
    fit = fit_depth_curve(DEPTHS, shape(DEPTHS), law=name)
    assert fit.refusal is None
    assert fit.predict(np.array([5.0, 40.0])) == pytest.approx(shape(np.array([5.0, 40.0])), rel=1e-6)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (3.0 - 0.01 * DEPTHS, "z is not identified: the curve is as well a straight line"),
        (3.0 + 0.01 * DEPTHS, "the loss does not fall with depth"),
        (3.0 + 0.5 * (DEPTHS == 1), "z is not identified: one point alone lies off the plateau"),
        (3.0 + 0.5 * np.cos(DEPTHS) / DEPTHS, "the saturating exponential does not hold"),
    ],
)
def test_what_the_curve_cannot_say_is_refused(losses, reason):
    noisy = losses + 1e-5 * np.cos(7 * DEPTHS)
    found = fit_depth_curve(DEPTHS, noisy, errors=np.full(len(DEPTHS), 1e-5))
    assert found.rate is None
    assert found.refusal.startswith(reason)


def test_two_depths_are_not_a_curve():
    assert fit_depth_curve(DEPTHS[:2], np.array([3.1, 3.0])).refusal == "2 depths, at least 5 are needed"


def test_rate_times_recurrence_is_found_constant():
    tables = study(budgets=INSIDE[:3], noise_nats=0.002, rate_times_recurrence=7.0)
    depth = fit(*tables, FitConfig(bootstrap=100, validation=False)).depth
    assert depth.slope_low <= -1 <= depth.slope_high
    for row in depth.by_recurrence[1:]:
        assert row.rate_times_recurrence == pytest.approx(7.0, rel=0.02)
    assert len(depth.curves) == 18


def test_curves_of_runs_left_out_are_left_out():
    runs, depths = study(budgets=INSIDE[:3])
    runs.loc[runs["kind"] == "looped", "status"] = "failed:diverged"
    assert fit(runs, depths, FitConfig(bootstrap=100, validation=False)).depth.curves == ()


def test_curves_of_different_runs_in_a_table_of_points_are_never_pooled():
    rates = {"a": 0.4, "b": 1.1}
    parts = [
        pd.DataFrame({"run_id": run, "depth": DEPTHS, "loss": 2.9 + 0.7 * np.exp(-rate * DEPTHS)})
        for run, rate in rates.items()
    ]
    laws = fit_law_to_points("saturating", pd.concat(parts))
    assert {curve.run_id: curve.parameters["z"] for curve in laws.curves} == pytest.approx(rates)
    assert "  a: L_inf = 2.9 [2.9, 2.9], Z = 0.7 [0.7, 0.7], z = 0.4 [0.4, 0.4]" in laws.summary()
    pooled = pd.concat(parts).drop(columns="run_id")
    with pytest.raises(TableError, match=r"^depth 1 is listed twice: columns.run_id=NAME says"):
        fit_law_to_points("saturating", pooled)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (2.9 + 0.02 * DEPTHS, "the loss does not fall with depth"),
        (2.9 + 0.02 * DEPTHS + np.exp(-DEPTHS), "overthinking: the loss is least at T = 4 and"),
    ],
)
def test_a_table_of_points_is_refused_as_a_sweep_is(losses, reason):
    points = pd.DataFrame({"depth": DEPTHS, "loss": losses})
    curve = fit_law_to_points("saturating", points).curves[0]
    assert curve.parameters == {} and reason in curve.refusal


def test_a_tail_that_is_flat_to_rounding_gives_no_meaningless_multiple():
    losses = np.array([3.9, 3.1, 3.3] + [3.0] * 21)
    refusal = fit_depth_curve(np.arange(1.0, 25.0), losses).refusal
    assert refusal and refusal.endswith("where neighbouring depths agree to rounding)")


def test_a_stated_error_far_below_the_misfit_gives_no_meaningless_multiple():
    losses = np.array([3.9, 3.1, 3.3] + [3.0] * 21)
    refusal = fit_depth_curve(np.arange(1.0, 25.0), losses, errors=np.full(24, 1e-9)).refusal
    assert refusal and refusal.endswith("over 100 times the stated error)")
