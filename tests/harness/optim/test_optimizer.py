import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.optim.optimizer import OptimizerConfig, ScheduledOptimizer, polar_factor
from harness.optim.parameter_groups import build_optimizer
from model.config import ModelConfig
from model.transformer import build_model
from tests.model import fixtures

torch.set_num_threads(1)
PUBLISHED = OptimizerConfig(newton_schulz_dtype="bfloat16", muon_momentum_start=0.95)
TINY = ModelConfig(
    width=32, heads=2, prelude_layers=1, core_layers=1, coda_layers=1, vocabulary_size=64, sequence_length=16
)


def with_random_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def tiny_step(config, steps=1):
    model = build_model(TINY, seed=0)
    optimizer = build_optimizer(model, config)
    for step in range(steps):
        with_random_gradients(model, step)
        optimizer.step()
    return model, optimizer


def test_the_fused_adamw_takes_the_same_step(monkeypatch):
    config = OptimizerConfig(name="adamw", adamw_weight_decay=0.3)
    expected, _ = tiny_step(config, steps=3)
    monkeypatch.setattr(ScheduledOptimizer, "_fuses", lambda self, parameters: True)
    fused, _ = tiny_step(config, steps=3)
    start = build_model(TINY, seed=0)
    for name, parameter in expected.named_parameters():
        moved = (parameter - start.get_parameter(name)).abs().max()
        assert (fused.get_parameter(name) - parameter).abs().max() < 1e-5 * moved, name


@pytest.fixture
def portable_bfloat16(monkeypatch):
    """Sum bfloat16 products as the processors did on which the published numbers were made.

    Processors with bfloat16 instructions (AVX512_BF16, AMX) sum them in another order through oneDNN.
    """
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.mark.usefixtures("portable_bfloat16")
def test_published_gradients_lead_to_the_published_loss():
    model, out = fixtures.model("parcae_111"), fixtures.load("parcae_111_out")
    gradients = fixtures.renamed(fixtures.load("parcae_111_grads_n2k2"))
    optimizer = build_optimizer(model, PUBLISHED)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients.get(name)
    optimizer.step()
    loss = model.loss(out["input_ids"], out["labels"], [4, 4], [0, 0])
    expected = fixtures.load("parcae_111_after3_muon_steps")["losses"][1]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # one rounding elsewhere is off by 2e-6


@pytest.mark.usefixtures("portable_bfloat16")
def test_three_steps_follow_the_published_ones():
    model, out = fixtures.model("parcae_111"), fixtures.load("parcae_111_out")
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    target = fixtures.load("parcae_111_after3_muon_steps")
    expected_losses, target = target["losses"], fixtures.renamed(target)
    optimizer = build_optimizer(model, PUBLISHED)
    for expected in expected_losses:
        loss = model.loss(out["input_ids"], out["labels"], [4, 4], [0, 0])
        assert loss.item() == pytest.approx(expected.item(), abs=2e-3)
        model.zero_grad()
        loss.backward()
        optimizer.step()
    for group in optimizer.param_groups:
        # bfloat16 iterations amplify a gradient's last bits; a missing rate factor or decay is over 15 % off.
        bound = 2e-3 if group["kind"] == "adamw" else 0.08
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if parameter.grad is not None:
                moved = (target[name] - first[name]).norm()
                assert (parameter - target[name]).norm() < bound * moved, name


def test_groups_are_the_published_ones():
    model = fixtures.model("parcae_111")
    optimizer = build_optimizer(model, OptimizerConfig())
    groups = [set(group["param_names"]) for group in optimizer.param_groups]
    described = fixtures.described("muon_groups_parcae_111")
    expected = [set(fixtures.renamed(dict.fromkeys(group["names"]))) for group in described]
    assert sorted(map(sorted, groups)) == sorted(map(sorted, expected))


def test_value_gates_can_run_under_adamw_as_the_paper_says():
    optimizer = build_optimizer(build_model(TINY, seed=0), OptimizerConfig(muon_value_gates=False))
    adamw = next(group for group in optimizer.param_groups if group["name"] == "adamw")
    gates = [name for name in adamw["param_names"] if "ve_gate" in name]
    assert gates == ["prelude.0.attn.ve_gate.weight", "coda.0.attn.ve_gate.weight"]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_agrees_with_the_library_one(decay):
    config = OptimizerConfig(name="adamw", adamw_learning_rate=1e-2, adamw_weight_decay=decay, adamw_eps=1e-8)
    ours = build_model(TINY, seed=0)
    theirs = build_model(TINY, seed=0)
    optimizer = build_optimizer(ours, config)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95), eps=1e-8)
    for step in range(4):
        for model, stepper in ((ours, optimizer), (theirs, reference)):
            with_random_gradients(model, step)
            stepper.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40), columns=st.integers(1, 40), count=st.integers(1, 3), seed=st.integers(0, 2**16)
)
def test_polar_factor_has_singular_values_near_one_and_the_same_singular_vectors(rows, columns, count, seed):
    generator = torch.Generator().manual_seed(seed)
    short = min(rows, columns)
    values = torch.rand(count, short, generator=generator) * 0.9 + 0.1  # condition number at most 10
    left, _ = torch.linalg.qr(torch.randn(count, rows, short, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(count, columns, short, generator=generator))
    factor = polar_factor(left * values[:, None] @ right.mT, 5, torch.float32)
    inner = left.mT @ factor @ right  # diagonal, all entries near 1
    assert torch.allclose(inner, torch.eye(short).expand_as(inner), atol=0.2)


def test_schedule_factors_multiply_the_peaks():
    model = build_model(TINY, seed=0)
    config = OptimizerConfig(muon_learning_rate=0.02, adamw_learning_rate=0.01, muon_weight_decay=0.3)
    optimizer = build_optimizer(model, config)
    optimizer.set_schedule(0.5, 0.25)
    rates = {group["kind"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert rates == {"adamw": (0.005, 0.0), "muon": (0.01, 0.075)}
    before = [p.detach().clone() for p in model.parameters()]
    with_random_gradients(model, 0)
    optimizer.set_schedule(0.0, 1.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_muon_update_has_the_same_size_in_every_row_of_a_tall_matrix():
    model, _ = tiny_step(OptimizerConfig(muon_weight_decay=0.0, muon_learning_rate=0.01))
    first = build_model(TINY, seed=0).get_parameter("core.0.mlp.fc.weight")  # 128 x 32
    moved = model.get_parameter("core.0.mlp.fc.weight") - first
    rows = moved.norm(dim=1)
    assert rows.max() / rows.min() < 1.001
    # A semi-orthogonal 128 x 32 matrix has norm √32; the rate is multiplied by √(128 / 32).
    assert moved.norm().item() == pytest.approx(0.01 * 2 * math.sqrt(32), rel=0.1)


def test_cautious_decay_spares_the_weights_that_the_update_lets_grow():
    plain = OptimizerConfig(muon_weight_decay=0.0)
    name = "core.0.attn.c_q.weight"
    first = build_model(TINY, seed=0).get_parameter(name)
    without = tiny_step(plain)[0].get_parameter(name)
    cautious = tiny_step(replace(plain, muon_weight_decay=0.5))[0].get_parameter(name)
    everywhere = tiny_step(replace(plain, muon_weight_decay=0.5, cautious_weight_decay=False))[0]
    shrinks = (first - without) * first >= 0
    expected = without - 8e-3 * 0.5 * first * shrinks
    torch.testing.assert_close(cautious, expected, rtol=0, atol=1e-7)
    all_decayed = without - 8e-3 * 0.5 * first
    torch.testing.assert_close(everywhere.get_parameter(name), all_decayed, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["muon_adamw", "adamw"])
def test_state_round_trip_continues_with_the_same_bits(name):
    config = OptimizerConfig(name=name)
    straight, _ = tiny_step(config, steps=4)
    model, optimizer = tiny_step(config, steps=2)
    stored = {key: value.clone() for key, value in optimizer.state_tensors().items()}
    resumed = build_optimizer(model, config)
    resumed.load_state_tensors(stored)
    for step in (2, 3):
        with_random_gradients(model, step)
        resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), model.parameters(), strict=True))


def test_a_foreign_state_is_refused_and_changes_nothing():
    _, optimizer = tiny_step(OptimizerConfig())
    stored = {key: value.clone() for key, value in optimizer.state_tensors().items()}
    bad = {**stored, "extra": torch.zeros(1)}
    del bad["embedding.first_moment"]
    with pytest.raises(ValueError, match=r"missing \['embedding.first_moment'\], unexpected \['extra'\]"):
        optimizer.load_state_tensors(bad)
    assert all(torch.equal(value, stored[key]) for key, value in optimizer.state_tensors().items())


def test_a_parameter_without_gradient_stays_where_it_is():
    model = build_model(TINY, seed=0)
    optimizer = build_optimizer(model, OptimizerConfig())
    with_random_gradients(model, 0)
    idle = model.get_parameter("core.0.attn.c_q.weight")
    before, idle.grad = idle.detach().clone(), None
    optimizer.step()
    assert torch.equal(idle, before)
