from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from model.config import ModelConfig
from model.kernels import AUTO, reference, summed_nats
from model.transformer import build_model
from tests.model.masked import masked_loss

torch.set_num_threads(1)
TINY = ModelConfig(
    width=32,
    heads=2,
    prelude_layers=1,
    core_layers=1,
    coda_layers=1,
    vocabulary_size=64,
    sequence_length=16,
    mean_recurrence=4,
)


def awake(config, seed=0, kernels=AUTO):
    """Move a model away from its start, where every block is the identity."""
    model = build_model(config, seed=seed, kernels=kernels)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def batch(config, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (size, config.sequence_length)
    tokens = torch.randint(config.vocabulary_size, shape, generator=generator)
    labels = torch.randint(config.vocabulary_size, shape, generator=generator)
    labels[0, :5] = -100
    return tokens, labels


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


VARIANTS = {
    "as published": TINY,
    "two core layers": replace(TINY, core_layers=2),
    "one key/value head": replace(TINY, heads=4, kv_heads=1),
    "gated MLP": replace(TINY, mlp="swiglu", mlp_width=24),
    "linear": replace(TINY, injection="linear"),
    "add": replace(TINY, injection="add"),
    "exact hold": replace(TINY, exact_zero_order_hold=True),
    "bare": replace(TINY, value_embeddings=False, prelude_norm=False, readout=False, state_init="zero"),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("depths", [[5, 1, 3, 2], [2, 2, 2, 2], [1, 7, 1, 7]])
def test_computing_the_active_sequences_alone_equals_the_masked_form(config, depths):
    model, (tokens, labels), seeds = awake(config), batch(config), [7, 8, 9, 10]
    ours = model.loss(tokens, labels, depths, seeds)
    masked = masked_loss(model, tokens, labels, depths, seeds)
    assert ours.item() == pytest.approx(masked.item(), rel=1e-6)
    ours, masked = gradients(model, ours), gradients(model, masked)
    assert ours.keys() == masked.keys()
    for name, gradient in masked.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8, name


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_parameter_gets_a_gradient(config):
    model, (tokens, labels) = awake(config), batch(config)
    found = gradients(model, model.loss(tokens, labels, [3, 1, 2, 4], [0, 1, 2, 3]))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.norm() > 0 for gradient in found.values())


@settings(max_examples=15, deadline=None)
@given(prelude=st.integers(0, 3), core=st.integers(1, 3), coda=st.integers(0, 3))
def test_any_number_of_layers_wires_every_table_to_its_gate(prelude, core, coda):
    config = replace(TINY, prelude_layers=prelude, core_layers=core, coda_layers=coda)
    model, (tokens, labels) = awake(config), batch(config)
    found = gradients(model, model.loss(tokens, labels, [3, 1, 2, 4], [0, 1, 2, 3]))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert str(config.layers - 1) in model.value_tables


def test_depth_curve_equals_one_forward_pass_per_depth():
    model, (tokens, labels), seeds = awake(TINY), batch(TINY), [3, 4, 5, 6]
    curve = model.depth_losses(tokens, labels, 6, seeds)
    assert curve.shape == (6, 4)
    for depth in range(1, 7):
        expected = model.loss(tokens, labels, [depth] * 4, seeds, reduction="sum")
        assert curve[depth - 1].sum().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_sequence_does_not_feel_its_neighbours():
    model, (tokens, _) = awake(TINY), batch(TINY)
    together = model.logits(tokens, [5, 1, 3, 2], [7, 8, 9, 10])
    for i, depth in enumerate([5, 1, 3, 2]):
        alone = model.logits(tokens[i : i + 1], [depth], [7 + i])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)
    other_state = model.logits(tokens, [5, 1, 3, 2], [7, 8, 9, 11])
    assert torch.equal(other_state[:3], together[:3])
    assert not torch.equal(other_state[3], together[3])


def test_sum_and_mean_differ_by_the_number_of_labels():
    model, (tokens, labels) = awake(TINY), batch(TINY)
    mean = model.loss(tokens, labels, [2] * 4, range(4))
    total = model.loss(tokens, labels, [2] * 4, range(4), reduction="sum")
    assert total.item() == pytest.approx(mean.item() * (4 * 16 - 5), rel=1e-6)


def test_no_token_sees_its_future():
    model, (tokens, _) = awake(TINY), batch(TINY)
    changed = tokens.clone()
    changed[:, 10] = (changed[:, 10] + 1) % TINY.vocabulary_size
    a, b = (model.logits(ids, [3] * 4, range(4)) for ids in (tokens, changed))
    torch.testing.assert_close(a[:, :10], b[:, :10], rtol=0, atol=1e-6)
    assert not torch.allclose(a[:, 10:], b[:, 10:], atol=1e-3)


def test_recomputing_the_loops_changes_nothing():
    model, (tokens, labels) = awake(TINY), batch(TINY)
    plain = gradients(model, model.loss(tokens, labels, [5, 1, 3, 2], range(4)))
    model.checkpoint_loops = True
    recomputed = gradients(model, model.loss(tokens, labels, [5, 1, 3, 2], range(4)))
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_equal_seeds_give_equal_bits_and_global_random_state_stays():
    before = torch.random.get_rng_state()
    first, second = build_model(TINY, seed=5), build_model(TINY, seed=5)
    tokens, labels = batch(TINY)
    losses = [model.loss(tokens, labels, [3, 1, 2, 2], range(4)).item() for model in (first, second)]
    assert losses[0] == losses[1]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(build_model(TINY, seed=6).embedding, first.embedding)


def test_first_states_are_a_normal_cut_at_three_sigma():
    config = replace(TINY, width=64, sequence_length=512)
    states = build_model(config, seed=0)._first_states(range(8), torch.empty(8, 512, 64))
    sigma = (2 / (5 * 64)) ** 0.5
    assert states.abs().max() <= 3 * sigma * 1.0001
    assert states.abs().max() > 2.99 * sigma
    assert states.mean().abs() < 4 * sigma / states.numel() ** 0.5
    assert states.std().item() == pytest.approx(0.98658 * sigma, rel=0.01)  # of a normal cut at 3 sigma


@pytest.mark.parametrize("depths", [[1, 2, 3], [1, 2, 3, 0]])
def test_depths_that_do_not_fit_the_batch_are_refused(depths):
    model, (tokens, labels) = build_model(TINY, seed=0), batch(TINY)
    with pytest.raises(ValueError, match="expected 4 depths of at least 1"):
        model.loss(tokens, labels, depths, range(4))


def test_a_transformer_ignores_depths():
    config = replace(TINY, kind="transformer", prelude_layers=3, core_layers=0, coda_layers=0)
    model, (tokens, labels) = awake(config), batch(config)
    loss = model.loss(tokens, labels, [9, 1, 2, 3], range(4), reduction="sum")
    curve = model.depth_losses(tokens, labels, 3, range(4))
    assert curve.shape == (3, 4)
    torch.testing.assert_close(curve.sum(dim=1), loss.detach().expand(3))


@pytest.mark.parametrize("chunk", [3, 64, 10_000])
def test_chunked_cross_entropy_equals_the_plain_one(monkeypatch, chunk):
    monkeypatch.setitem(reference._CHUNK_ELEMENTS, "cpu", chunk * 11)
    monkeypatch.setattr(reference, "_LEAST_TOKENS", 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 8, generator=generator, requires_grad=True)
    head = torch.randn(11, 8, generator=generator, requires_grad=True)
    labels = torch.randint(11, (100,), generator=generator)
    labels[::7] = -100
    kernels = reference.ReferenceKernels()
    ours = summed_nats(x, head, labels, kernels)
    plain = F.cross_entropy(x @ head.T, labels, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(ours, plain)
    a, b = (torch.autograd.grad(3 * loss, (x, head)) for loss in (ours, plain))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    per_token = kernels.token_nats(x, head, labels)
    assert per_token.sum().item() == pytest.approx(plain.item(), rel=1e-6)
    assert (per_token[::7] == 0).all()


def test_bfloat16_autocast_stays_near_float32():
    model, (tokens, labels) = awake(TINY), batch(TINY)
    exact = model.loss(tokens, labels, [5, 1, 3, 2], range(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.loss(tokens, labels, [5, 1, 3, 2], range(4))
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    exact, rough = gradients(model, exact), gradients(model, rough)
    for name, gradient in exact.items():
        assert (rough[name] - gradient).norm() < 0.15 * gradient.norm(), name
