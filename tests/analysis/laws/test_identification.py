"""Parameters that the points tell only together are named, and have no closed interval."""

import numpy as np
import pandas as pd
import pytest

from analysis.laws.fit import fit_law
from analysis.laws.function_law import as_law
from analysis.laws.identification import unidentified
from analysis.laws.registry import LAWS

ISO_DEPTH = LAWS["iso_depth"]
TRUTH = {"E": 2.662, "A": 156_820.0, "alpha": 0.771, "B": 25_420.0, "beta": 0.525, "phi": 0.46}
SIZE_TERM = {"A", "alpha", "phi"}
EVEN = (2, 4, 6, 8, 10, 12)


def grid(sizes, recurrences):
    """Points of the published 140M model, its sizes times some factors, at six budgets."""
    budgets = (1e18, 2e18, 4e18, 8e18, 16e18, 64e18)
    places = [(s, r, c) for s in sizes for r in recurrences for c in budgets]
    scale, recurrence, flops = np.array(places).T
    return {
        "params_once": 29_507_328 * scale,
        "params_looped": 14_158_848 * scale,
        "recurrence": recurrence,
        "tokens": flops / scale / (403.4e6 + 81.8e6 * recurrence),
    }


def noisy(points, noise_nats, seed):
    clean = ISO_DEPTH.loss(points, **TRUTH)
    return clean + noise_nats * np.random.default_rng(seed).standard_normal(len(clean))


def own(params_once, params_looped, recurrence, tokens, *, E, A, alpha, B, beta, phi=0.5):
    return E + A * (params_once + recurrence**phi * params_looped) ** -alpha + B * tokens**-beta


@pytest.mark.parametrize(
    ("noise_nats", "recurrences", "seeds"),
    [(0.0, EVEN, [0]), (0.0005, (1, 2, 4, 8), [0]), (0.005, EVEN, [0]), (0.005, (1, 2, 4, 8), [2])],
)
def test_one_size_tells_phi_and_alpha_only_together(noise_nats, recurrences, seeds):
    points = grid((1,), recurrences)
    for seed in seeds:
        fit = fit_law("iso_depth", points, noisy(points, noise_nats, seed))
        assert set(fit.not_identified) >= SIZE_TERM
        assert set(fit.not_identified) <= SIZE_TERM | {"E"}
        ends = fit.conf_int()
        for name in SIZE_TERM:
            assert tuple(ends.loc[name]) == (-np.inf, np.inf)
        assert ends.loc["beta", "low"] <= 0.525 + 1e-9 and ends.loc["beta", "high"] >= 0.525 - 1e-9


def test_neither_resamples_nor_an_own_function_close_the_interval():
    points = grid((1,), EVEN[::2])
    losses = noisy(points, 0.005, 1)
    fit = fit_law("iso_depth", points, losses, bootstrap=20)
    assert {fit.intervals[name] for name in SIZE_TERM} == {(None, None)}
    assert None not in fit.intervals["beta"]
    line = next(text for text in fit.summary().split("\n") if text.strip().startswith("phi ="))
    assert line.strip().startswith("phi = not identified: it is determined only together with alpha (best")
    assert "[" not in line
    assert fit.to_dict()["intervals"]["phi"] == [None, None]
    own_law = as_law(own, starts={"alpha": 0.8, "beta": 0.5})
    assert set(fit_law(own_law, points, losses, delta=np.inf).not_identified) >= SIZE_TERM


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_an_amplitude_at_its_upper_bound_leaves_the_floor_open(seed):
    """E was [2.473, 2.491] and [2.710, 2.725], not 2.662: the bound of A held alpha and phi, and so E."""
    points = grid((1,), EVEN)
    fit = fit_law("iso_depth", points, noisy(points, 0.005, [0, seed]))
    assert set(fit.not_identified) == SIZE_TERM | {"E"}
    assert tuple(fit.conf_int().loc["E"]) == (-np.inf, np.inf)
    assert fit.cov.loc["E", "E"] ** 0.5 > 0.1  # 0.005 with alpha and phi held
    # With seed 11 some processors end just before the bound, in the same flat valley.
    assert fit.certificate.at_bound == ("A",) or seed == 11
    assert np.isnan(fit.cov.loc["A", "A"]) == (fit.certificate.at_bound == ("A",))


def test_two_sizes_give_phi_and_alpha():
    points, covered = grid((1, 2), EVEN), []
    for seed in range(2):
        fit = fit_law("iso_depth", points, noisy(points, 0.005, seed))
        assert not fit.not_identified
        low, high = fit.conf_int().loc["phi"]
        assert high - low < 0.2
        covered.append(low < 0.46 < high)
    assert any(covered)


@pytest.mark.parametrize(("seed", "lost"), [(1, set()), (3, {"E", "A", "alpha"})])
def test_a_floor_that_the_noise_hardly_bounds_has_no_closed_interval(seed, lost):
    """On two sizes 1.1 apart resamples stay near the fit: E was [1.20, 1.66], not 2.66."""
    points = grid((1, 1.1), EVEN)
    fit = fit_law("iso_depth", points, noisy(points, 0.005, seed), bootstrap=40)
    assert set(fit.not_identified) == lost
    ends = fit.conf_int()
    pd.testing.assert_frame_equal(ends[["low", "high"]], fit.params[["low", "high"]], check_names=False)
    for name in ("E", "alpha"):
        assert ends.loc[name, "low"] <= TRUTH[name] <= ends.loc[name, "high"]
    assert np.isfinite(ends.loc["phi"]).all()


def test_an_exponent_and_the_floor_trade_off_in_most_fits_and_keep_their_intervals():
    """The floor of a surface over half a decade has a correlation near one with its exponent."""
    params, tokens = (m.ravel() for m in np.meshgrid(np.geomspace(1e8, 3e8, 6), np.geomspace(1e9, 1e12, 6)))
    losses = 1.7 + 406.0 * params**-0.34 + 411.0 * tokens**-0.28
    losses = losses * np.exp(0.002 * np.random.default_rng(0).standard_normal(36))
    fit = fit_law("surface", {"params": params, "tokens": tokens}, losses)
    assert any(text.startswith("E and alpha are determined only together (+0.9") for text in fit.undetermined)
    assert not fit.not_identified and np.isfinite(fit.conf_int().loc["alpha"]).all()


def test_a_loose_floor_does_not_trade_off_with_an_exponent_at_its_bound():
    """What a bound holds has no covariance: NaN, which is neither above nor below a limit."""
    law = LAWS["size"]
    params = np.geomspace(1e6, 1e8, 8)
    fitted = law.fitted({"E": 2.0, "A": 50.0, "alpha": 0.3})
    at_bound = np.array([False, False, True])
    covariance = np.array([[0.3**2, 0.0, np.nan], [0.0, 0.1**2, np.nan], [np.nan, np.nan, np.nan]])
    why = unidentified(law, law.terms({"params": params}), fitted, at_bound, covariance)
    assert why.get("alpha") == "it lies at a bound"
    assert "E" not in why
