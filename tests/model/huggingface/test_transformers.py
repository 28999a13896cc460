"""Exports for transformers, loaded by transformers itself."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch

import loopscale  # noqa: F401  which registers the model with transformers
from model.config_validation import ConfigError
from model.depth import counter_seed
from model.published.checkpoint import export_model, load_model
from tests.model.test_transformer import TINY, awake, batch

if os.environ.get("CI") != "true":
    pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install -e .[transformers]"
    )

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns of is its own
torch.set_num_threads(1)
CONFIGS = {
    "looped": TINY,
    "grouped": replace(TINY, kv_heads=1, mlp="swiglu", injection="linear"),
    "transformer": replace(TINY, kind="transformer", prelude_layers=3, core_layers=0, coda_layers=0),
}
H_0 = counter_seed("options", 1234)  # as `loopscale eval` draws it


def from_pretrained(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def both(request, tmp_path):
    """A model, and what transformers makes of its export."""
    model = awake(request.param)
    export_model(model, tmp_path, layout="transformers")
    return model, from_pretrained(tmp_path)


@pytest.fixture
def looped(tmp_path):
    """The same of one looped model."""
    model = awake(TINY)
    export_model(model, tmp_path, layout="transformers")
    return model, from_pretrained(tmp_path)


def expected(model, tokens, depth=None):
    depths = [depth or model.config.own_depth] * len(tokens)
    return model.logits(tokens, depths, [H_0] * len(tokens))


def greedy(model, tokens, new):
    for _ in range(new):
        tokens = torch.cat([tokens, expected(model, tokens)[:, -1:].argmax(dim=-1)], dim=1)
    return tokens


def test_logits_are_those_of_the_model(both):
    model, loaded = both
    tokens, _ = batch(model.config, size=3)
    for cached in (True, False):
        logits = loaded(tokens, use_cache=cached).logits
        torch.testing.assert_close(logits, expected(model, tokens), rtol=0, atol=1e-5)
    assert type(loaded).__module__ == "model.huggingface.modeling"


def test_generated_tokens_are_those_of_full_forward_passes(both):
    model, loaded = both
    prompt = batch(model.config, size=3)[0][:, :6]
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        found = loaded.generate(prompt, max_new_tokens=6, do_sample=False, **options)
        assert torch.equal(found, greedy(model, prompt, 6)), options


def test_prompts_of_unequal_length_are_continued_as_each_alone(looped):
    model, loaded = looped
    long, short = batch(model.config, size=2)[0].split(1)
    prompts = [long[:, :7], short[:, :4]]
    padded = torch.cat([prompts[0], torch.nn.functional.pad(prompts[1], (3, 0))])
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    found = loaded.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False)
    for row, prompt in zip(found, prompts, strict=True):
        assert torch.equal(row[7:], greedy(model, prompt, 5)[0, prompt.shape[1] :])


def test_the_depth_is_chosen_when_loading_or_later(looped, tmp_path):
    model, loaded = looped
    tokens, _ = batch(model.config, size=2)
    deep = from_pretrained(tmp_path, depth=5)
    torch.testing.assert_close(deep(tokens).logits, expected(model, tokens, 5), rtol=0, atol=1e-5)
    # layers of keys and values: one of prelude, the core's in each of 5 loops, one of coda
    layers = model.config.prelude_layers + 5 * model.config.core_layers + model.config.coda_layers
    assert deep.config.num_hidden_layers == len(deep(tokens, use_cache=True).cache.layers) == layers
    loaded.config.depth = 1
    torch.testing.assert_close(loaded(tokens).logits, expected(model, tokens, 1), rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match=r"^depth=0 must be at least 1$"):
        from_pretrained(tmp_path, depth=0)(tokens)


def test_saved_and_loaded_again_by_transformers_and_by_loopscale(both, tmp_path):
    model, loaded = both
    with torch.no_grad():
        loaded.model.embedding.mul_(1.5)
        model.embedding.mul_(1.5)
    loaded.save_pretrained(tmp_path / "saved")
    for again in (from_pretrained(tmp_path / "saved").model, load_model(tmp_path / "saved")):
        assert again.config == model.config
        assert torch.equal(again.rope, model.rope)
        for (name, value), (other, saved) in zip(
            model.named_parameters(), again.named_parameters(), strict=True
        ):
            assert name == other and torch.equal(value, saved), name


def test_the_loss_of_labels_and_its_gradient(tmp_path):
    depth = TINY.own_depth
    model = awake(replace(TINY, backprop_depth=depth))  # the gradient runs through all loops
    export_model(model, tmp_path, layout="transformers")
    loaded = from_pretrained(tmp_path)
    tokens, _ = batch(TINY, size=2)
    found = loaded(tokens, labels=tokens).loss
    shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    wanted = model.loss(tokens, shifted, [depth] * 2, [H_0] * 2)
    torch.testing.assert_close(found, wanted)
    found.backward()
    wanted.backward()
    for (name, value), other in zip(model.named_parameters(), loaded.model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, value.grad, msg=name, rtol=1e-4, atol=1e-6)


def test_a_model_made_from_a_configuration_has_first_weights(looped):
    from transformers import AutoModelForCausalLM

    model, loaded = looped
    torch.manual_seed(3)
    fresh = AutoModelForCausalLM.from_config(loaded.config).model
    assert torch.equal(fresh.rope, model.rope)
    assert not fresh.core[0].attn.c_proj.weight.any() and (fresh.final_norm.weight == 1).all()
    q = fresh.core[0].attn.c_q.weight
    torch.testing.assert_close(q @ q.T, (q @ q.T)[0, 0] * torch.eye(len(q)), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_or_is_no_model_is_refused(looped, tmp_path):
    _, loaded = looped
    with pytest.raises(ValueError, match=r"^17 tokens do not fit the model's context of 16$"):
        loaded(torch.zeros(1, 17, dtype=torch.long))
    values = json.loads((tmp_path / "config.json").read_text())
    for broken, message in (
        ({**values, "model": None}, "must be a group of keys"),
        ({**values, "model": {**values["model"], "width": "wide"}}, "width"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(ConfigError, match=message):
            load_model(tmp_path)
        with pytest.raises(ConfigError, match=r"LoopscaleConfig has no `model`|width"):
            from_pretrained(tmp_path)
