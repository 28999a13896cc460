import dataclasses
import json
import math
import random

import pytest

from harness.run.config import GuardrailsConfig
from harness.training.guardrails import Diverged, LossGuard

CONFIG = GuardrailsConfig(max_skipped_steps=3, average_steps=20, spike_deviations=6.0, max_rise_nats=2.0)


def feed(guard, losses, config=CONFIG):
    return [guard.admits(config, loss, 1.0, step) for step, loss in enumerate(losses)]


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)])
def test_a_step_without_finite_loss_and_gradient_is_skipped_and_counted(bad):
    guard = LossGuard()
    assert guard.admits(CONFIG, 2.0, 1.0, 0)
    assert not guard.admits(CONFIG, *bad, 1)
    assert guard.admits(CONFIG, 2.0, 1.0, 2)
    assert guard.skipped_steps == 1 and guard.skipped_in_a_row == 0 and guard.mean_nats == 2.0


def test_too_many_skipped_steps_in_a_row_are_divergence():
    guard = LossGuard()
    feed(guard, [2.0, math.nan, math.nan, 2.0, math.nan, math.nan])
    with pytest.raises(Diverged, match="3 steps in a row without a finite loss"):
        guard.admits(CONFIG, math.nan, 1.0, 6)
    assert guard.skipped_steps == 5


def test_a_loss_far_above_its_mean_is_a_spike():
    draw = random.Random(0)
    quiet = [2.0 + draw.gauss(0, 0.01) for _ in range(100)]
    guard = LossGuard()
    feed(guard, quiet)
    assert guard.loss_spikes == 0
    assert guard.variance**0.5 == pytest.approx(0.01, rel=0.5)
    feed(guard, [2.2, *quiet[:3]])  # 20 standard deviations
    assert guard.loss_spikes == 1


def test_the_mean_is_plain_until_the_horizon():
    guard = LossGuard()
    feed(guard, [4.0, 2.0, 3.0, 7.0])
    assert guard.mean_nats == pytest.approx(4.0) and guard.variance == pytest.approx(3.5)


def test_a_loss_that_rises_for_good_is_divergence():
    guard = LossGuard()
    feed(guard, [3.0] * 30)
    with pytest.raises(Diverged, match=r"rose from 3 to .* more than guardrails.max_rise_nats=2.0"):
        feed(guard, [9.0] * 30)
    unlimited = dataclasses.replace(CONFIG, max_rise_nats=None)
    assert all(feed(LossGuard(), [3.0] * 30 + [9.0] * 30, unlimited))


def test_the_state_survives_json_to_the_last_bit():
    guard, twin = LossGuard(), LossGuard()
    losses = [2.0 + math.sin(i) / 3 for i in range(60)]
    feed(guard, losses)
    feed(twin, losses[:37])
    twin = LossGuard(**json.loads(json.dumps(dataclasses.asdict(twin))))
    feed(twin, losses[37:])
    assert twin == guard
