import math

import pytest
import torch

from harness.distributed.parallel import replicate
from harness.distributed.process_group import ALONE
from harness.training.diagnostics import GradientNorms, StateProbe, spectral_radius
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
