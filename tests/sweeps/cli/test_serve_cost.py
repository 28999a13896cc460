"""`loopscale serve_cost` on a looped run, its export and a plain transformer."""

from __future__ import annotations

import json

import pytest

import loopscale
from harness.evaluation.weights import load_weights
from model.config_validation import ConfigError
from model.flops import parameter_counts


@pytest.fixture(scope="module")
def models(tiny_run, cache, tmp_path_factory):
    """A looped run of µ = 2 and a transformer on the same data."""
    root = tmp_path_factory.mktemp("served")
    plain = ["model.kind=transformer", "model.prelude_layers=3", "model.core_layers=0", "model.coda_layers=0"]
    runs = [
        loopscale.train([f"root={root}", *tiny_run, "tokens=2560", *more])["run_id"]
        for more in (["model.mean_recurrence=2"], plain)
    ]
    return [root / "single" / run for run in runs], f"cache={cache}"


QUICK = ["repeats=2", "tokens=3", "prompts=4,8", "batches=1,2"]


def test_bytes_follow_the_formula_and_rates_their_definition(models, tmp_path, capsys):
    (looped, plain), cache = models
    out = tmp_path / "cost"
    cost = loopscale.serve_cost(
        [f"checkpoint={looped}", f"also={plain}", cache, "depths=1,2", f"out={out}", *QUICK]
    )
    frame = cost.frame
    assert len(frame) == (2 + 1) * 2 * 2 and set(frame["kind"]) == {"looped", "transformer"}
    per_token = 2 * 32 * 4  # width 32 in keys and in values, float32
    layers = {("looped", 1): 3, ("looped", 2): 4, ("transformer", 1): 3}
    for row in frame.itertuples():
        assert row.kv_bytes_per_token == per_token * layers[row.kind, row.depth]
        tokens = row.batch * (row.prompt_tokens + row.new_tokens)
        assert row.kv_cache_bytes == tokens * row.kv_bytes_per_token
        assert row.serving_bytes == row.weights_bytes + row.kv_cache_bytes
        assert 0 < row.prefill_low <= row.prefill_tokens_per_s <= row.prefill_high
        assert 0 < row.decode_low <= row.decode_tokens_per_s <= row.decode_high
        assert row.decode_ms_per_token == pytest.approx(1000 * row.batch / row.decode_tokens_per_s)
        assert row.peak_memory_bytes > row.serving_bytes
    curve = loopscale.evaluate([f"run={looped}", cache]).loss_nats
    assert frame.loc[frame["kind"] == "looped", "val_loss_nats"].tolist() == [curve[0]] * 4 + [curve[1]] * 4
    for name, rows in frame.groupby("model"):
        parameters = parameter_counts(load_weights(looped.parent / str(name)).config).total
        assert set(rows["weights_bytes"]) == {4 * parameters}
    assert frame["front_bytes"].any() and frame["front_latency"].any()
    assert {path.name for path in out.iterdir()} >= {"serve_cost.csv", "serve_cost.pdf", "serve_cost.png"}
    assert looped.name in cost.summary()


def test_an_export_has_a_loss_on_the_data_of_a_run_alone(models, tmp_path, capsys):
    (looped, _), cache = models
    folder = loopscale.export([f"checkpoint={looped}", cache, f"folder={tmp_path / 'export'}"])
    command = [f"checkpoint={folder}", cache, *QUICK, "precision=bfloat16"]
    loopscale.main(["serve_cost", *command, "depths=2", "format=json"])
    found = json.loads(capsys.readouterr().out)
    assert {row["kv_bytes_per_token"] for row in found["rows"]} == {2 * 32 * 2 * 4}
    assert all(row["val_loss_nats"] is None and not row["front_bytes"] for row in found["rows"])
    assert found["notes"] == [
        "no loss without held-out data: data=RUN names a run on whose data models are scored"
    ]
    scored = loopscale.serve_cost([f"checkpoint={folder}", cache, *QUICK, f"data={looped}"]).frame
    assert scored["val_loss_nats"].notna().all() and set(scored["depth"]) == {2}


def test_a_budget_of_keys_has_fewer_bytes_and_no_loss_of_all_loops(models):
    (looped, _), cache = models
    few = ["repeats=1", "tokens=2", "prompts=4", "batches=1"]
    cost = loopscale.serve_cost([f"checkpoint={looped}", cache, *few, "kv_budget=1", "depths=1,2"])
    rows = cost.frame.set_index("depth")
    assert rows["kv_bytes_per_token"].tolist() == [2 * 32 * 4 * 3] * 2
    assert rows["val_loss_nats"].notna().to_dict() == {1: True, 2: False}
    assert cost.notes == (
        "no loss beside kv_budget=1: loopscale eval kv_budget=1 measures it token by token",
    )


def test_models_in_folders_of_one_name_are_told_apart(models, tmp_path):
    (looped, plain), cache = models
    export = loopscale.export([f"checkpoint={looped}", cache, f"folder={tmp_path / looped.name}"])
    few = ["repeats=1", "tokens=2", "prompts=4", "batches=1"]
    frame = loopscale.serve_cost(
        [f"checkpoint={looped}", f"also=[{export},{plain},{plain}]", cache, *few]
    ).frame
    assert frame["model"].tolist() == [str(looped), str(export), plain.name]


def test_what_cannot_be_served_is_refused(models):
    (looped, _), cache = models
    with pytest.raises(ConfigError, match="one of checkpoint=FOLDER"):
        loopscale.serve_cost([cache])
    with pytest.raises(ConfigError, match="prompts of 5000 and 3 new tokens do not fit the context of"):
        loopscale.serve_cost([f"checkpoint={looped}", cache, *QUICK, "prompts=5000"])
    with pytest.raises(ConfigError, match=r"batches=\d+: 2 loops of 7 tokens keep \d.* GiB of keys"):
        loopscale.serve_cost([f"checkpoint={looped}", cache, *QUICK, "prompts=4", f"batches={10**12}"])
