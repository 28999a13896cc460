"""The gain of a score from depth: known laws are found again, noise is refused."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.laws.score_curve import fit_gain

DEPTHS = np.array([1, 2, 3, 4, 6, 8, 12])


def items(curve, count, seed):
    """Means of items that are right with probability `curve`, one threshold for all depths of an item."""
    draw = np.random.default_rng(seed)
    right = draw.random(count)[:, None] < curve  # [items, D]
    picks = draw.integers(count, size=(400, count))
    return right.mean(axis=0), right[picks].mean(axis=1)


def test_a_known_law_lies_within_its_intervals():
    truth = 0.40 - 0.5 * np.exp(-0.9 * DEPTHS)
    inside = []
    for seed in range(20):
        curve, resampled = items(truth, 3000, seed)
        fit = fit_gain(DEPTHS, curve, resampled)
        assert fit.refusal is None and fit.gain == pytest.approx(truth[-1] - truth[0], abs=0.04)
        inside.append(fit.ceiling_low <= 0.40 <= fit.ceiling_high and fit.rate_low <= 0.9 <= fit.rate_high)
    assert sum(inside) >= 15  # both 95 % intervals at once


def test_an_exact_curve_is_found_exactly():
    curve = 0.3 - 0.2 * np.exp(-0.5 * DEPTHS)
    fit = fit_gain(DEPTHS, curve, np.tile(curve, (50, 1)))
    assert fit.ceiling == pytest.approx(0.3, rel=1e-8) and fit.rate == pytest.approx(0.5, rel=1e-8)
    assert "ceiling 0.3" in fit.summary()


@pytest.mark.parametrize(
    ("curve", "reason"),
    [(np.full(7, 0.25), "the gain may be 0"), (0.2 + 0.02 * DEPTHS, "z is not identified")],
)
def test_what_the_data_do_not_show_is_refused(curve, reason):
    fit = fit_gain(DEPTHS, *items(curve, 2000, 0))
    assert fit.refusal == reason and fit.rate is None and reason in fit.summary()


def test_few_depths_are_refused():
    curve, resampled = items(np.array([0.2, 0.4]), 500, 0)
    fit = fit_gain(np.array([1, 8]), curve, resampled)
    assert "2 depths, at least 5" in fit.summary() and fit.gain_low > 0.1
