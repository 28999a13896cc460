import hashlib
from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from model.depth import counter_seed, depth_probabilities, draw_depths, expected_depths
from tests.model import fixtures
from tests.model.test_transformer import TINY


def configured(sampling, mean, **fields):
    return replace(TINY, depth_sampling=sampling, mean_recurrence=mean, **fields)


@pytest.mark.parametrize("mean", [1, 2, 4.5, 12, 40])
@pytest.mark.parametrize("sampling", ["poisson", "stratified"])
def test_poisson_is_clamped_at_one(sampling, mean):
    table = depth_probabilities(configured(sampling, mean))
    law = stats.poisson(mean)
    expected = [law.cdf(1), *law.pmf(range(2, len(table) + 1))]
    np.testing.assert_allclose(table, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("mean", "loops", "backprop"),
    [
        (1, 1.368, 1.0),
        (2, 2.134, 1.0),
        (4, 4.015, 1.908),
        (6, 6.0, 2.920),
        (8, 8.0, 3.941),
        (12, 12.0, 5.969),
    ],
)
def test_expected_depths_of_the_published_sampler(mean, loops, backprop):
    # a simulation of the published code, good to about 0.004
    found = expected_depths(configured("poisson", mean))
    assert found == pytest.approx((loops, backprop), abs=4e-3)


def test_log_normal_poisson_against_numerical_integration():
    table = depth_probabilities(configured("poisson_lognormal", 8))
    rate = stats.lognorm(s=0.5, scale=8 * np.exp(-0.125))

    def probability(depth):
        return integrate.quad(lambda r: stats.poisson.pmf(depth - 1, r) * rate.pdf(r), 0, 120, limit=200)[0]

    for depth in (1, 2, 5, 9, 20, 40):
        assert table[depth - 1] == pytest.approx(probability(depth), rel=1e-6)
    assert expected_depths(configured("poisson_lognormal", 8))[0] == pytest.approx(9.0, rel=1e-6)


def test_fixed_depth_is_fixed():
    config = configured("fixed", 3)
    assert expected_depths(config) == (3.0, 2.0)
    assert draw_depths(config, seed=1, step=2, batch=5).tolist() == [3] * 5


@pytest.mark.parametrize("sampling", ["poisson", "stratified", "poisson_lognormal"])
def test_draws_follow_the_law_at_every_place_in_the_batch(sampling):
    config = configured(sampling, 4)
    draws = np.array([draw_depths(config, seed=0, step=step, batch=6) for step in range(4000)])
    table = np.array(depth_probabilities(config))
    frequent = table > 0.01
    for place in range(6):
        counts = np.bincount(draws[:, place], minlength=len(table) + 1)[1:]
        rest = 4000 - counts[frequent].sum()
        observed = [*counts[frequent], rest]
        expected = [*(4000 * table[frequent]), 4000 * (1 - table[frequent].sum())]
        assert stats.chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize("sampling", ["poisson", "stratified", "poisson_lognormal"])
def test_a_draw_depends_on_seed_step_and_place_alone(sampling):
    config = configured(sampling, 8)
    draws = draw_depths(config, seed=3, step=5, batch=64)
    assert draws.dtype == np.int64
    assert (draw_depths(config, seed=3, step=5, batch=16) == draws[:16]).all()
    assert (draw_depths(config, seed=3, step=6, batch=64) != draws).any()
    assert (draw_depths(config, seed=4, step=5, batch=64) != draws).any()


def test_one_draw_per_batch():
    config = configured("poisson", 8, depth_per="batch")
    draws = [draw_depths(config, seed=0, step=step, batch=4) for step in range(40)]
    assert all(len(set(draw)) == 1 for draw in draws)
    assert len({int(draw[0]) for draw in draws}) > 4


@pytest.mark.parametrize("part", [slice(0, 32), slice(8, 16)])
def test_stratified_sums_hardly_vary_over_the_batch_nor_over_a_rank(part):
    def spread(sampling):
        config = configured(sampling, 8)
        return np.std([draw_depths(config, seed=0, step=s, batch=32)[part].sum() for s in range(300)])

    assert spread("stratified") < 0.3 * spread("poisson")


def test_published_draws_have_the_moments_of_our_law():
    out = fixtures.load("depth_draws_mu8_s4_B16")
    without, with_gradient = (np.concatenate([out[f"{k}{i}"] for i in range(10)]) for k in "nk")
    loops, backprop = expected_depths(configured("poisson", 8))
    assert (without + with_gradient).min() >= 1
    assert (without + with_gradient).mean() == pytest.approx(loops, abs=4 * np.sqrt(8 / 160))
    assert with_gradient.mean() == pytest.approx(backprop, abs=0.1)


def test_counter_seeds_are_the_same_in_every_process():
    digest = hashlib.blake2b(b"str:depth\x1fint:0\x1fint:1", digest_size=8).digest()
    assert counter_seed("depth", 0, 1) == int.from_bytes(digest, "little") >> 1
    assert len({counter_seed(*parts) for parts in [(1, 2), (2, 1), ("1", 2), (12,), (1, 2, 0)]}) == 5
    assert all(0 <= counter_seed("x", i) < 2**63 for i in range(100))
