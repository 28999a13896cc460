import dataclasses
import json
import math
import random

import pytest
import torch

from harness.distributed.parallel import replicate
from harness.distributed.process_group import ALONE
from harness.run.config import GuardrailsConfig
from harness.training.diagnostics import Diverged, GradientNorms, LossGuard, StateProbe, spectral_radius
from model.config import ModelConfig
from model.transformer import build_model

SHAPE = {
    "width": 32,
    "heads": 2,
    "prelude_layers": 1,
    "core_layers": 1,
    "coda_layers": 1,
    "vocabulary_size": 64,
    "sequence_length": 16,
}


def replica(**more):
    return replicate(build_model(ModelConfig(**SHAPE, **more), seed=0), ALONE, "ddp")


def with_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("limit", [1.0, 1e6])
def test_clipping_is_that_of_torch(limit):
    ours, theirs = replica(), replica()
    with_gradients(ours.model)
    with_gradients(theirs.model)
    norms = GradientNorms(ours)
    norm = math.sqrt(norms.squares().sum())
    expected = torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), limit)
    assert norm == pytest.approx(float(expected), rel=1e-5)
    norms.rescale(1.0, norm, limit)
    for mine, reference in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-5, atol=1e-9)


def test_gradient_norms_come_by_part():
    one = replica()
    for parameter in one.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    one.model.injection.B.grad[0, 0] = 3.0
    one.model.core[0].attn.c_q.weight.grad[0, 0] = 4.0
    one.model.final_norm.weight.grad[0] = 12.0
    norms = GradientNorms(one)
    squares = dict(zip(norms.names, norms.squares().tolist(), strict=True))
    assert {name for name, square in squares.items() if square} == {"injection", "core", "other"}
    assert squares["injection"] == 9.0 and squares["core"] == 16.0 and squares["other"] == 144.0


def test_the_state_is_measured_after_each_loop_of_each_sequence():
    # Blocks start as the identity, so an added injection leaves t times the prelude after t loops from zero.
    one = replica(injection="add", state_init="zero", value_embeddings=False)
    probe = StateProbe(one.model)
    tokens = torch.arange(48).view(3, 16)
    with probe.probing([2, 4, 1], due=True):
        one.forward(tokens, tokens, [2, 4, 1], [0, 1, 2])
    rms = probe.by_loop()
    # The prelude's norm leaves a root mean square of 1, but for its epsilon.
    assert rms == pytest.approx([1.0, 2.0, 3.0, 4.0], rel=1e-3)
    one.forward(tokens, tokens, [2, 4, 1], [0, 1, 2])
    assert probe.by_loop() == []


def test_the_spectral_radius_is_the_injections_own():
    assert spectral_radius(replica()) == pytest.approx(math.sqrt(0.2), rel=1e-5)
    assert spectral_radius(replica(injection="add")) == 1.0
    linear = replica(injection="linear")
    with torch.no_grad():
        linear.model.injection.weight[:, :32] = torch.diag(torch.linspace(0.1, 0.9, 32))
    assert spectral_radius(linear) == pytest.approx(0.9, rel=1e-5)


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
