"""Runs that a launch has entered: a line each, and a folder from the first thing that happens to them."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import loopscale
from harness.run.folder import RunFolder
from harness.run.length import Origin, origin
from harness.run.pending_runs import PLANNED
from model.config_validation import ConfigError
from sweeps.backends.job_array import JobArray, array_folder, write_array
from sweeps.config.cluster import Resources
from sweeps.launch.launch import write_ledger
from sweeps.state.ended_jobs import attempts_of
from sweeps.state.ledger import read_ledger
from sweeps.workers.local_pool import work

ROOT = Path(__file__).resolve().parents[3]
FILES = {"config.yaml", "identity.json", "record.json", "status.json"}
ALONE = "sweep.trunk=false"


@pytest.fixture
def table(tmp_path):
    """Overrides of the commands that read the sweep `tiny`."""
    return ["sweep=tiny", f"root={tmp_path / 'runs'}"]


@pytest.fixture
def enter(tiny_study, tmp_path):
    """Enter the sweep `tiny`, six runs of 10 and 20 steps, with further overrides; returns its runs."""

    def write(*more):
        folder = tmp_path / "runs" / "tiny"
        return write_ledger(tiny_study(ALONE, *more)).runs(folder)

    return write


def contents(run):
    return {path.name for path in run.path.iterdir()}


def folders(sweep):
    return {path.name for path in sweep.iterdir() if path.is_dir()}


def test_a_launch_makes_one_file_for_all_runs(enter, tmp_path):
    runs = enter()
    sweep = tmp_path / "runs" / "tiny"
    assert folders(sweep) == set()
    assert len((sweep / PLANNED).read_text().splitlines()) == len(runs) == 6


def test_every_command_answers_for_a_run_without_a_folder(enter, table, tiny_study, tmp_path, capsys):
    runs = enter()
    frame = loopscale.status(table)
    assert list(frame["status"]) == ["planned"] * 6 and Counter(frame["steps"]) == {10: 3, 20: 3}
    assert list(loopscale.collect(table)[0]["status"]) == ["planned"] * 6
    assert list(loopscale.plan(tiny_study(ALONE))["status"]) == ["planned"] * 6
    assert set(loopscale.sync(table)["wandb"]) == {"nothing measured yet"}
    assert loopscale.cancel(table) == []
    with pytest.raises(ConfigError, match="has not failed: it is planned"):
        loopscale.retry([*table, f"run={runs[0].run_id}"])
    capsys.readouterr()
    loopscale.main(["status", *table, f"run={runs[0].run_id[-8:]}", "format=json"])
    assert json.loads(capsys.readouterr().out)["steps"] == 20
    with pytest.raises(ConfigError, match="has no checkpoint: train it first"):
        loopscale.evaluate([*table, f"run={runs[0].run_id}"])
    for run in runs:
        assert run.check().steps == run.status().steps and run.record()["val_loss_nats"] is None
    assert folders(tmp_path / "runs" / "tiny") == set(), "looking changes nothing"


def test_what_answers_is_what_the_folder_then_holds(enter):
    first, second, *_ = enter()
    asked = (first.config(), first.record(), first.status(), first.data_digest())
    first.ensure_created()
    assert contents(first) == FILES
    assert (first.config(), first.record(), first.status(), first.data_digest()) == asked
    assert first.check().steps == 20 and not second.path.exists()


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.set_status(run.status().failed("lost", "in the queue")),
        lambda run: run.set_record(run.record()),
        lambda run: run.set_config(run.config()),
        lambda run: run.lease().__enter__(),
    ],
)
def test_the_first_write_creates_a_whole_folder(enter, write):
    run = enter()[0]
    write(run)
    assert contents(run) - {"lease"} == FILES


def test_a_folder_that_was_begun_is_completed_and_what_it_has_stays(enter):
    run = enter()[0]
    run.path.mkdir()
    assert run.status().state == "planned" and run.check().steps == 20
    record = run.record() | {"micro_batch_changed": 1}
    (run.path / "record.json").write_text(json.dumps(record))
    run.ensure_created()
    assert contents(run) == FILES and run.record() == record


def test_a_status_that_stands_is_never_planned_again(enter):
    run = enter()[0]
    run.set_status(run.status().failed("diverged", "loss rose"))
    run.ensure_created()
    assert str(run.status()) == "failed:diverged"


def create_and_run(run, barrier):
    barrier.wait()
    run.ensure_created()
    assert contents(run) >= FILES
    run.set_status(run.status().failed("lost", "gone"))


def test_processes_that_create_a_folder_at_once_do_no_harm(enter):
    run = enter()[0]
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    workers = [context.Process(target=create_and_run, args=(run, barrier)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert run.status().state == "failed" and contents(run) == FILES


def test_launched_again_lines_stay_and_folders_are_the_truth(enter):
    first, second, *_ = enter()
    done = first.status()
    first.set_status(done.failed("oom", "no memory"))
    first.set_record(first.record() | {"device": "here"})
    line = second.record()
    runs = enter("sweep.tokens=[1280,2560,3840]", "training.micro_batch=2")
    assert len(runs) == 9 and [run.run_id for run in runs[:2]] == [first.run_id, second.run_id]
    assert str(first.status()) == "failed:oom" and first.record()["device"] == "here"
    assert first.config().training.micro_batch is None, "what ran out of memory keeps its micro-batch"
    assert second.record() == line and second.config().training.micro_batch == 2
    assert not second.path.exists()


def test_a_sweep_whose_runs_all_have_folders_goes_on(enter, table, tmp_path):
    for run in enter():
        run.ensure_created()
    planned = tmp_path / "runs" / "tiny" / PLANNED
    planned.unlink()  # as before there were such files
    assert list(loopscale.status(table)["status"]) == ["planned"] * 6
    runs = enter("sweep.tokens=[1280,2560,3840]")
    assert len(planned.read_text().splitlines()) == 3
    assert [run.path.exists() for run in runs] == [True] * 6 + [False] * 3
    assert loopscale.status(table)["status"].tolist() == ["planned"] * 9


def test_a_launch_that_dies_before_its_ledger_is_completed_by_the_next(enter, table, monkeypatch):
    def dies(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("sweeps.launch.launch.write_json", dies)
    with pytest.raises(KeyboardInterrupt):
        enter()
    monkeypatch.undo()
    runs = enter("sweep.tokens=[2560]")
    assert [run.check().steps for run in runs] == [20] * 3
    assert list(loopscale.status(table)["run_id"]) == [run.run_id for run in runs]


def test_a_run_that_was_entered_keeps_its_trunk(enter, tmp_path):
    runs = enter("sweep.trunk=true")
    parents = read_ledger(tmp_path / "runs" / "tiny").parents
    assert parents and all(origin(run) == Origin(parent=parents[run.run_id]) for run in runs)
    assert folders(tmp_path / "runs" / "tiny") == set(parents.values()), "segments alone have folders"
    runs[0].ensure_created()
    assert contents(runs[0]) == FILES | {"trunk.json"}
    assert origin(runs[0]) == Origin(parent=parents[runs[0].run_id])


def test_an_entered_run_is_trained_by_hand_from_its_line(enter, tiny, tmp_path):
    run = enter()[-1]
    by_hand = [*tiny, f"run={run.path}", "sweep.name=tiny"]
    assert loopscale.train(by_hand)["run_id"] == run.run_id
    assert run.status().state == "done" and run.path.exists()


def test_a_sweep_is_moved_before_it_starts(enter, tmp_path):
    enter("sweep.tokens=[1280]", "sweep.control=none")
    shutil.copytree(tmp_path / "runs" / "tiny", tmp_path / "elsewhere" / "tiny")
    sweep = tmp_path / "elsewhere" / "tiny"
    shutil.rmtree(tmp_path / "runs")
    work(sweep, stop=lambda: False)
    assert {run.status().state for run in read_ledger(sweep).runs(sweep)} == {"done"}


def test_no_run_is_said_to_be_none(enter, tmp_path):
    enter()
    with pytest.raises(ConfigError, match=r"is not a run folder: it has no config\.yaml"):
        RunFolder(tmp_path / "runs" / "tiny" / "jobs").config()
    with pytest.raises(ConfigError, match=r"is not a run folder: it has no identity\.json"):
        RunFolder(tmp_path / "runs" / "tiny" / "jobs").data_digest()


def test_a_torn_file_is_named(enter, table, tmp_path):
    enter()
    planned = tmp_path / "runs" / "tiny" / PLANNED
    planned.write_text(planned.read_text()[:-100])  # copied in part
    with pytest.raises(ConfigError, match=r"planned\.jsonl is damaged: line 6 is no run"):
        loopscale.status(table)


def test_a_job_trains_a_run_that_has_no_folder_yet(enter, tmp_path):
    run = enter()[-1]
    sweep = tmp_path / "runs" / "tiny"
    batch = JobArray(
        token="first",
        sweep="tiny",
        elements=[[run.run_id]],
        resources=Resources(),
        snapshot="code",
        array_parallelism=1,
    )
    write_array(sweep, batch)
    command = [sys.executable, "-m", "sweeps.workers.array_task", str(array_folder(sweep, batch)), "0"]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    assert run.status().state == "done" and [place["attempt"] for place in attempts_of(run)] == [1]
    assert folders(sweep) == {run.run_id, "jobs"}
