"""`loopscale eval` of exports and published checkpoints."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import loopscale
from harness.data.tokenizer import train_tokenizer
from harness.evaluation.prompts import Scored
from harness.evaluation.scoring import score_options
from harness.evaluation.weights import load_tokenized
from model.published.checkpoint import load_model
from tests.harness.evaluation import core_data
from tests.model import fixtures
from tests.model.published.test_published import checkpoint

torch.set_num_threads(1)


@pytest.fixture
def published(tmp_path, corpus):
    """A folder in the published layout, with the weights of the published implementation's fixtures."""
    folder = checkpoint(tmp_path, "parcae_222")
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    train_tokenizer(texts, 300).save(str(folder / "tokenizer.json"))
    return folder


def test_a_published_checkpoint_is_scored_by_the_published_logits(published, tmp_path):
    out = fixtures.load("parcae_222_out")
    subject = load_tokenized(published, tmp_path, device="cpu")
    ids = out["input_ids"].numpy().astype(np.int32)
    scores = score_options(subject.model, [[Scored(row, 1)] for row in ids], [3], seed=0)
    log_p = torch.log_softmax(out["logits_T3"].double(), dim=-1)[:, :-1]
    expected = -log_p.gather(2, out["input_ids"][:, 1:, None]).sum(dim=(1, 2))
    assert scores.nats[0, :, 0] == pytest.approx(expected.numpy(), abs=2e-3)  # of 63 tokens each
    torch.testing.assert_close(
        load_model(published).logits(out["input_ids"], [3, 3], [0, 0]), out["logits_T3"], rtol=0, atol=5e-5
    )


def test_a_published_checkpoint_is_evaluated_on_core(published, tmp_path, capsys):
    command = [f"checkpoint={published}", f"bundle={core_data.bundle()}", "tasks=core", "limit=1"]
    loopscale.main(["eval", *command, f"cache={tmp_path}", "format=json"])
    printed = json.loads(capsys.readouterr().out)
    (core,) = [row for row in printed["rows"] if row["task"] == "core"]
    assert (
        core["tasks"] == "21 of 22 tasks" and core["depth"] == 4 and math.isfinite(core["log_prob_per_byte"])
    )


def test_an_export_has_the_validation_loss_of_its_run(trained, cache, published, tmp_path):
    folder, place = tmp_path / "export", f"cache={cache}"
    loopscale.export([f"checkpoint={trained}", f"folder={folder}", place])
    of_run = loopscale.evaluate([f"run={trained}", place])
    of_export = loopscale.evaluate([f"checkpoint={folder}", f"data={trained}", place])
    assert of_export.tokens == of_run.tokens
    assert of_export.loss_nats == pytest.approx(of_run.loss_nats, rel=1e-6)
    record = json.loads((trained / "record.json").read_text())
    assert of_run.loss_nats[1] == pytest.approx(record["val_loss_nats"], rel=1e-6)  # at T = µ = 2
    with pytest.raises(ValueError, match=r"differs from .*: the token ids of that data"):
        loopscale.evaluate([f"checkpoint={published}", f"data={trained}", place])
