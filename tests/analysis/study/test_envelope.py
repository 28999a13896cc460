"""The envelope over an axis: the best value per cell, and a least loss that is not low by selection."""

import numpy as np
import pandas as pd
import pytest

from analysis import FitConfig, fit
from analysis.compare.compare import compare
from analysis.report import html
from analysis.study.envelope import least_losses
from analysis.study.least_losses import shortfall
from tests.analysis.synthetic import INSIDE, Truth, study

QUICK = FitConfig(bootstrap=100, validation=False)
CELL = ["kind", "mean_recurrence", "target_flops"]
RATES = (0.004, 0.008, 0.016, 0.032)


def tuned(noise_nats=0.0, seed=0, penalty=0.05, rates=RATES, **kwargs):
    """One run per learning rate: the loss rises by the squared distance in logs from the best."""
    base, depths = study(Truth(), **kwargs)
    best = np.log(0.016) - 0.4 * np.log(base["mean_recurrence"] / 2)
    tables = []
    for rate in rates:
        lost = penalty * (np.log(rate) - best) ** 2
        named = {"adamw_learning_rate": rate, "run_id": base["run_id"] + f"-{rate}"}
        tables.append(base.assign(val_loss_nats=base["val_loss_nats"] + lost, **named))
    runs = pd.concat(tables, ignore_index=True)
    runs["val_loss_nats"] += noise_nats * np.random.default_rng(seed).standard_normal(len(runs))
    return runs, depths.iloc[:0]


def nearest(mu):
    best = np.log(0.016) - 0.4 * np.log(mu / 2)
    return min(RATES, key=lambda rate: abs(np.log(rate) - best))


def test_every_cell_has_its_best_rate_and_the_law_is_that_of_the_least_losses():
    runs, _ = tuned()
    cells, table = least_losses(runs, ["adamw_learning_rate"], 1e-6, 10)
    assert len(cells) == len(table) == 35
    for cell in cells:
        assert cell.best == f"adamw_learning_rate={nearest(cell.mean_recurrence):g}"
        assert cell.shortfall_nats == pytest.approx(0, abs=1e-9) and cell.values == 4
        assert not cell.at_edge and cell.within_noise == 1
    least = runs.groupby(CELL)["val_loss_nats"].min()
    found = table.set_index(CELL)["val_loss_nats"].sort_index()
    pd.testing.assert_series_equal(found, least, check_dtype=False)


@pytest.mark.parametrize(("count", "low"), [(2, 0.564), (4, 1.029), (6, 1.267)])  # of normal order statistics
def test_the_shortfall_of_equal_arms_is_the_expected_least_of_normal_errors(count, low):
    errors = np.full(count, 0.01)
    assert shortfall(np.full(count, 3.0), errors, 0.0) == pytest.approx(0.01 * low, rel=0.03)
    apart = np.linspace(3.0, 3.2, count)
    assert shortfall(apart, errors, 1.0) == pytest.approx(0, abs=3e-4)
    assert shortfall(apart[:1], errors[:1], 1.0) == 0


def test_the_envelope_of_equal_rates_is_not_low_by_selection():
    noise, errors, raw = 0.005, [], []
    clean = tuned(penalty=0.0)[0]
    truth = clean.groupby(CELL)["val_loss_nats"].first()
    for seed in range(4):
        drawn = noise * np.random.default_rng(seed).standard_normal(len(clean))
        runs = clean.assign(val_loss_nats=clean["val_loss_nats"] + drawn)
        cells, _ = least_losses(runs, ["adamw_learning_rate"], noise, 1000)
        for cell in cells:
            true = truth[cell.kind, cell.mean_recurrence, cell.budget_flops]
            errors.append(cell.loss_nats - true)
            raw.append(cell.loss_nats - cell.shortfall_nats - true)
        assert np.mean([cell.within_noise for cell in cells]) > 3
    assert np.mean(raw) / noise == pytest.approx(-1.03, abs=0.2)  # the least of four normal errors
    assert abs(np.mean(errors)) / noise < 0.25


def test_a_best_rate_at_the_end_of_the_axis_is_marked():
    runs, _ = tuned(rates=(*RATES[2:], 0.064), budgets=INSIDE[:1], fixed=False)
    cells, _ = least_losses(runs, ["adamw_learning_rate"], None, 0)
    assert all(cell.at_edge and cell.short() == "0.016!" for cell in cells)
    two, _ = least_losses(runs[runs["adamw_learning_rate"] < 0.05], ["adamw_learning_rate"], None, 0)
    assert not any(cell.at_edge for cell in two)  # of two values each is an end


def test_without_any_noise_level_the_best_values_stand_and_the_law_is_refused():
    runs, depths = tuned(budgets=INSIDE[:1], recurrences=(2, 4))
    result = fit(runs, depths, QUICK)
    (envelope,) = result.envelopes
    assert envelope.groups == () and len(envelope.cells) == 3
    assert "no law: the least of noisy losses lies low by an unknown amount" in result.summary()
    assert {cell.within_noise for cell in envelope.cells} == {0}


def test_rates_are_tuned_together_and_a_choice_is_an_axis_of_its_own():
    runs, depths = tuned(rates=RATES[:2], budgets=INSIDE[:1], recurrences=(2, 4), fixed=False)
    other = runs.assign(injection="linear", run_id=runs["run_id"] + "-linear")
    found = fit(pd.concat([runs, other], ignore_index=True), depths, QUICK).envelopes
    axes = [envelope.axes for envelope in found]
    assert axes == [("adamw_learning_rate",), ("adamw_learning_rate", "injection")]
    assert [len(envelope.cells) for envelope in found] == [4, 2]


def test_a_study_without_axes_has_no_envelope_in_its_json():
    result = fit(*study(budgets=INSIDE[:2], recurrences=(2, 4)), QUICK)
    assert result.envelopes == () and "envelopes" not in result.to_dict()


def test_arms_are_not_pooled_in_a_law_across_sizes():
    runs, depths = tuned(rates=RATES[:2], budgets=INSIDE[:3], recurrences=(2, 4, 6, 8), fixed=False)
    laws = [law for law in fit(runs, depths, QUICK).run_laws if law.law == "iso_depth"]
    assert [law.group.count("adamw_learning_rate=") for law in laws] == [1, 1]


def test_the_law_is_that_of_the_least_losses_and_the_page_shows_it(tmp_path):
    runs, depths = tuned(rates=RATES[:2], budgets=INSIDE[1:4], fixed=False)
    result = fit(runs, depths, QUICK)
    (envelope,) = result.envelopes
    least = runs.groupby(CELL)["val_loss_nats"].min()
    assert envelope.groups[0].runs == len(least) == 18
    assert envelope.noise_source == "residuals of the arms' curves"
    assert envelope.headlines()[0].startswith("Envelope over adamw_learning_rate, 140M, paper FLOPs: µ* = ")
    page = html.render(runs, result, compare(runs, QUICK), [], "tuned")
    assert "<h2>Envelope over adamw_learning_rate</h2>" in page
    assert "laws of the envelope" in page and '<th class="n">µ = 12</th>' in page
