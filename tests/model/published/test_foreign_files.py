"""Models that others made: what is damaged, absurd or no model is refused in one line, quickly."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from model.config_validation import ConfigError
from model.outside_files import read_json_object
from model.published.checkpoint import export_model, load_model
from model.transformer import build_model

CONFIG = ModelConfig(
    width=8, heads=2, prelude_layers=1, core_layers=1, coda_layers=1, vocabulary_size=16, sequence_length=8
)


@pytest.fixture
def export(tmp_path):
    export_model(build_model(CONFIG, seed=0), tmp_path)
    return tmp_path


def change_tensors(export, change):
    tensors = load_file(export / "model.safetensors")
    change(tensors)
    save_file(tensors, export / "model.safetensors")


def not_a_number(tensors):
    tensors["final_norm.weight"][3] = float("nan")


def infinite(tensors):
    tensors["embedding"][0, 0] = float("-inf")


def whole_numbers(tensors):
    tensors["readout.weight"] = tensors["readout.weight"].to(torch.int8)


def truths(tensors):
    tensors["final_norm.weight"] = tensors["final_norm.weight"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (not_a_number, r"model\.safetensors: final_norm\.weight holds numbers that are not finite"),
        (infinite, r"embedding holds numbers that are not finite"),
        (whole_numbers, r"readout\.weight holds int8, a dense array of floating"),
        (truths, r"final_norm\.weight holds bool, a dense array"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(export, change, message):
    change_tensors(export, change)
    with pytest.raises(ConfigError, match=message):
        load_model(export)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_float32(export, kind):
    change_tensors(export, lambda tensors: tensors.update({n: t.to(kind) for n, t in tensors.items()}))
    stored = load_file(export / "model.safetensors")
    for name, value in load_model(export).named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[name].float())


def test_a_loaded_model_does_not_hang_on_its_file(export):
    """Its weights are copies in aligned memory, with gradients, and its rotary angles are there."""
    loaded, fresh = load_model(export), build_model(CONFIG, seed=0)
    (export / "model.safetensors").write_bytes(bytes(10_000))
    assert torch.equal(loaded.rope, fresh.rope)
    for (_, mine), (_, first) in zip(loaded.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(mine, first) and mine.requires_grad and mine.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"core_layers": 10**9}, r"config\.json: core_layers=1000000000: .* less than or equal to 4096"),
        ({"core_layers": 4000}, r"model\.safetensors has \d+ tensors, too few for 4002 layers"),
        ({"width": 2**23, "heads": 2**20}, r"does not fit its config: missing \[\], .*misshaped"),
        ({"sequence_length": 10**12}, r"sequence_length=1000000000000: .* less than or equal to 1048576"),
        ({"mean_recurrence": 1e18}, r"mean_recurrence=.*less than or equal to 4096"),
        ({"width": "8"}, r"width='8': must be a whole number"),
        ({"width": True}, r"width=true: must be a whole number"),
        ({"width": None}, r"width is empty: must be a whole number"),
        ({"heads": 0}, r"heads=0: .*greater than 0"),
        ({"rope_theta": [1]}, r"rope_theta=\[1\]: must be a number"),
        ({"kind": {}}, r"kind=\{\}: "),
        ({"widht": 8}, r"unknown key widht \(did you mean width\?\)"),
        ({"n_embd": 8}, r"published config: "),
    ],
)
def test_a_config_that_asks_for_the_impossible_is_refused_before_it_is_made(export, changes, message):
    path = export / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(export)
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize(
    "published",
    [
        {"rope_settings": 3},
        {"padding_multiple": 0},
        {"padding_multiple": "8"},
        {"vocab_size": [1]},
        {"sampling_scheme": []},
        {"recurrent_iteration_method": {"a": 1}},
        {"n_embd": "wide"},
        {"bias": True},
        {"mean_recurrence": -1},
        {"n_layers_in_recurrent_block": 1e300},
    ],
    ids=str,
)
def test_a_published_config_of_wrong_types_is_refused(tmp_path, published):
    export_model(build_model(CONFIG, seed=0), tmp_path)
    looped = {
        "n_embd": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "block_size": 8,
        "norm_eps": 1e-5,
        "n_layers_in_prelude": 1,
        "n_layers_in_recurrent_block": 1,
        "n_layers_in_coda": 1,
        "prelude_norm": True,
        "state_init": "like-init",
        "mean_recurrence": 8,
        "mean_backprop_depth": 4,
        "vocab_size": 16,
        "sampling_scheme": "fixed",
        "recurrent_iteration_method": "per-batch",
    }
    (tmp_path / "config.json").write_text(json.dumps(looped | published))
    with pytest.raises(ConfigError, match=r"config\.json: ") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "holds list, not a JSON object"),
        (b"3", "holds int, not a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"width": NaN}', "it has NaN, which is no number of JSON"),
        (b'{"width": "\\ud800"}', "is not JSON"),
        (b'{"width": ' + b"9" * 10_000 + b"}", "is not JSON"),
    ],
)
def test_what_is_no_json_object_is_refused_with_its_file(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_json_object(tmp_path / "config.json")
    assert "config.json" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pipes_and_folders_are_not_opened(export, name):
    (export / name).unlink()
    os.mkfifo(export / name)
    with pytest.raises(ConfigError, match=rf"{name} is no regular file: a file is needed"):
        load_model(export)
    (export / name).unlink()
    (export / name).mkdir()
    with pytest.raises(ConfigError, match=rf"{name} is a folder: a file is needed"):
        load_model(export)
