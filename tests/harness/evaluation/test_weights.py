"""Weights out of a run folder, through an export and the published layout, and text out of all of them."""

from __future__ import annotations

import json
import os

import pytest
import torch

import loopscale
from harness.data.tokenizer_file import open_tokenizer, read_tokenizer_file
from harness.evaluation.weights import load_weights
from model.config_validation import ConfigError


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """The folder of a finished run."""
    # The published code needs an even number of layers.
    layers = [f"model.{part}_layers=2" for part in ("prelude", "core", "coda")]
    root = tmp_path_factory.mktemp("trained")
    record = loopscale.train([f"root={root}", *tiny_run, *layers, "tokens=2560"])
    return root / "single" / record["run_id"]


@pytest.fixture
def trained(run, cache, tmp_path, monkeypatch):
    """That folder, and the setting that names its data; what a command writes goes to tmp_path."""
    monkeypatch.chdir(tmp_path)
    return run, f"cache={cache}"


def logits(path):
    model = load_weights(path)
    tokens = torch.arange(32).view(2, 16)
    return model.logits(tokens, [3, 1], [0, 1])


@pytest.mark.parametrize("published", ["true", "false"])
def test_an_export_computes_what_the_run_computes(trained, tmp_path, published):
    run, cache = trained
    folder = loopscale.export(
        [f"checkpoint={run}", cache, f"folder={tmp_path / 'out'}", f"published={published}"]
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert torch.equal(logits(folder), logits(run))


def test_an_export_of_an_export_is_the_same(trained, tmp_path):
    run, cache = trained
    path = run
    for number, layout in enumerate(["published", "transformers", "loopscale"]):
        path = loopscale.export([f"checkpoint={path}", cache, f"folder=number_{number}", f"format={layout}"])
        assert torch.equal(logits(tmp_path / path), logits(run))
    with pytest.raises(ConfigError, match="published=true and format=transformers are two layouts"):
        loopscale.export([f"checkpoint={run}", "folder=x", "published=true", "format=transformers"])


def test_the_tokenizer_of_an_export_for_transformers_begins_documents_as_training_does(trained):
    if os.environ.get("CI") != "true":
        pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    run, setting = trained
    folder = loopscale.export([f"checkpoint={run}", setting, "folder=theirs", "format=transformers"])
    loaded = AutoTokenizer.from_pretrained(folder)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    ours = open_tokenizer(read_tokenizer_file(folder / "tokenizer.json"), folder)
    text = "lona ranting\n  sero, 12 \N{GRINNING FACE}"
    ids = ours.encode(text, add_special_tokens=False).ids
    bos = ours.token_to_id("<|bos|>")
    assert loaded(text)["input_ids"] == [bos, *ids]
    assert loaded(text, add_special_tokens=False)["input_ids"] == ids
    assert loaded.decode(ids) == text
    assert loaded.bos_token_id == loaded.eos_token_id == loaded.pad_token_id == bos
    assert loaded.model_max_length == load_weights(folder).config.sequence_length


def test_generated_text_depends_on_prompt_and_seed_alone(trained, capsys):
    run, cache = trained
    command = [f"checkpoint={run}", cache, "prompt=lona ran", "tokens=12", "depth=3"]
    greedy = loopscale.generate(command)
    assert len(greedy) >= 12 and loopscale.generate(command) == greedy
    warm = [loopscale.generate([*command, "temperature=2", f"seed={seed}"]) for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    loopscale.main(["generate", *command])
    assert capsys.readouterr().out == greedy + "\n"


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"neither a run nor a config\.json"):
        load_weights(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 64}))
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_weights(tmp_path)


def test_an_export_without_tokenizer_says_what_to_do(trained, tmp_path):
    run, cache = trained
    folder = loopscale.export([f"checkpoint={run}", cache, f"folder={tmp_path / 'out'}"])
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json: put the one that the model was trained with"):
        loopscale.generate([f"checkpoint={folder}", "prompt=a"])
