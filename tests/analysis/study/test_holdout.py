import numpy as np
import pandas as pd
import pytest

from analysis import FitConfig, fit, isoflop
from analysis.isoflop.geometry import geometry
from analysis.study.depth import depth_study
from analysis.study.holdout import holdout
from analysis.study.sensitivity import recounted
from tests.analysis.stats.test_bootstrap import points
from tests.analysis.synthetic import PAPER_GRID, Truth, study

pytestmark = pytest.mark.xdist_group("validation")  # what they share is made once


@pytest.fixture(scope="module")
def two_sizes():
    """Two sizes of one law without noise: N alone differs between them."""
    small, large = Truth(), Truth(n_core=50_331_648, n_other=102_782_464)
    parts = [study(small, budgets=PAPER_GRID[:4], fixed=True, depth_noise_nats=0.0)]
    parts.append(study(large, budgets=PAPER_GRID[1:5], scale="370M", depth_noise_nats=0.0))
    runs, depths = (pd.concat(frames) for frames in zip(*parts, strict=True))
    looped = runs["kind"] == "looped"
    return fit(runs[looped], depths, FitConfig(bootstrap=100, profiles=False))


def test_a_law_without_noise_predicts_what_it_did_not_see(two_sizes):
    rows = two_sizes.validation.rows()
    kinds = {kind for kind, row in rows if row.error_nats is not None}
    assert kinds == {"budget", "recurrence", "size", "larger budgets", "one depth", "depths beyond µ"}
    assert [row.left_out for row in two_sizes.validation.sizes] == ["140M", "370M"]
    assert max(row.error_nats for _, row in rows if row.error_nats is not None) < 1e-4


def test_sizes_share_their_exponents_in_the_unified_law(two_sizes):
    laws = {law.law: law for law in two_sizes.run_laws}
    assert set(laws) == {"iso_depth", "unified", "unified_joint"}
    found = laws["unified_joint"].fit.parameters
    assert (found["x"], found["y"], found["z"]) == pytest.approx((0.771, 0.525, 7.0), rel=2e-3)
    assert laws["iso_depth"].fit.parameters["phi"] == pytest.approx(1.0, abs=0.02)


def test_a_noisy_prediction_is_off_by_the_noise():
    table = points(noise=0.004)
    rows = isoflop(table, config=FitConfig(bootstrap=100, profiles=False)).validation.budgets
    sizes = np.array([row.error_nats for row in rows])
    # The mean size of a normal error is .8 of its deviation.
    assert sizes.mean() == pytest.approx(0.8 * 0.004, rel=0.35)


def test_other_choices_are_listed_with_the_surface_under_the_other_accounting(two_sizes):
    choices = [v.choice for v in two_sizes.sensitivity if v.group.startswith("140M")]
    assert choices[0] == "as reported (Huber 0.001, N non-embedding)"
    assert "cost: squared error" in choices
    assert "N counts all" in choices
    assert "N counts FLOPs over six" in choices
    assert choices[-1] == "FLOPs counted as released (surface alone)"
    last = next(v for v in two_sizes.sensitivity if v.choice == choices[-1])
    assert last.exponents["tokens"]["parabola"] is None
    group = two_sizes.groups[0]
    other = recounted(group, group.geometry)
    # PAPER (c.2): 828.2 of the released accounting against 526.2 at mu = 1.
    assert other.flops_fixed - group.geometry.flops_fixed == pytest.approx(302.0e6, rel=1e-3)
    text = two_sizes.summary()
    assert "size, 370M: " in text
    assert "FLOPs counted as released (surface alone), D*: shared shape –, parabola –, surface 0." in text


@pytest.mark.parametrize("accounting", ["paper", "released"])
def test_flops_over_six_count_what_the_released_code_does(accounting):
    """PAPER (c.2): 1057.9 MFLOP per token of 140M at mu = 8 as the text counts, 1359.9 as the code does."""
    runs = study(budgets=PAPER_GRID[:1], fixed=False)[0].assign(accounting=accounting)
    if accounting == "released":
        runs["flops_per_token_fixed"] += 302.0e6
    found = geometry(runs, "flops_over_six")
    assert float(found.params(8.0)) == pytest.approx(1359.9e6 / 6, rel=1e-3)
    other = 1057.9e6 if accounting == "paper" else 1359.9e6
    assert float(found.flops_per_token(8.0)) == pytest.approx(other, rel=1e-3)


def test_one_depth_is_predicted_from_the_others_and_a_spoilt_one_is_seen():
    runs, depths = study(budgets=PAPER_GRID[:3], recurrences=(4, 6, 8, 10), depth_noise_nats=0.0)

    def one_depth(points):
        config = FitConfig()
        return holdout((), config, depth_study(runs, points, config), points).one_depth

    rows = one_depth(depths)
    assert [row.left_out for row in rows] == [f"each depth at µ = {mu}" for mu in (4, 6, 8, 10)]
    assert {row.points for row in rows} == {3 * 11}  # three budgets, eleven depths
    assert max(row.error_nats for row in rows) < 1e-6
    spoilt = depths.copy()
    at = (depths["depth"] == 6) & depths["run_id"].str.contains("mu8-")
    spoilt.loc[at, "val_loss_nats"] += 0.002
    found = {row.left_out: row for row in one_depth(spoilt)}
    # One of eleven predictions is off by .002 of its own, the others by what the spoilt depth does to them.
    assert 0.002 / 11 < found["each depth at µ = 8"].error_nats < 0.001
    assert found["each depth at µ = 6"].error_nats < 1e-6
