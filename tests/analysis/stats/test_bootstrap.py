import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from analysis import FitConfig, TableError, fit, isoflop
from analysis.laws.fit import fit_law
from analysis.laws.law import joint_law
from analysis.laws.registry import LAWS
from analysis.stats.bootstrap import interval, student_interval
from tests.analysis.synthetic import INSIDE, study


def points(noise=0.003, seed=0):
    """Six isoFLOP curves of a known surface, twelve sizes each, two points to a block."""
    rng = np.random.default_rng(seed)
    budget = np.repeat(np.geomspace(1e18, 1e20, 6), 12)
    best = (0.34 * 406.4 / 0.28 / 410.7) ** (1 / 0.62) * (budget / 6) ** (0.28 / 0.62)
    params = best * np.tile(np.geomspace(0.2, 5, 12), 6)
    loss = 1.69 + 406.4 * params**-0.34 + 410.7 * (budget / 6 / params) ** -0.28
    table = {"compute": budget, "x": params, "loss": loss + noise * rng.standard_normal(72)}
    return pd.DataFrame({**table, "block": np.arange(72) // 2})


@pytest.mark.parametrize("how", ["pairs", "stratified", "block"])
def test_drawn_runs_give_intervals_of_the_noise_s_width(how):
    base = isoflop(points(), config=FitConfig(bootstrap=300, validation=False, profiles=False))
    drawn = isoflop(points(), config=FitConfig(bootstrap=300, validation=False, resampling=how))
    for name in ("shared shape", "parabola", "surface"):
        one, other = (f.group.estimator(name).laws["params"] for f in (base, drawn))
        assert one.exponent == other.exponent
        assert other.exponent_low < 0.28 / 0.62 < other.exponent_high
        ratio = (other.exponent_high - other.exponent_low) / (one.exponent_high - one.exponent_low)
        # Draws across budgets thin single curves out, which widens what is fitted curve by curve.
        assert 0.5 < ratio < (2.0 if name == "surface" or how == "stratified" else 12.0)
    assert drawn.group.estimator("surface").intervals == "by bootstrap"


def test_few_blocks_are_refused_and_missing_ones_named():
    config = FitConfig(bootstrap=100, validation=False, resampling="block", block="target_flops")
    with pytest.raises(ValueError, match=r"^resampling=block: 5 blocks are fewer than 10"):
        fit(*study(budgets=INSIDE, fixed=False), config)
    with pytest.raises(TableError, match=r"^block=nothing is no column of the runs table$"):
        fit(*study(budgets=INSIDE), FitConfig(bootstrap=100, resampling="block", block="nothing"))


@pytest.mark.parametrize(
    ("samples", "confidence", "rank"),
    [
        (1000, 0.95, 25),
        (999, 0.95, 25),
        (400, 0.95, 10),
        (200, 0.95, 5),
        (999, 0.9, 50),
        (20, 0.95, 1),
        (1, 0.95, 1),
    ],
)
def test_a_percentile_interval_leaves_out_as_many_samples_on_either_side(samples, confidence, rank):
    """The (R + 1) tail-th order statistic from either end (Davison & Hinkley 1997, section 5.2.1)."""
    shuffled = np.random.default_rng(0).permutation(np.arange(1.0, samples + 1))
    assert interval(shuffled, confidence) == (rank, samples + 1 - rank)


def test_a_percentile_interval_turns_with_the_sign():
    values = np.random.default_rng(0).standard_normal(1100)
    for count in range(1, 1101):
        low, high = interval(values[:count], 0.95)
        assert interval(-values[:count], 0.95) == (-high, -low)
    assert interval(np.array([-np.inf, *values[:19], np.nan]), 0.95) == (None, values[:19].max())


def test_few_blocks_take_students_interval():
    """k block means of unit variance: the exact interval is t(k - 1) times their standard error."""
    means = np.random.default_rng(0).standard_normal(5)
    weights = np.random.default_rng(1).multinomial(5, np.full(5, 0.2), size=200_000)
    drawn = (weights @ means / 5)[:, None]
    low, high = student_interval(np.array([means.mean()]), drawn, 5, 0.95)
    half = student.ppf(0.975, 4) * means.std(ddof=1) / np.sqrt(5)
    assert (high - low)[0] / 2 == pytest.approx(half, rel=0.01)
    with pytest.raises(ValueError, match="2 blocks cannot give an interval, at least 3 are needed"):
        student_interval(np.array([0.0]), drawn, 2, 0.95)


def test_a_law_says_when_blocks_were_few():
    table = points()
    data = {"params": table["x"], "tokens": table["compute"] / 6 / table["x"]}
    found = fit_law(
        "surface", data, table["loss"], bootstrap=100, resampling="block", labels=table["compute"].to_numpy()
    )
    assert found.resampling.endswith(
        "6 blocks are too few for percentiles: Student's t with 5 degrees of freedom"
    )
    assert found.intervals["alpha"][0] < found.parameters["alpha"] < found.intervals["alpha"][1]


def test_a_joint_law_shares_exponents_and_keeps_amplitudes():
    law = joint_law(LAWS["surface"], ["small", "large"])
    rng = np.random.default_rng(0)
    data = {
        "params": 10 ** rng.uniform(7, 9, 60),
        "tokens": 10 ** rng.uniform(9, 11, 60),
        "size": np.repeat([1.0, 2.0], 30),
    }
    e, a = np.where(data["size"] == 1, 1.8, 1.6), np.where(data["size"] == 1, 300.0, 500.0)
    found = fit_law(law, data, e + a * data["params"] ** -0.34 + 400 * data["tokens"] ** -0.3).parameters
    expected = {
        "E[small]": 1.8,
        "E[large]": 1.6,
        "A[small]": 300,
        "A[large]": 500,
        "alpha": 0.34,
        "beta": 0.3,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
