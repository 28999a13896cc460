"""`loopscale eval`: runs and checkpoints on suites of tasks, kept, resumed, collected."""

from __future__ import annotations

import json
import os
import shutil

import pandas as pd
import pytest
import torch

import loopscale
from harness.evaluation.scoring import score_options
from harness.evaluation.symbolic import write_symbolic
from sweeps.launch.launch import write_ledger
from sweeps.workers.local_pool import work
from tests.harness.evaluation import core_data
from tests.harness.processes import CONTEXT, free_port

torch.set_num_threads(1)


def settings(run, cache, *more):
    return [f"run={run}", f"cache={cache}", *more]


def test_every_task_of_core_runs_and_the_record_says_of_how_many(trained, cache, capsys):
    command = settings(trained, cache, f"bundle={core_data.bundle()}", "tasks=core", "depths=1,2")
    result = loopscale.evaluate_tasks([*command, "limit=1"])
    frame = result.frame
    assert len(frame) == (21 + 1) * 2 and frame["centred"].notna().all()
    assert set(frame.loc[frame["task"] == "core", "tasks"]) == {"21 of 22 tasks"}
    assert any("21 of 22 tasks; absent: coqa" in note for note in result.notes)
    assert not (trained / "evaluation" / "scores.json").exists()  # not all items: in no record
    record = json.loads((trained / "record.json").read_text())
    assert record["core"] is None
    loopscale.main(["eval", *[f"eval.{text}" for text in command], "limit=1"])
    assert "absent: coqa" in capsys.readouterr().out


def test_scores_are_kept_and_collected(tiny_study, cache, tmp_path, monkeypatch):
    write_ledger(tiny_study("sweep.tokens=[1280]", "sweep.mean_recurrences=[2]"))
    folder = tmp_path / "runs" / "tiny"
    work(folder, stop=lambda: False)
    command = ["sweep=tiny", f"root={tmp_path / 'runs'}", f"cache={cache}", "tasks=symbolic"]
    first = loopscale.evaluate_tasks(command).frame
    assert len(first) == 2 * 6 and set(first["tasks"]) == {"", "5 of 5 tasks"}
    monkeypatch.setattr("harness.evaluation.suite.score_options", None)  # nothing is scored again
    assert loopscale.evaluate_tasks(command).frame.equals(first)
    loopscale.collect(["sweep=tiny", f"root={tmp_path / 'runs'}"])
    scores = pd.read_parquet(folder / "scores.parquet")
    assert scores["centred"].tolist() == pytest.approx(first["centred"].tolist())
    assert "chance_corrected" in set(pd.read_csv(folder / "dictionary.csv")["column"])
    items = pd.read_parquet(folder / "items.parquet")
    tasks = scores[scores["tasks"] == ""].set_index(["run_id", "task"])["accuracy"]
    answered = items.groupby(["run_id", "task"])["correct"].mean()
    assert answered.to_dict() == pytest.approx(tasks.to_dict()) and len(items) == 2 * 5 * 200


def test_an_interrupted_evaluation_goes_on_where_it_stopped(trained, cache, monkeypatch):
    command = settings(trained, cache, "tasks=symbolic", "depths=1,3", "limit=20")
    scored = []

    def counted(*arguments, **named):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(1)
        return score_options(*arguments, **named)

    monkeypatch.setattr("harness.evaluation.suite.score_options", counted)
    with pytest.raises(KeyboardInterrupt):
        loopscale.evaluate_tasks(command)
    assert len(list((trained / "evaluation").glob("*.npz"))) == 2
    scored.clear()
    monkeypatch.setattr(
        "harness.evaluation.suite.score_options", lambda *a, **b: scored.append(1) or score_options(*a, **b)
    )
    resumed = loopscale.evaluate_tasks(command).frame
    assert len(scored) == 3
    shutil.rmtree(trained / "evaluation")
    monkeypatch.undo()
    assert loopscale.evaluate_tasks(command).frame.equals(resumed)
    # A damaged file is scored anew, and of other depths those that are not there.
    next((trained / "evaluation").glob("*.npz")).write_bytes(b"PK")
    assert loopscale.evaluate_tasks(command).frame.equals(resumed)
    command = settings(trained, cache, "tasks=symbolic", "depths=3,5", "limit=20")
    deeper = loopscale.evaluate_tasks(command).frame
    assert deeper.loc[deeper["depth"] == 3, "log_prob_per_byte"].tolist() == pytest.approx(
        resumed.loc[resumed["depth"] == 3, "log_prob_per_byte"].tolist(), abs=1e-6
    )


def test_a_depth_is_scored_once_whatever_it_is_asked_with(trained, cache, monkeypatch):
    asked = []

    def recorded(model, items, depths, **more):
        asked.append(tuple(depths))
        return score_options(model, items, depths, **more)

    monkeypatch.setattr("harness.evaluation.suite.score_options", recorded)

    def scores(depths):
        return loopscale.evaluate_tasks(
            settings(trained, cache, "tasks=symbolic", f"depths={depths}", "limit=20")
        ).frame

    scores("1,4")
    scores("2,4,6")
    assert asked == [(1, 4)] * 5 + [(2, 6)] * 5
    asked.clear()
    together = scores("1,2,4,6")
    assert not asked
    shutil.rmtree(trained / "evaluation")
    pd.testing.assert_frame_equal(scores("1,2,4,6"), together, rtol=1e-5)


def evaluated(folder, command, rank, world, port):
    """Score in one of several processes; the first one writes the table."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    frame = loopscale.evaluate_tasks(command).frame
    if rank == 0:
        frame.to_parquet(folder / "frame.parquet")


def test_processes_share_the_items_and_agree_with_one(trained, cache, tmp_path):
    command = settings(trained, cache, "tasks=symbolic", "depths=1,2", "limit=25", "token_budget=600")
    alone = loopscale.evaluate_tasks([*command, f"folder={tmp_path / 'alone'}"]).frame
    port, together = free_port(), [*command, f"folder={tmp_path / 'together'}"]
    members = [
        CONTEXT.Process(target=evaluated, args=(tmp_path, together, rank, 2, port)) for rank in range(2)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(timeout=120)
    assert [member.exitcode for member in members] == [0, 0]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "frame.parquet"), alone, rtol=1e-5)
    assert len(list((tmp_path / "together").glob("*.npz"))) == 5


@pytest.fixture
def small(tmp_path):
    """A bundle whose Core is five generated tasks."""
    folder = tmp_path / "bundle"
    (folder / "eval_data" / "symbolic").mkdir(parents=True)
    write_symbolic(folder, items=12)
    (folder / "symbolic.yaml").rename(folder / "core.yaml")
    return folder


def test_core_enters_the_record_of_a_model_without_a_loop(tiny, cache, tmp_path, small):
    plain = ["model=transformer_140m", "model.width=32", "model.heads=1", "model.prelude_layers=2"]
    fields = ["model.vocabulary_size=300", "model.sequence_length=64", "tokens=1280"]
    run_id = loopscale.train([*tiny, *plain, *fields])["run_id"]
    run = tmp_path / "runs" / "single" / run_id
    frame = loopscale.evaluate_tasks(settings(run, cache, f"bundle={small}", "tasks=core")).frame
    record = json.loads((run / "record.json").read_text())
    (core,) = frame[frame["task"] == "core"].to_dict("records")
    assert record["mean_recurrence"] == 2 and core["depth"] == 1  # a setting that the model does not use
    assert record["core"] == core["centred"] and record["core_tasks"] == 5
    assert len(pd.read_parquet(run / "evaluation" / "items-core.parquet")) == 5 * 12


def test_suites_that_share_tasks_show_and_keep_each_once(trained, cache, small, capsys):
    command = settings(trained, cache, f"bundle={small}", "tasks=core,core_extended", "depths=1,2")
    loopscale.main(["eval", *command, "format=json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    kept = json.loads((trained / "evaluation" / "scores.json").read_text())["rows"]
    for table in (rows, kept):
        names = [(row["task"], row["depth"]) for row in table]
        assert len(names) == len(set(names)) == 2 * (5 + 2)
    record = json.loads((trained / "record.json").read_text())
    assert record["core_tasks"] == record["core_extended_tasks"] == 5


def test_core_enters_the_record_at_the_runs_own_depth(trained, cache, small):
    command = settings(trained, cache, f"bundle={small}", "tasks=core")
    loopscale.evaluate_tasks([*command, "depths=1"])
    assert json.loads((trained / "record.json").read_text())["core"] is None
    frame = loopscale.evaluate_tasks([*command, "seeds=1234,2345"]).frame
    record = json.loads((trained / "record.json").read_text())
    (core,) = frame[frame["task"] == "core"].to_dict("records")
    assert record["core"] == core["centred"] and record["core_tasks"] == 5 and core["depth"] == 2
    assert core["seeds"] == 2 and core["seeds_se"] >= 0 and record["core_extended"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no single model is named: set run=..., or checkpoint=... with data=RUN"),
        (["sweep=b"], "no single model is named: set run=..., or checkpoint=... with data=RUN"),
        (["run=a", "sweep=b"], "no sweep 'b' under runs"),
        (
            ["checkpoint=a", "data=b", "tasks=core"],
            "data is for the validation loss: leave out data or tasks",
        ),
        (["checkpoint=a"], "data is not set: data=RUN names the run whose held-out data"),
        (["tasks=core"], "no model is named: set run=FOLDER, sweep=NAME, sweep=NAME with run=ID, or"),
        (["checkpoint=a", "sweep=b", "tasks=core"], "checkpoint and sweep are set together: set run=FOLDER"),
        (["run=a", "tasks=core", "depths=0"], "depths.0=0: must be greater than 0"),
        (["checkpoint=/nowhere", "tasks=symbolic"], "/nowhere holds no model"),
        (["checkpoint=/nowhere", "tasks=core", "bundle=/nowhere"], "/nowhere holds no model"),
        (
            ["run=a", "tasks=core", "precision=half"],
            "precision=half: must be 'float32' or 'bfloat16'",
        ),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, arguments, message):
    with pytest.raises(SystemExit):
        loopscale.main(["eval", f"cache={tmp_path}", *arguments])
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err


def test_bfloat16_is_near_float32_and_kept_apart(trained, cache):
    command = settings(
        trained, cache, "tasks=symbolic_lookup", f"bundle={cache / 'symbolic-as-core'}", "limit=20"
    )
    write_symbolic(cache / "symbolic-as-core", items=30)
    (cache / "symbolic-as-core" / "symbolic.yaml").rename(cache / "symbolic-as-core" / "core.yaml")
    full, half = (
        loopscale.evaluate_tasks([*command, f"precision={p}"]).frame for p in ("float32", "bfloat16")
    )
    assert half["log_prob_per_byte"].tolist() == pytest.approx(full["log_prob_per_byte"].tolist(), abs=0.05)
    assert half["log_prob_per_byte"].tolist() != full["log_prob_per_byte"].tolist()
    assert len(list((trained / "evaluation").glob("symbolic_lookup-*.npz"))) == 2
