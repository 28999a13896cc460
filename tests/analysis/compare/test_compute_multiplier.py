import numpy as np
import pytest

from analysis import FitConfig
from analysis.compare.compute_multiplier import Control, compute_multiplier, log_equivalent_flops
from analysis.compare.loss_difference import LowestCell
from analysis.stats.noise import NoiseFloor

BUDGETS = (1e18, 1e19, 1e20)
CONTROL = Control(budgets_flops=BUDGETS, loss_nats=(3.2, 3.0, 2.8), seeds=(1, 1, 1))
ONE_CELL = LowestCell(seeds=(1,), index=0)
QUIET, NOISY = (NoiseFloor(sd_nats=sd, degrees_of_freedom=8) for sd in (None, 0.01))


def test_the_control_is_read_linearly_in_log_compute():
    losses = np.array([3.2, 3.1, 3.0, 2.85, 3.3, 2.7])
    found = log_equivalent_flops(np.tile([3.2, 3.0, 2.8], (6, 1)), losses, BUDGETS) / np.log(10)
    assert found.tolist() == pytest.approx([18, 18.5, 19, 19.75, -np.inf, np.inf])


def test_a_control_that_rises_counts_what_it_had_reached():
    found = log_equivalent_flops(np.array([[3.2, 3.0, 3.05]]), np.array([3.0]), BUDGETS)
    assert found[0] == pytest.approx(np.log(1e19))
    assert log_equivalent_flops(np.array([[3.2, 3.0, 3.05]]), np.array([2.99]), BUDGETS)[0] == np.inf


def test_the_multiplier_has_an_interval_where_the_noise_is_known():
    found = compute_multiplier(CONTROL, 1e18, 3.1, ONE_CELL, NOISY, FitConfig(), "x")
    assert found.ratio == pytest.approx(10**0.5)
    # A loss read off at its middle scatters by .01 sqrt(1 + 1/2) nats, .2 nats being a decade; Student's t.
    half = 2.306 * 0.01 * np.sqrt(1.5) / 0.2
    assert np.log10(found.high / found.ratio) == pytest.approx(half, rel=0.12)
    assert np.log10(found.ratio / found.low) == pytest.approx(half, rel=0.12)
    unknown = compute_multiplier(CONTROL, 1e18, 3.1, ONE_CELL, QUIET, FitConfig(), "x")
    assert (unknown.ratio, unknown.low) == (pytest.approx(10**0.5), None)
    assert "training noise unknown" in unknown.summary(0.95)


def test_nothing_is_read_beyond_the_controls_budgets():
    found = compute_multiplier(CONTROL, 1e20, 2.7, ONE_CELL, NOISY, FitConfig(), "x")
    assert found.ratio is None
    assert found.refusal == "the loss 2.7000 is lower than the control's at 1e20 FLOPs"


def test_the_lowest_of_equal_cells_saves_nothing_falsely():
    """Six cells equal to the control at their budget: above one in at most half of 5 % of the studies."""
    rng, false = np.random.default_rng(0), 0
    for number in range(400):
        cells = 3.0 + 0.01 * rng.standard_normal(6)
        losses = tuple(np.array(CONTROL.loss_nats) + 0.01 * rng.standard_normal(3))
        control = Control(budgets_flops=BUDGETS, loss_nats=losses, seeds=(1, 1, 1))
        lowest = int(cells.argmin())
        floor = NoiseFloor(sd_nats=0.01, degrees_of_freedom=1000)
        config = FitConfig(bootstrap=400, seed=number)
        found = compute_multiplier(
            control, 1e19, float(cells[lowest]), LowestCell(seeds=(1,) * 6, index=lowest), floor, config, "x"
        )
        false += found.low is not None and found.low > 1
    assert false <= 19  # 2.5 % of 400 is 10; more than 19 happens once in two hundred times
