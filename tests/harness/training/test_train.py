"""One run: it learns, it resumes bit for bit, it refuses what is not its own."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest

import loopscale
from analysis.tables.schema import RUNS
from harness.run.metrics import last_metrics, read_metrics
from harness.storage.files import write_text
from harness.training.checkpoint import checkpoint_folders
from harness.training.job import BUSY, run_job
from harness.training.session import Stopped
from harness.training.train import train
from model.config_validation import ConfigError
from model.kernels import compile_blocks
from tests.harness.runs import assert_same_bits
from tests.workers import imports_compiler


def test_a_run_learns_and_leaves_a_whole_record(make, cache):
    folder, dataset = make("tokens=12800")
    assert run_job(folder.path, cache) == "done"
    record = folder.record()
    assert set(record) == {column.name for column in RUNS}
    assert record["val_loss_nats"] < dataset.unigram_nats
    assert record["status"] == "done" and record["attempts"] == 1 and record["steps"] == 100
    assert record["val_bits_per_byte"] > 0 and record["val_loss_se_nats"] > 0
    curve = json.loads(folder.depth_curve.read_text())
    assert [row["depth"] for row in curve] == [1, 2, 3, 4]
    assert curve[1]["val_loss_nats"] == record["val_loss_nats"]
    lines = read_metrics(folder.metrics)
    assert [line["step"] for line in lines] == list(range(1, 101))
    assert lines[-1]["train_loss_nats"] < lines[0]["train_loss_nats"]


def test_executed_flops_follow_the_drawn_depths(make, cache):
    folder, _ = make("tokens=12800", "model.mean_recurrence=4")
    run_job(folder.path, cache)
    record = folder.record()
    assert record["executed_flops"] == pytest.approx(record["expected_flops"], rel=0.05)
    fixed, _ = make("tokens=2560", "model.mean_recurrence=1", "model.depth_sampling=fixed")
    run_job(fixed.path, cache)
    record = fixed.record()
    assert record["kind"] == "fixed"
    assert record["executed_flops"] == pytest.approx(record["nominal_flops"], rel=1e-12)


def test_a_stopped_run_ends_with_the_same_bits(make, cache):
    whole, dataset = make()
    train(whole, dataset, attempts=1)
    broken, _ = make(parent="broken")
    for stop_after in (3, 9, 10, 19):
        asked = 0

        def stop(limit=stop_after):
            nonlocal asked
            asked += 1
            return (last_metrics(broken.metrics).get("step", 0)) >= limit

        with pytest.raises(Stopped, match=f"stopped at step {stop_after} of 20"):
            train(broken, dataset, attempts=1, stop_requested=stop)
    train(broken, dataset, attempts=5)
    assert_same_bits(whole, broken)


def test_the_micro_batch_changes_nothing_but_rounding(make, cache):
    whole, _ = make("tokens=1280", parent="whole")
    parts, _ = make("tokens=1280", "training.micro_batch=1", parent="parts")
    for folder in (whole, parts):
        run_job(folder.path, cache)
    assert whole.run_id == parts.run_id
    assert parts.record()["val_loss_nats"] == pytest.approx(whole.record()["val_loss_nats"], rel=1e-4)


def test_recomputed_loops_change_no_bit(make, cache):
    settings = ("tokens=1280", "training.kernels=reference")
    kept, _ = make(*settings, parent="kept")
    again, _ = make(*settings, "training.checkpoint_loops=true", parent="again")
    for folder in (kept, again):
        run_job(folder.path, cache)
    assert kept.run_id == again.run_id
    assert_same_bits(kept, again)


@imports_compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # raised inside torch
def test_compiled_blocks_train_to_the_same_losses(make, cache, monkeypatch):
    # The graph is captured and guarded as on a GPU; generating machine code would take the test's time.
    monkeypatch.setattr(
        "harness.training.session.compile_blocks", partial(compile_blocks, backend="aot_eager")
    )
    eager, _ = make("tokens=640", parent="eager")
    choices = "training.compile=true", "training.kernels=reference"
    compiled, _ = make("tokens=640", *choices, parent="compiled")
    for folder in (eager, compiled):
        assert run_job(folder.path, cache) == "done"
    assert compiled.run_id == eager.run_id
    assert compiled.record()["val_loss_nats"] == pytest.approx(eager.record()["val_loss_nats"], rel=1e-5)
    assert eager.record()["kernels"] in ("cpu", "reference")
    assert compiled.record()["kernels"] == "reference, compiled"


def test_a_run_that_need_not_be_deterministic_says_so(make, cache, monkeypatch):
    monkeypatch.setattr("harness.training.session.demand_determinism", lambda **_: pytest.fail("demanded"))
    folder, _ = make("tokens=640", "training.deterministic=false")
    assert run_job(folder.path, cache) == "done"
    assert folder.record()["kernels"].endswith(", not deterministic")


def test_packing_and_document_mask_are_choices_that_name_the_run(make, cache, corpus, tmp_path):
    short = tmp_path / "short.jsonl"  # documents of six words: several in a sequence
    words = " ".join(path.read_text() for path in sorted(corpus.iterdir())[:20]).split()
    texts = [" ".join(words[at : at + 6]) for at in range(0, len(words), 6)]
    short.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    names, losses = set(), set()
    for choice in ("packing=blocks", "packing=best_fit", "document_mask=true"):
        folder, _ = make("tokens=640", f"path={short}", f"training.{choice}")
        assert run_job(folder.path, cache) == "done"
        names.add(folder.run_id)
        losses.add(folder.record()["val_loss_nats"])
        # 5 batches of 4 sequences of 32: at most one empty slot in each of the packed ones but the last.
        assert 0 <= folder.record()["tokens_padded"] <= (0 if "blocks" in choice else 20 + 32)
        settings = [f"run={folder.path}", f"cache={cache}"]
        assert loopscale.evaluate(settings).loss_nats[1] == folder.record()["val_loss_nats"]
    assert len(names) == len(losses) == 3


def test_more_epochs_than_allowed_are_refused_before_anything_is_made(make, cache, tiny, tmp_path):
    _, dataset = make("tokens=640")
    tokens = 2.5 * dataset.unique_tokens
    message = r"training\.max_epochs=1: .* tokens are 2\.\d\d epochs of .* set training\.max_epochs=3"
    with pytest.raises(ConfigError, match=message):
        loopscale.train([*tiny, f"tokens={tokens}"])
    assert not (tmp_path / "runs" / "single").exists()
    settings = ("training.max_epochs=3", "training.batch_sequences=32", "training.log_every=50")
    folder, _ = make(f"tokens={tokens}", *settings)
    assert run_job(folder.path, cache) == "done"
    assert folder.record()["epochs"] == pytest.approx(2.5, rel=0.01)
    assert last_metrics(folder.metrics)["epoch"] == pytest.approx(2.5, rel=0.05)


def test_a_done_run_is_not_repeated_and_a_held_one_is_left_alone(make, cache):
    folder, _ = make("tokens=640")
    with folder.lease() as free:
        assert free and folder.is_held()
        assert run_job(folder.path, cache) == BUSY
    assert run_job(folder.path, cache) == "done"
    stamp = folder.record()
    assert run_job(folder.path, cache) == "done"
    assert folder.record() == stamp and folder.status().attempts == 1


def test_a_folder_of_another_config_is_refused_and_kept(make, cache):
    folder, _ = make("tokens=640")
    config = folder.path / "config.yaml"
    write_text(config, config.read_text().replace("width: 32", "width: 64"))
    assert run_job(folder.path, cache) == "failed:bad_config"
    assert "folder of another configuration (model.width: 64 / 32)" in folder.status().message
    write_text(config, config.read_text().replace("width: 64", "width: 32"))
    moved = folder.path.rename(folder.path.with_name(folder.path.name[:-8] + "00000000"))
    assert run_job(moved, cache) == "failed:bad_config"


def test_a_corrupt_checkpoint_fails_in_one_line_and_loses_nothing(make, cache):
    folder, dataset = make("tokens=640")
    with pytest.raises(Stopped):
        train(folder, dataset, attempts=1, stop_requested=lambda: bool(read_metrics(folder.metrics)))
    (path,) = checkpoint_folders(folder.checkpoints)
    torn = path / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    before = sorted(p.name for p in path.iterdir())
    assert run_job(folder.path, cache) == "failed:bad_config"
    assert "is corrupt" in folder.status().message and "\n" not in folder.status().message
    assert sorted(p.name for p in path.iterdir()) == before


def test_other_data_is_refused(make, cache, tmp_path):
    folder, _ = make("tokens=640")
    assert run_job(folder.path, tmp_path / "empty") == "failed:bad_config"
    assert "loopscale data" in folder.status().message


def test_a_diverged_run_is_a_result_with_its_class(make, cache):
    folder, _ = make("tokens=2560", "optimizer.muon_learning_rate=1e30", "optimizer.adamw_learning_rate=1e30")
    assert run_job(folder.path, cache) == "failed:diverged"
    assert "gradient norm" in folder.status().message


def test_an_unexpected_error_is_recorded_with_its_traceback(make, cache, monkeypatch):
    folder, _ = make("tokens=640")

    def broken(*_arguments, **_keywords):
        raise ZeroDivisionError("a mistake in the code")

    monkeypatch.setattr("harness.training.train.evaluate", broken)
    with pytest.raises(ZeroDivisionError):
        run_job(folder.path, cache)
    assert str(folder.status()) == "failed:code_error"
    assert "a mistake in the code" in (folder.path / "logs" / "error_1.txt").read_text()


def test_evaluation_is_deterministic_and_reads_the_newest_checkpoint(make, cache):
    folder, _ = make("tokens=1280")
    run_job(folder.path, cache)
    settings = [f"run={folder.path}", f"cache={cache}", "blocks=8", "max_depth=4"]
    again = loopscale.evaluate(settings)
    curve = json.loads(folder.depth_curve.read_text())
    assert again.loss_nats == [row["val_loss_nats"] for row in curve]
    assert math.isclose(again.bits_per_byte[1], folder.record()["val_bits_per_byte"])
