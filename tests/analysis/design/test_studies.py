"""Simulated designs: laws, noise, the estimators of many studies, and what a report says."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import FitConfig
from analysis.design.ground_truth import GroundTruth, at_published_optima, fitted, published
from analysis.design.power import DesignConfig
from analysis.design.simulate import Noise, estimate, grid
from analysis.design.studies import analyse_power, expected_losses, true_exponent
from analysis.figures.design import design_figure
from analysis.isoflop.geometry import PLAIN_TRANSFORMER
from analysis.isoflop.group import fit_groups
from analysis.published import parcae
from analysis.stats.noise import noise_floor
from analysis.study.study import fit
from analysis.tables.schema import TableError
from tests.analysis.figures import extents
from tests.analysis.synthetic import INSIDE, PAPER_GRID, Truth, study

QUICK = DesignConfig(studies=100, analysts=2, bootstrap=100)


def law_of(truth: Truth) -> GroundTruth:
    """The law that the synthetic studies of this folder are drawn from."""
    return GroundTruth(
        name="the synthetic law",
        floor_nats=truth.e,
        amplitude_params=truth.a_amplitude,
        alpha=truth.a,
        amplitude_tokens=truth.b_amplitude,
        beta=truth.b,
        static_params=truth.n_other,
        looped_params=truth.n_core,
    )


def bench(budgets=INSIDE, recurrences=(2, 4, 6, 8, 10, 12), replicates=(), fixed=False):
    runs, _ = study(budgets=budgets, recurrences=recurrences, replicates=replicates, fixed=fixed)
    return grid(runs, "non_embedding")


def test_published_law_gives_the_losses_that_its_coefficients_give():
    """PAPER (d): 140M, all parameters, tokens of the released accounting, mean recurrence 1 to 12."""
    law = published("looped_140m", study(budgets=INSIDE[:1])[0], "all")
    mflop = np.array([828.2, 869.1, 1032.7, 1196.3, 1359.9, 1523.5, 1687.1])
    depths = np.array([1, 2, 4, 6, 8, 10, 12])
    printed = {
        1e18: [3.363, 3.356, 3.368, 3.385, 3.404, 3.424, 3.444],
        64e18: [2.978, 2.961, 2.936, 2.918, 2.904, 2.894, 2.885],
    }
    for flops, losses in printed.items():
        assert law.loss(depths, flops / (1e6 * mflop)) == pytest.approx(losses, abs=6e-4)


def test_published_law_has_the_optima_of_its_own_isoflop_curves():
    """PAPER (d): the law's own argmin at 140M is 3.1, 7.1, 12.5, 19.6, 41.4 under the released accounting."""
    law = published("140M", study(budgets=INSIDE[:1])[0], "all")
    shape = parcae.shape("140M", "released")
    found = [law.optimum(shape, flops) for flops in PAPER_GRID[1:]]
    assert found == pytest.approx([3.1, 7.1, 12.5, 19.6, 41.4], abs=0.06)


def test_optimum_of_a_coupled_law_is_the_closed_form():
    """Under C = 6 N D the coupled optimum is that of the amplitudes and exponents to the power 1/g."""
    law = GroundTruth(
        name="",
        floor_nats=1.7,
        amplitude_params=400.0,
        alpha=0.34,
        amplitude_tokens=410.0,
        beta=0.28,
        static_params=0.0,
        looped_params=1e6,
        coupling=1.3,
    )
    a, b, g = law.alpha / 1.3, law.beta / 1.3, 1.3
    ratio = a * law.amplitude_params ** (1 / g) / (b * law.amplitude_tokens ** (1 / g))
    for flops in (1e17, 1e19):
        expected = ratio ** (1 / (a + b)) * (flops / 6) ** (b / (a + b)) / 1e6
        shape = replace(PLAIN_TRANSFORMER, looped_params=1e6, flops_slope=6e6)
        assert law.optimum(shape, flops) == pytest.approx(expected, rel=1e-4)


def test_a_law_is_brought_to_the_published_optima():
    runs = study(budgets=INSIDE[:1])[0]
    shape = bench().shape
    for coupling in (1.0, 1.2):
        law = replace(published("140m", runs, "non_embedding"), coupling=coupling)
        moved = at_published_optima(law, "140m", shape)
        optima = [moved.optimum(shape, flops) for flops in PAPER_GRID]
        assert np.log(optima).mean() == pytest.approx(np.log([2, 2, 4, 6, 8, 10]).mean(), abs=1e-6)
    with pytest.raises(TableError, match="no law is published for looped_1m, only for 140M and 370M"):
        published("looped_1m", runs, "all")


def test_a_fitted_law_is_read_back(tmp_path):
    runs, depths = study(noise_nats=0.0)
    result = fit(runs, depths, FitConfig(bootstrap=100, validation=False))
    path = tmp_path / "laws.json"
    path.write_text(result.to_json())
    law, truth = fitted(path, runs, "all"), Truth()
    assert law.loss(7.0, 3e9) == pytest.approx(float(truth.loss(7.0, 3e9)), abs=1e-6)
    with pytest.raises(TableError, match="0 groups of 370M and paper"):
        fitted(path, runs.assign(scale="370M"), "all")
    path.write_text('{"law": "power_law"}')
    with pytest.raises(TableError, match=r"no laws.json of loopscale fit, nor a law surface or iso_depth"):
        fitted(path, runs, "all")


def test_noise_components_are_shared_as_they_say():
    runs = study(budgets=INSIDE[:2], replicates=((0, 0),), fixed=False)[0]
    runs["trajectory"] = [
        f"{mu:g}/{seed}" for mu, seed in zip(runs["mean_recurrence"], runs["seed"], strict=True)
    ]
    noise = Noise(seed_nats=0.003, trunk_nats=0.004, evaluation_nats=0.012)
    errors = noise.draw(runs, 20_000, 0)
    assert errors.std(0) == pytest.approx(np.full(len(runs), 0.013), rel=0.03)
    first = runs.index[(runs["mean_recurrence"] == 2) & (runs["target_flops"] == INSIDE[0])]
    other = runs.index[(runs["mean_recurrence"] == 2) & (runs["target_flops"] == INSIDE[1])]
    covariance = np.cov(errors.T)
    # Two seeds of a cell share the evaluation, two budgets of a trunk the trunk, other runs nothing.
    assert covariance[first[0], first[1]] == pytest.approx(0.012**2, rel=0.1)
    assert covariance[first[0], other[0]] == pytest.approx(0.004**2, abs=3e-6)
    assert covariance[first[1], other[0]] == pytest.approx(0.0, abs=3e-6)
    heavy = Noise(seed_nats=0.005, tail=5.0).draw(runs, 20_000, 0)
    assert heavy.std() == pytest.approx(0.005, rel=0.02)
    assert (np.abs(heavy) > 4 * 0.005).mean() > 10 * 6.3e-5  # the normal law's share


def test_every_study_gets_what_fit_would_tell_it():
    made = bench(budgets=PAPER_GRID)
    law = law_of(Truth())
    clean = expected_losses(made, law, 0.01)
    losses = clean + Noise(seed_nats=0.005).draw(made.runs, 3, 0)
    found = {item.name: item for item in estimate(made, clean, losses)}
    config = FitConfig(bootstrap=100, validation=False, profiles=False)
    compared = 0
    for k in range(3):
        runs = made.runs.assign(val_loss_nats=losses[k])
        (group,) = fit_groups(runs, noise_floor(runs), config)[0]
        for estimator in group.estimators:
            for quantity, optima in estimator.optima.items():
                for place, optimum in enumerate(optima):
                    if optimum.value is not None:
                        mine = found[estimator.name].log_optima[quantity][k, place]
                        assert mine == pytest.approx(np.log(optimum.value), abs=2e-4)
                        compared += 1
                law_found = estimator.laws[quantity]
                if law_found.exponent is not None:
                    mine = found[estimator.name].line(made, quantity, 1e20)
                    assert mine[1][k] == pytest.approx(law_found.exponent, abs=3e-4)
                    assert mine[0][k] == pytest.approx(np.log(law_found.predict(np.array(1e20))), abs=2e-3)
    assert compared > 60


def test_a_noiseless_design_resolves_the_truth():
    made, law = bench(), law_of(Truth())
    found = analyse_power(made, law, Noise(seed_nats=1e-7), QUICK)
    truth = np.polyfit(np.log(INSIDE), np.log([Truth().optimum(c) for c in INSIDE]), 1)[0]
    assert found.of().true == pytest.approx(truth, abs=1e-6)
    assert found.of().median == pytest.approx(truth, abs=1e-4)
    assert found.of().spread < 1e-3 and found.all_inside == 1.0
    assert found.of(name="surface").median == pytest.approx(truth, abs=1e-3)
    assert [item.true for item in found.outlooks] == pytest.approx([Truth().optimum(c) for c in INSIDE])


def test_the_interval_of_an_analyst_is_near_the_spread_of_the_estimates():
    """At a noise so low that the fit is linear; `validation/design.py` has the rest."""
    made = bench(budgets=INSIDE, recurrences=(2, 3.0, 4, 6, 8, 10, 12, 16, 20))
    found = analyse_power(
        made, law_of(Truth()), Noise(seed_nats=0.0005), replace(QUICK, studies=300, analysts=9)
    )
    item = found.of()
    assert item.without_interval == 0
    # A median of 9 and a quantile of 300 scatter by some per cent each; Student's factor adds 4 %.
    assert 0.8 < item.interval / item.spread < 1.3
    assert "FLOPs, 4 times the largest budget (true " in found.summary()


def test_a_grid_that_misses_the_optima_says_so():
    made = bench(budgets=PAPER_GRID)
    low = law_of(Truth(a_amplitude=0.02 * 522733.307))  # optima far below two loops
    found = analyse_power(made, low, Noise(seed_nats=0.002), QUICK)
    assert found.of().true is None and found.of().interval is None
    assert found.all_inside == 0.0
    assert found.outlooks[0].below > 0.95
    for words in ("not resolved", "mostly below it", "no control in the grid"):
        assert words in found.summary()
    assert true_exponent(made, low, "mean_recurrence", [0, 1, 2]) is None


def test_power_grows_with_the_margin_and_needs_replicates():
    made = bench(budgets=INSIDE[1:4], replicates=((0, 0), (1, 1), (2, 2)), fixed=True)
    noise, law = Noise(seed_nats=0.002), law_of(Truth())
    none, wide = (
        analyse_power(made, law, noise, replace(QUICK, margin_nats=margin)).outlooks[1]
        for margin in (1e-6, 0.03)
    )
    assert none.power < 0.15 and wide.power > 0.95
    bare = analyse_power(bench(budgets=INSIDE[1:4], fixed=True), law, noise, QUICK)
    assert bare.outlooks[1].power is None and bare.outlooks[1].power_known is not None
    assert "training noise unknown" in bare.summary()


def test_the_same_settings_give_the_same_bytes():
    made, law, noise = bench(budgets=INSIDE[1:4]), law_of(Truth()), Noise(seed_nats=0.002)
    one, other = (analyse_power(made, law, noise, QUICK).to_json() for _ in range(2))
    assert one == other


def test_a_grid_without_curves_is_refused():
    with pytest.raises(TableError, match="2 recurrences, at least 4 are needed"):
        bench(recurrences=(2, 4))
    runs, _ = study(budgets=INSIDE[:1])
    with pytest.raises(TableError, match="no looped runs"):
        grid(runs[runs["kind"] == "fixed"], "non_embedding")


def test_the_figure_is_clean_for_one_law_and_for_a_law_that_is_not_resolved():
    noise, laws = Noise(seed_nats=0.005), (law_of(Truth()), law_of(Truth(a_amplitude=1e4)))
    made = bench(budgets=PAPER_GRID)
    results = [analyse_power(made, law, noise, replace(QUICK, analysts=1)) for law in laws]
    for shown in (results[:1], results):
        drawn = design_figure(shown)
        assert extents.problems_of([drawn]) == []
    assert len(drawn.tables["optima"]) == 2 * len(PAPER_GRID)
    assert len(drawn.tables["exponents"]) == QUICK.studies
