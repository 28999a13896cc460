import numpy as np
import pytest

from analysis import fit
from analysis.config import FitConfig
from analysis.laws.depth_curve import fit_saturating
from tests.analysis.synthetic import INSIDE, study

DEPTHS = np.array([1, 2, 3, 4, 6, 8, 12, 16], float)


def test_an_exact_curve_is_recovered():
    found = fit_saturating(DEPTHS, 2.9 + 0.7 * np.exp(-0.85 * DEPTHS))
    assert (found.floor_nats, found.amplitude_nats, found.rate) == pytest.approx((2.9, 0.7, 0.85), rel=1e-6)
    assert found.predict(np.array([0.0])) == pytest.approx(3.6)


def test_the_band_of_a_curve_holds_the_true_curve_as_often_as_it_says():
    draw = np.random.default_rng(0)
    depths = np.arange(1.0, 17.0)
    true = 2.9 + 0.7 * np.exp(-0.5 * depths)
    held = np.zeros(len(depths))
    for _ in range(400):
        low, high = fit_saturating(depths, true + 0.003 * draw.normal(size=len(depths))).interval(depths)
        held += (low <= true) & (true <= high)
    # The share of 400 intervals has a standard error of .011, and less over all depths.
    assert (held / 400 > 0.915).all() and 0.93 < held.mean() / 400 < 0.97


def test_order_of_depths_does_not_matter():
    losses = 2.9 + 0.7 * np.exp(-0.85 * DEPTHS) + 1e-3 * np.sin(DEPTHS)
    assert fit_saturating(DEPTHS[::-1], losses[::-1]) == fit_saturating(DEPTHS, losses)


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
    found = fit_saturating(DEPTHS, losses + 1e-5 * np.cos(7 * DEPTHS))
    assert found.rate is None
    assert found.refusal.startswith(reason)


def test_two_depths_are_not_a_curve():
    assert fit_saturating(DEPTHS[:2], np.array([3.1, 3.0])).refusal == "2 depths, at least 5 are needed"


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
