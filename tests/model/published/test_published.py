import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.published.checkpoint import export_model, load_model, read_tensors
from model.published.config import config_from_published, config_to_published
from tests.model import fixtures
from tests.model.test_transformer import TINY, VARIANTS, awake, batch

torch.set_num_threads(1)
NAMES = ["parcae_111", "parcae_222", "gpt_4l"]


def checkpoint(folder, name, change=lambda tensors: None, torch_file=False):
    values = {**fixtures.described(name)["config"], "_class_name": "ignored"}
    tensors = fixtures.load(f"{name}_weights")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    tensors["freqs_cis"] = torch.zeros(1, 64, 1, 8, 2)
    change(tensors)
    (folder / "config.json").write_text(json.dumps(values))
    if torch_file:
        torch.save({"model": tensors}, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("torch_file", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_published_checkpoint_computes_the_published_logits(tmp_path, name, torch_file):
    model, out = load_model(checkpoint(tmp_path, name, torch_file=torch_file)), fixtures.load(f"{name}_out")
    expected = out["logits" if name == "gpt_4l" else "logits_T3"]
    logits = model.logits(out["input_ids"], [3, 3], [0, 0])
    torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5)


def test_tensors_that_do_not_fit_are_all_named(tmp_path):
    def change(tensors):
        tensors["transformer.ln_f.weight"] = torch.ones(32)
        tensors["transformer.stranger"] = torch.ones(1)
        del tensors["transformer.C.weight"]

    message = (
        r"missing \['readout.weight'\], unexpected \['transformer.stranger'\], "
        r"misshaped \['final_norm.weight \(32,\) instead of \(64,\)'\]"
    )
    with pytest.raises(ValueError, match=message):
        load_model(checkpoint(tmp_path, "parcae_222", change))


class Trap:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_code_in_a_pickle_is_refused_and_not_executed(tmp_path):
    path, mark = tmp_path / "pytorch_model.bin", tmp_path / "executed"
    path.write_bytes(pickle.dumps({"transformer.wte.weight": Trap(mark)}, protocol=2))
    with pytest.raises(ValueError, match="holds more than tensors, nothing was run"):
        read_tensors(path)
    torch.save({"transformer.wte.weight": Trap(mark)}, path)
    with pytest.raises(ValueError, match="holds more than tensors, nothing was run"):
        read_tensors(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x07" * 40)
    with pytest.raises(ValueError, match="is damaged"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_an_export_computes_the_same(tmp_path, config):
    model, (tokens, _) = awake(config), batch(config)
    export_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == config
    before, after = (m.logits(tokens, [3, 1, 2, 2], range(4)) for m in (model, loaded))
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", NAMES)
def test_the_published_layout_and_back(tmp_path, name):
    model = fixtures.model(name)
    export_model(model, tmp_path, layout="published")
    loaded = load_model(tmp_path)
    own = dict(model.named_parameters())
    assert all(torch.equal(own[key], value) for key, value in loaded.named_parameters())
    described = {**fixtures.described(name)["config"], **config_to_published(model.config)}
    assert config_from_published(described) == loaded.config
    published = {key for key in fixtures.load(f"{name}_weights") if key != "lm_head.weight"}
    assert set(read_tensors(tmp_path / "model.safetensors")) == published


EVEN = {"prelude_layers": 2, "core_layers": 2, "coda_layers": 2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"injection": "linear"}, "injection=linear has no published counterpart, only diagonal"),
        ({**EVEN, "depth_sampling": "stratified"}, "depth_sampling=stratified has no published counterpart"),
        ({}, "core_layers=1 has no published counterpart: the value gates"),
    ],
)
def test_what_the_published_code_cannot_express_is_not_exported(tmp_path, fields, message):
    config = replace(TINY, **fields)
    with pytest.raises(ValueError, match=message):
        export_model(awake(config), tmp_path / "out", layout="published")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonlin_name": "GELU"}, "nonlin_name='GELU' is not supported, only 'ReLU2'"),
        ({"sampling_scheme": "geometric"}, "sampling_scheme='geometric' is not supported, only poisson-"),
        ({"n_embd": "wide"}, "width=wide"),
    ],
)
def test_a_published_config_that_describes_another_model_is_refused(change, message):
    values = {**fixtures.described("parcae_222")["config"], **change}
    with pytest.raises(ValueError, match=message):
        config_from_published(values)


def test_a_missing_key_is_named():
    values = fixtures.described("parcae_222")["config"]
    del values["mean_recurrence"]
    with pytest.raises(ValueError, match="mean_recurrence is missing"):
        config_from_published(values)
