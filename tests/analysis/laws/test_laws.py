"""The registry of laws against published fits, exact truths and finite differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.laws.fit import fit_law
from analysis.laws.identification import settle_vanished
from analysis.laws.newton import Fit
from analysis.laws.objective import Objective, log_terms, minimise
from analysis.laws.registry import LAWS
from analysis.tables.schema import TableError
from tests.analysis import public_data

TRAIN = {
    "params": np.array([1e7, 3e7, 1e8, 1e7, 3e7, 1e8, 1e7, 3e7, 1e8, 3e8]),
    "tokens": np.array([1e8, 1e8, 1e8, 1e9, 1e9, 1e9, 1e10, 1e10, 1e10, 1e10]),
}


def loss(law, data, **parameters):
    law = LAWS[law]
    logs = log_terms(
        law.terms({k: np.asarray(v, float) for k, v in data.items()}), law.fitted(parameters)[None]
    )[0]
    return np.exp(logs[0]).sum(0)


@pytest.mark.parametrize(
    ("name", "delta", "objective", "exponent"),
    [
        ("gemstones_hot_100b", 1e-3, 0.0019816129, None),
        ("gemstones_cooldown", 1e-3, 0.0019640865, None),
        # At 1e-4 the published optimum is not one; these are lower.
        ("gemstones_hot_100b", 1e-4, 2.075052e-4, 0.7134),
        ("gemstones_cooldown", 1e-4, 2.047791e-4, 0.6609),
    ],
)
def test_gemstones_objectives_are_reached_or_beaten(name, delta, objective, exponent):
    data = public_data.table(name)
    points = {"params": data["params_active_precise"], "tokens": data["tokens"]}
    fit = fit_law("surface", points, data["final_loss"], delta=delta)
    assert fit.objective == pytest.approx(objective, abs=2e-10)
    assert fit.certificate.gradient < 1e-8
    if exponent:
        share = fit.parameters["beta"] / (fit.parameters["alpha"] + fit.parameters["beta"])
        assert share == pytest.approx(exponent, abs=5e-5)


def test_iso_depth_truth_is_recovered_exactly_and_with_noise():
    data = public_data.table("synthetic_isodepth_truth")
    points = {
        "params_once": data["N_once"],
        "params_looped": data["N_rec"],
        "recurrence": data["r"],
        "tokens": data["tokens"],
    }
    truth = data["loss_true"].to_numpy(float)
    fit = fit_law("iso_depth", points, truth)
    found = {name: fit.parameters[name] for name in ("E", "alpha", "beta", "phi")}
    assert found == pytest.approx({"E": 1.57, "alpha": 0.199, "beta": 0.369, "phi": 0.459}, rel=1e-7)
    law = LAWS["iso_depth"]
    terms = law.terms({name: column.to_numpy(float) for name, column in points.items()})
    noisy = truth + 0.010 * np.random.default_rng(0).standard_normal((200, len(truth)))
    phi = minimise(Objective(terms=terms), noisy, fit.fitted[None], law.bounds).parameters[:, 5]
    # phi .4605 +- .018 over data sets; 200 of them scatter the mean by .0013 and the deviation by .0009.
    assert phi.mean() == pytest.approx(0.4605, abs=0.004)
    assert phi.std() == pytest.approx(0.018, abs=0.003)


def test_overtraining_law_predicts_the_large_models():
    data = public_data.table("gadre2024_overtraining").astype({"params": float, "tokens": float})
    data = data[data["train_set"] == "rpj"]
    data["flops"], data["tokens_per_param"] = 6 * data["params"] * data["tokens"], data["token_multiplier"]
    small = (data["chinchilla_multiplier"] == 1) & (data["params"] < 5e8)
    used = data[small | ((data["params"] < 2e7) & (data["token_multiplier"] == 320))]
    fit = fit_law("overtraining", used, used["loss_c4_val"], delta=np.inf, log_loss=False)
    # .7103 and .7320 here. No choice of N, C, M, cost or start gives the printed digits; the gap is 2e-5 nats
    # of the predicted loss, less than a fourth decimal of the table's losses leaves open.
    for name, per_cent in (("rpj-open_lm_1b-32.0", 0.711), ("rpj-open_lm_7b-1.0", 0.7325)):
        row = data[data["name"] == name]
        error = abs(fit.predict(row)[0] / row["loss_c4_val"].iloc[0] - 1)
        assert 100 * error == pytest.approx(per_cent, abs=1e-3)


@pytest.mark.parametrize(
    ("accounting", "exponent"),
    [("kaplan(proj+lm_head)", 0.54), ("all_params", 0.37), ("transformer_only", 0.70)],
)
def test_counting_of_parameters_decides_the_exponent(accounting, exponent):
    data = public_data.table("nanochat_isoflop_optima")
    data = data[(data["model"] == "nanochat_jan26") & (data["accounting"] == accounting)]
    fit = fit_law("power_law", {"x": data["budget"]}, data["N_opt"], delta=np.inf)
    assert fit.parameters["g"] == pytest.approx(exponent, abs=5e-3)


@pytest.mark.parametrize("model", ["S20_r4_sample", "S20_r6_sample"])
def test_the_exponential_is_the_best_of_the_four_depth_laws(model):
    data = public_data.table("looped_testtime_curves")
    rows = data[data["model"] == model]
    names = ("saturating", "shifted_power", "power", "pure_power")
    found = [fit_law(name, {"depth": rows["test_r"]}, rows["value"]).objective for name in names]
    assert found == sorted(found)


UNIFIED = {"E": 2.0, "X": 800.0, "Y": 2000.0, "Z": 0.9, "x": 0.4, "y": 0.38, "z": 7.0}


def unified_points():
    grid = [
        (n, d, mu, t)
        for n in (5e7, 1e8, 3e8)
        for d in (1e9, 4e9, 2e10)
        for mu in (2, 6, 12)
        for t in (1, 2, 4, 8, 16)
    ]
    return dict(zip(("params", "tokens", "mean_recurrence", "depth"), np.array(grid).T, strict=True))


def test_unified_law_is_recovered_and_gamma_with_it():
    points = unified_points()
    truth = loss("unified", points, **UNIFIED)
    assert fit_law("unified", points, truth).parameters == pytest.approx(UNIFIED, rel=1e-5)
    bent = loss("unified_gamma", points, **UNIFIED, gamma=1.2)
    assert fit_law("unified_gamma", points, bent).parameters["gamma"] == pytest.approx(1.2, rel=1e-5)
    unscaled = fit_law("unified_unscaled", points, truth)
    assert unscaled.objective > 100 * fit_law("unified_gamma", points, truth).objective + 1e-6


@pytest.mark.parametrize("name", sorted(LAWS))
def test_slopes_of_the_log_terms_are_their_derivatives(name):
    law, rng = LAWS[name], np.random.default_rng(1)
    data = {column: rng.uniform(1.5, 9.0, 4) for column in law.columns}
    terms = law.terms(data)
    theta = rng.uniform(0.2, 0.9, (1, len(law.parameters)))
    slopes = log_terms(terms, theta)[1]
    slopes = slopes[0] if slopes.ndim == 4 else slopes
    for place in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, place] = 1e-6
        numeric = (log_terms(terms, theta + step)[0] - log_terms(terms, theta - step)[0])[0] / 2e-6
        np.testing.assert_allclose(slopes[..., place], numeric, atol=1e-7)


def test_order_of_rows_and_units_do_not_matter():
    losses = loss("surface", TRAIN, E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)
    losses = losses + 0.002 * np.random.default_rng(0).standard_normal(len(losses))
    fit = fit_law("surface", TRAIN, losses)
    turned = fit_law("surface", {name: column[::-1] for name, column in TRAIN.items()}, losses[::-1])
    assert turned.to_json() == fit.to_json()
    millions = fit_law("surface", {"params": TRAIN["params"] / 1e6, "tokens": TRAIN["tokens"] / 1e6}, losses)
    for name in ("E", "alpha", "beta"):
        assert millions.parameters[name] == pytest.approx(fit.parameters[name], rel=1e-9)
    integers = {name: column.astype(np.int64) for name, column in TRAIN.items()}
    assert fit_law("surface", integers, losses).to_json() == fit.to_json()


def test_unidentified_parameters_are_named():
    """Along one size's isoFLOP grid N and D are collinear: the split of the loss between them is not seen."""
    params = np.geomspace(1e7, 4e7, 12)
    points = {"params": params, "tokens": 1e16 / params}
    losses = loss("surface", points, E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)
    said = fit_law("surface", points, losses).undetermined
    assert any("determined only together" in text or "is not identified" in text for text in said)


@pytest.mark.parametrize("how", ["pairs", "stratified", "block"])
def test_resampled_intervals_hold_the_estimate(how):
    rng = np.random.default_rng(2)
    budget = np.repeat(np.geomspace(1e17, 1e20, 8), 8)
    params = np.sqrt(budget / 120) * np.tile(np.geomspace(0.2, 5, 8), 8)
    points = {"params": params, "tokens": budget / 6 / params}
    losses = loss("surface", points, E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)
    losses += 0.003 * rng.standard_normal(len(losses))
    fit = fit_law("surface", points, losses, bootstrap=200, resampling=how, labels=budget)
    for name, (low, high) in fit.intervals.items():
        assert low < fit.parameters[name] < high
    assert "alpha" in fit.summary()
    low, high = fit.band({"params": [1e8], "tokens": [1e10]})
    assert low < fit.predict({"params": [1e8], "tokens": [1e10]}) < high


def isoflops(data_amplitude=410.7, noise=0.003):
    """Eight isoFLOP curves of eight sizes of the surface 1.69 + 406.4 N^-.34 + B D^-.28."""
    budget = np.repeat(np.geomspace(1e17, 1e20, 8), 8)
    params = np.sqrt(budget / 120) * np.tile(np.geomspace(0.2, 5, 8), 8)
    points = {"params": params, "tokens": budget / 6 / params}
    losses = 1.69 + 406.4 * params**-0.34 + data_amplitude * points["tokens"] ** -0.28
    return points, losses + noise * np.random.default_rng(0).standard_normal(64), budget


def test_a_band_needs_resamples_and_few_blocks_take_students():
    points, losses, budget = isoflops()
    with pytest.raises(ValueError, match=r"^the law was fitted without resamples and has no band"):
        fit_law("surface", points, losses).band(points)
    fit = fit_law("surface", points, losses, bootstrap=300, resampling="block", labels=budget)
    low, high = fit.band(points)
    seen = np.array([fit.model.terms({k: np.asarray(v) for k, v in points.items()}) @ d for d in fit.draws])
    error = np.exp(seen).sum(1).std(0, ddof=1) * np.sqrt(8 / 7)
    # Student's quantile for 7 degrees of freedom, from a table.
    np.testing.assert_allclose((high - low) / 2, 2.364624 * error, rtol=1e-6)
    assert fit.resampling.endswith(
        "8 blocks are too few for percentiles: Student's t with 7 degrees of freedom"
    )


def test_an_exponent_of_a_term_that_is_not_there_is_open():
    """No data term: its amplitude runs to a bound, and its exponent is then whatever it was on the way."""
    points, losses, _ = isoflops(data_amplitude=0.0)
    fit = fit_law("surface", points, losses, bootstrap=200)
    assert fit.certificate.at_bound == ("B",)
    assert fit.intervals["B"] == fit.intervals["beta"] == (None, None)
    assert "beta is not identified: the amplitude of its term lies at a bound" in fit.undetermined
    assert "beta = not identified: the amplitude of its term lies at a bound (best value" in fit.summary()
    low, high = fit.intervals["alpha"]
    assert low < 0.34 < high


def test_a_vanished_term_is_left_at_its_bound_whatever_the_descent_did():
    """The amplitude of nothing is no number: rounding alone would choose it, and its exponent."""
    points, *_ = isoflops(data_amplitude=0.0)
    law = LAWS["surface"]
    terms = law.terms(points)
    settled = []
    for amplitude, beta in ((-25.0, 0.3), (-31.0, 2.0)):
        theta = np.array([[0.5, 6.0, amplitude, 0.34, beta]])
        assert [parameter.name for parameter in law.parameters] == ["E", "A", "B", "alpha", "beta"]
        fit = Fit(
            parameters=theta,
            objective=np.zeros(1),
            gradient=np.zeros(1),
            curvature=np.zeros(1),
            at_bound=np.zeros((1, 5), bool),
        )
        settled.append(settle_vanished(law, terms, fit))
        assert settled[-1].at_bound.tolist() == [[False, False, True, False, False]]
        assert settled[-1].parameters[0, [0, 1, 3]].tolist() == theta[0, [0, 1, 3]].tolist()
        assert settled[-1].parameters[0, 2] == law.bounds[0][2]
    assert settled[0].parameters[0, 4] == settled[1].parameters[0, 4]


def test_an_end_that_a_bound_holds_is_open():
    """Noise bends this depth curve to a line: in many resamples its rate falls to the lower bound."""
    depth = np.tile(np.arange(1.0, 13.0), 3)
    losses = 2.0 + 0.02 * np.exp(-2.5 * depth) + 0.003 * np.random.default_rng(9).standard_normal(36)
    fit = fit_law("saturating", {"depth": depth}, losses, bootstrap=400)
    least = LAWS["saturating"].bounds[0][2]
    assert fit.certificate.at_bound == ()
    assert np.mean(fit.draws[:, 2] <= least) > 0.025  # what the test is about
    assert fit.intervals["z"][0] is None
    assert fit.intervals["z"][1] > fit.parameters["z"]


def test_a_direction_that_no_point_sees_is_named():
    """Only the first depth lies off the plateau: Z exp(-z) is seen, Z and z are not."""
    depth = np.tile(np.arange(1.0, 13.0), 3)
    losses = 2.0 + 0.1 * (depth == 1) + 0.0003 * np.random.default_rng(4).standard_normal(36)
    said = fit_law("saturating", {"depth": depth}, losses).undetermined
    assert {f"{name} is not identified: the loss is flat along Z and z" for name in "Zz"} <= set(said)


def test_a_law_names_its_source_and_units():
    points, losses, _ = isoflops()
    fit = fit_law("surface", points, losses)
    told = fit.to_dict()
    assert "Hoffmann et al. 2022" in told["source"] and told["source"] in fit.summary()
    assert told["units"] == {
        "E": "nats",
        "A": "nats x parameters^alpha",
        "B": "nats x tokens^beta",
        "alpha": "1",
        "beta": "1",
    }


def test_bad_input_is_one_line():
    with pytest.raises(TableError, match=r"needs the columns params, tokens; missing: tokens$"):
        fit_law("surface", {"params": [1.0]}, np.array([3.0]))
    with pytest.raises(TableError, match=r"column tokens holds -1: values must be positive and finite"):
        fit_law("surface", {"params": [1.0] * 9, "tokens": [-1.0] * 9}, np.full(9, 3.0))
    with pytest.raises(TableError, match=r"3 points are too few for the 5 parameters of the surface law"):
        fit_law("surface", {"params": [1.0] * 3, "tokens": [1.0] * 3}, np.full(3, 3.0))
    with pytest.raises(ValueError, match="resampling 'jackknife' is unknown: choose pairs"):
        fit_law("surface", TRAIN, np.linspace(4, 3, 10), bootstrap=10, resampling="jackknife")


def test_a_fit_takes_a_data_frame():
    losses = loss("surface", TRAIN, E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)
    fit = fit_law("surface", pd.DataFrame(TRAIN), losses)
    assert fit.parameters == pytest.approx(
        {"E": 1.7, "A": 400, "B": 410, "alpha": 0.34, "beta": 0.28}, rel=1e-5
    )
