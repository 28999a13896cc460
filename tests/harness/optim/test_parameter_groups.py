"""Schedules against their closed forms."""

from __future__ import annotations

import pytest

from harness.optim.parameter_groups import learning_rate_factor, weight_decay_factor
from harness.run.config import ScheduleConfig


def test_trapezoid_is_constant_then_linear_and_never_zero():
    schedule = ScheduleConfig(cooldown_fraction=0.5)
    factors = [learning_rate_factor(schedule, step, 10) for step in range(10)]
    assert factors == pytest.approx([1, 1, 1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_the_stable_phase_does_not_depend_on_the_length():
    schedule = ScheduleConfig(cooldown_fraction=0.2, warmup_steps=3)
    for step in range(80):
        short = learning_rate_factor(schedule, step, 100), weight_decay_factor(schedule, step, 100)
        long = learning_rate_factor(schedule, step, 1000), weight_decay_factor(schedule, step, 1000)
        assert short == long, step


def test_published_weight_decay_is_linear_over_the_run():
    schedule = ScheduleConfig(weight_decay="linear")
    assert [weight_decay_factor(schedule, step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_warmup_rises_to_the_peak():
    schedule = ScheduleConfig(warmup_steps=4)
    factors = [learning_rate_factor(schedule, step, 100) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


@pytest.mark.parametrize(("shape", "middle"), [("cosine", 0.5), ("linear", 0.5)])
def test_cosine_and_linear_pass_their_middle(shape, middle):
    assert learning_rate_factor(ScheduleConfig(shape=shape), 50, 100) == pytest.approx(middle)
