"""Numbers that others published, recomputed from their data by the estimators of this room."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.frontier import Path, optimum
from analysis.geometry import SIZES
from analysis.loglinear import Objective, minimise
from analysis.parabola import fit_parabola, minimum
from analysis.projection import fit_shared_shape
from analysis.saturating import fit_saturating
from analysis.surface import HIGH, LOW, features, fit_surface, refit
from tests.analysis import published


def isoflop_slopes(compute, tokens, losses):
    """Power laws of D* by parabola and by shared shape, each (coefficient, exponent)."""
    budgets, index = np.unique(compute, return_inverse=True)
    x = np.log(tokens)
    by_parabola = [
        float(minimum(x[index == k], fit_parabola(x[index == k], losses[index == k])[0])[0])
        for k in range(len(budgets))
    ]
    sizes = np.log(compute / 6) - x
    shape = fit_shared_shape(sizes, x, losses[None], index)
    path = Path(shape=SIZES, budgets_flops=budgets, middle=float(sizes.mean()))
    best = optimum(path, shape.exponents, shape.amplitudes, (shape.log_params_mean, shape.log_tokens_mean))
    laws = []
    for logs in (by_parabola, np.log(budgets / 6) - best[0]):
        slope, level = np.polyfit(np.log(budgets), logs, 1)
        laws.append((float(np.exp(level)), float(slope)))
    return laws


def test_llama3_isoflops_give_the_published_token_law():
    data = published.table("llama3_isoflop_points")
    columns = ("compute_budget", "training_tokens", "validation_loss")
    parabola, shared = isoflop_slopes(*(data[name].to_numpy(float) for name in columns))
    assert parabola == pytest.approx((0.299, 0.537), abs=6e-4)  # Llama 3 report, section 3.2.1
    assert shared[1] == pytest.approx(0.537, abs=5e-4)


def chinchilla(outliers=False):
    data = published.table("chinchilla_epoch_svg")
    data = data if outliers else data[~data["epoch_outlier"]]
    sizes = data["params"].to_numpy(float)
    tokens = data["flops"].to_numpy(float) / 6 / sizes
    return np.log(sizes), np.log(tokens), data["loss"].to_numpy(float)


def test_chinchilla_surface_reaches_the_certified_optimum():
    surface = fit_surface(*chinchilla())
    # Optimum of the objective of Besiroglu et al. 2024; what its authors print (482.0, 2085, 1.8169, .3478,
    # .3658) lies above it.
    assert surface.fit.objective[0] == pytest.approx(1.018274017801e-3, abs=1e-15)
    found = surface.coefficients()
    expected = {"A": 477.826, "B": 2143.42, "E": 1.81722, "alpha": 0.34731, "beta": 0.36717}
    assert found == pytest.approx(expected, rel=1.4e-5)  # half a unit of the last printed digit
    assert found["beta"] / (found["alpha"] + found["beta"]) == pytest.approx(0.5139, abs=5e-5)
    assert surface.fit.gradient[0] < 1e-8
    assert surface.fit.curvature[0] > 0
    assert surface.starts_agreeing >= 2


def test_chinchilla_bootstrap_gives_the_published_intervals():
    u, v, losses = chinchilla()
    surface = fit_surface(u, v, losses)
    weights = np.random.default_rng(0).multinomial(240, np.full(240, 1 / 240), size=1000).astype(float)
    found = refit(surface, np.repeat(losses[None], 1000, 0), weights)
    level, alpha, beta = (found.fit.parameters[:, i] for i in (0, 3, 4))
    ends = [np.quantile(values, (0.025, 0.975)) for values in (alpha, beta, np.exp(level))]
    for end, expected in zip(ends, [(0.318, 0.373), (0.332, 0.416), (1.770, 1.872)], strict=True):
        assert end == pytest.approx(
            expected, abs=0.004
        )  # three decimals are given, 1000 resamples scatter by .002
    assert np.std(beta / (alpha + beta)) == pytest.approx(0.0198, abs=0.001)


def test_five_outliers_and_the_cost_move_the_chinchilla_exponents():
    everything = fit_surface(*chinchilla(outliers=True))
    assert everything.fit.objective[0] == pytest.approx(1.8260105e-3, abs=5e-11)
    found = everything.coefficients()
    assert (found["E"], found["alpha"], found["beta"]) == pytest.approx((1.891, 0.349, 0.453), abs=5e-4)


def test_squared_error_on_the_loss_gives_its_own_optimum():
    u, v, losses = chinchilla()
    start = fit_surface(u, v, losses).fit.parameters
    means = (u.mean(), v.mean())
    objective = Objective(terms=features(u - means[0], v - means[1]), delta=np.inf, log_loss=False)
    e, a, b, alpha, beta = minimise(objective, losses[None], start, (LOW, HIGH)).parameters[0]
    found = (np.exp(e), np.exp(a + alpha * means[0]), np.exp(b + beta * means[1]), alpha, beta)
    assert found == pytest.approx((1.88281, 567.8, 7582, 0.35762, 0.42762), rel=1e-4)
    assert beta / (alpha + beta) == pytest.approx(0.5446, abs=5e-5)


def test_teaching_set_without_noise_is_recovered_exactly():
    data = published.table("cs336_isoflops_curves")
    sizes = data["parameters"].to_numpy(float)
    tokens = data["compute_budget"].to_numpy(float) / 6 / sizes
    surface = fit_surface(np.log(sizes), np.log(tokens), data["final_loss"].to_numpy(float))
    found = surface.coefficients()
    assert found["E"] == pytest.approx(2.69, abs=5e-7)
    assert (found["alpha"], found["beta"]) == pytest.approx((0.34, 0.36), abs=1e-6)
    assert (found["A"], found["B"]) == pytest.approx((1606.4, 3210.7), abs=0.06)


def depth_curve(model):
    data = published.table("looped_testtime_curves")
    rows = data[data["model"] == model]
    return fit_saturating(rows["test_r"].to_numpy(float), rows["value"].to_numpy(float))


@pytest.mark.parametrize(
    ("model", "floor", "rate", "rms"),
    [("S20_r4_sample", 0.83345, 1.359, 4e-5), ("S20_r6_sample", 0.84289, 1.204, 1e-5)],
)
def test_sampled_depth_models_follow_the_saturating_exponential(model, floor, rate, rms):
    fit = depth_curve(model)
    assert fit.refusal is None
    assert fit.floor_nats == pytest.approx(floor, abs=5e-6)
    assert fit.rate == pytest.approx(rate, abs=5e-4)
    assert fit.rms_nats == pytest.approx(rms, abs=5e-6)
    assert fit.rate_low < fit.rate < fit.rate_high


@pytest.mark.parametrize("model", ["S12_r4_sample", "S12_r4_sample_init_random"])
def test_one_point_off_the_plateau_gives_a_floor_but_no_rate(model):
    fit = depth_curve(model)
    assert fit.rate is None
    assert fit.refusal == "z is not identified: one point alone lies off the plateau"
    assert fit.floor_nats == pytest.approx(0.918, abs=5e-4)


@pytest.mark.parametrize("model", ["S20_r4_fixed", "S20_r6_fixed"])
def test_models_trained_at_one_depth_do_not_follow_it(model):
    fit = depth_curve(model)
    assert fit.refusal.startswith("the saturating exponential does not hold (rms residual 0.00")
    assert 0.005 <= fit.rms_nats <= 0.009
