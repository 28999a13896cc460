"""Outputs and gradients against the published implementation's."""

import pytest
import torch

from model.kernels import functional
from model.layers import rotary_table
from model.transformer import build_model
from tests.model import fixtures

torch.set_num_threads(1)
LOOPED = ["parcae_111", "parcae_222"]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", LOOPED)
def test_logits_and_losses_at_every_depth(name):
    model, out = fixtures.model(name), fixtures.load(f"{name}_out")
    tokens, labels = out["input_ids"], out["labels"]
    valid = (labels != -100).sum()
    curve = model.depth_losses(tokens, labels, 8, [0, 0]).sum(dim=1) / valid
    for depth in range(1, 9):
        expected, loss = out[f"logits_T{depth}"], out[f"loss_T{depth}"].item()
        torch.testing.assert_close(model.logits(tokens, [depth] * 2, [0, 0]), expected, rtol=0, atol=5e-5)
        assert model.loss(tokens, labels, [depth] * 2, [0, 0]).item() == pytest.approx(loss, rel=1e-6)
        assert curve[depth - 1].item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("name", LOOPED)
def test_a_short_sequence(name):
    model, out = fixtures.model(name), fixtures.load(f"{name}_out")
    logits = model.logits(out["input_ids"][:, :5], [3, 3], [0, 0])
    torch.testing.assert_close(logits, out["pos0_logits_T3_shortseq"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", LOOPED)
def test_gradients_after_two_loops_without_and_two_with_gradient(name):
    model, out = fixtures.model(name), fixtures.load(f"{name}_out")
    model.loss(out["input_ids"], out["labels"], [4, 4], [0, 0]).backward()
    expected = fixtures.renamed(fixtures.load(f"{name}_grads_n2k2"))
    without = fixtures.described(name)["params_without_grad_at_n2k2"]
    idle = set(fixtures.renamed(dict.fromkeys(without)))
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in idle:
            assert parameter.grad is None, parameter_name
        else:
            assert relative(parameter.grad, expected[parameter_name]) < 1e-5, parameter_name


@pytest.mark.parametrize("name", LOOPED)
def test_per_sequence_depths(name):
    model, steps = fixtures.model(name), fixtures.load(f"{name}_persequence")
    for step in range(4):
        without, with_gradient = steps[f"step{step}_n"], steps[f"step{step}_k"]
        depths = (without + with_gradient).tolist()
        assert [min(depth, 2) for depth in depths] == with_gradient.tolist()
        model.zero_grad()
        loss = model.loss(steps["input_ids"], steps["labels"], depths, [0] * 8)
        loss.backward()
        grads = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
        assert loss.item() == pytest.approx(steps[f"step{step}_loss"].item(), rel=1e-6)
        norm = torch.stack(grads).norm().item()
        assert norm == pytest.approx(steps[f"step{step}_gradnorm"].item(), rel=1e-5)
        assert relative(model.injection.A_log.grad, steps[f"step{step}_grad_A_log"]) < 1e-5


def test_the_plain_transformer():
    model, out = fixtures.model("gpt_4l"), fixtures.load("gpt_4l_out")
    tokens, labels = out["input_ids"], out["labels"]
    torch.testing.assert_close(model.logits(tokens, [], []), out["logits"], rtol=0, atol=5e-5)
    loss = model.loss(tokens, labels, [], [])
    assert loss.item() == pytest.approx(out["loss"].item(), rel=1e-6)
    loss.backward()
    expected = fixtures.renamed(fixtures.load("gpt_4l_grads"))
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, expected[name]) < 1e-5, name


@pytest.mark.parametrize("name", [*LOOPED, "gpt_4l"])
def test_parameter_names_and_shapes(name):
    described = fixtures.described(name)["params"]
    described.pop("lm_head.weight", None)
    expected = {ours: tuple(shape) for ours, shape in fixtures.renamed(described).items()}
    assert {key: tuple(value.shape) for key, value in fixtures.model(name).named_parameters()} == expected


@pytest.mark.parametrize("name", [*LOOPED, "gpt_4l"])
def test_first_weights_have_the_published_statistics(name):
    expected = fixtures.renamed(fixtures.load(f"{name}_init_weights"))
    for key, ours in build_model(fixtures.config(name), seed=3).state_dict().items():
        theirs = expected[key]
        sampling_error = 6 * theirs.std() / theirs.numel() ** 0.5 + 1e-7
        assert (ours.mean() - theirs.mean()).abs() < sampling_error, key
        assert (ours.std() - theirs.std()).abs() <= 0.15 * theirs.std() + 1e-7, key
        drawn_at_random = "ve_gate" in key or "value_tables" in key
        if ours.ndim == 2 and not drawn_at_random:  # orthogonal, identity or zero
            singular = torch.linalg.svdvals(ours), torch.linalg.svdvals(theirs)
            torch.testing.assert_close(*singular, rtol=1e-4, atol=1e-7)


def test_rotary_embedding():
    out = fixtures.load("rope")
    table = rotary_table(6, 8, 50_000.0)
    torch.testing.assert_close(table, out["freqs_cis"][0], rtol=0, atol=1e-6)
    for raw, rotated in (("q", "rq"), ("k", "rk")):
        for rotate in (functional._rotate, functional._rotate_plainly):
            torch.testing.assert_close(rotate(out[raw], table), out[rotated], rtol=0, atol=1e-6)
