"""A sweep on this machine: launched, killed, resumed, collected."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import loopscale
from analysis.tables.schema import DEPTHS, RUNS
from harness.run.metrics import read_metrics
from harness.storage.files import exclusive
from model.config_validation import ConfigError
from sweeps.backends import local
from sweeps.backends.local import LocalPool, slot
from sweeps.cli import progress
from sweeps.config.cluster import ClusterConfig
from sweeps.launch.launch import start_missing, write_ledger
from sweeps.state.eta import LOST
from sweeps.state.ledger import read_ledger
from sweeps.state.status import is_worked_on, status
from sweeps.workers import local_pool
from sweeps.workers.local_pool import work
from tests.waiting import wait_for

ONE_WORKER = LocalPool(ClusterConfig(parallel_runs=1))
ROOT = Path(__file__).resolve().parents[3]


def wait_for_end(folder):
    runs = read_ledger(folder).runs(folder)
    wait_for(lambda: all(run.status().state == "done" for run in runs) and not is_worked_on(folder))


@pytest.fixture
def table(tmp_path):
    """Overrides of the commands that read the sweep `tiny`."""
    return ["sweep=tiny", f"root={tmp_path / 'runs'}"]


def test_launch_returns_at_once_and_the_sweep_ends_in_two_tables(tiny_sweep, table, tmp_path):
    began = time.monotonic()
    frame = loopscale.launch([*tiny_sweep, "cluster.parallel_runs=2"])
    assert time.monotonic() - began < 20 and len(frame) == 6
    wait_for_end(tmp_path / "runs" / "tiny")
    assert (loopscale.status(table)["status"] == "done").all()
    runs, depths = loopscale.collect(table)
    assert list(runs) == [column.name for column in RUNS] and len(runs) == 6
    assert list(depths) == [column.name for column in DEPTHS] and len(depths) == 24
    assert (runs["attempts"] == 1).all() and runs["val_loss_nats"].notna().all()
    assert pd.read_csv(tmp_path / "runs" / "tiny" / "runs.csv")["run_id"].tolist() == runs["run_id"].tolist()
    plan = loopscale.plan(tiny_sweep)
    assert (plan["status"] == "done").all() and (plan["price"] == "measured").all()
    assert (loopscale.plan([*tiny_sweep, "cluster=slurm_h100"])["price"] == "estimated from peak").all()
    other = loopscale.plan([*tiny_sweep, "sweep.name=other", "sweep.mean_recurrences=[2,3]"])
    assert set(other["price"]) == {"measured", "measured on the same scale"}
    elsewhere = loopscale.plan([*tiny_sweep, "sweep.name=other", "cluster=slurm_h100"])
    assert (elsewhere["price"] == "estimated from peak").all()


def test_a_data_set_is_an_axis_like_any_other(tiny_study, table, tmp_path):
    grid = ["sweep.mean_recurrences=[2]", "sweep.control=none", "sweep.tokens=[1280]"]
    write_ledger(tiny_study(*grid, "sweep.axes={data.validation_fraction: [0.2, 0.4]}"))
    folder = tmp_path / "runs" / "tiny"
    state = status(folder)
    assert len(state.rows) == 2
    assert state.axes == ["data_digest"] and state.frame["data_digest"].nunique() == 2
    work(folder, stop=lambda: False)
    assert (loopscale.status(table)["status"] == "done").all()
    assert loopscale.collect(table)[0]["data_digest"].nunique() == 2


def test_a_shape_is_timed_for_the_price(tiny_sweep, tmp_path, capsys, monkeypatch):
    tiny_sweep = [*tiny_sweep, "sweep.mean_recurrences=[2]", "sweep.control=none"]
    monkeypatch.setattr(os, "getloadavg", lambda: (50.0 * (os.cpu_count() or 1), 0.0, 0.0))
    loopscale.main(["plan", *tiny_sweep, "calibrate=true"])
    out, err = capsys.readouterr()
    assert "calibrated on a busy machine; loopscale plan" in out and "repeats of a shape differ by" in err
    warning = next(
        line for line in err.splitlines() if line.startswith("warning: the machine was busy (load ")
    )
    again = re.search(r"When nothing else runs, loopscale (plan .*calibrate=true) times", warning)[1]
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr("sweeps.launch.calibrate.REPEATS", 1)  # their spread is 0
    loopscale.main(shlex.split(again))
    out, err = capsys.readouterr()
    assert "timing " in err and "warning" not in err and "busy" not in out
    loopscale.main(shlex.split(again))
    assert "every shape was timed before; rm -r " in capsys.readouterr().err
    frame = loopscale.plan(tiny_sweep)
    assert (frame["hours"] > 0).all() and frame["price"].str.startswith("calibrated").all()
    for elsewhere in (["cluster=slurm_h100"], ["cluster.resources.cpus_per_task=7"]):
        assert (
            not loopscale.plan([*tiny_sweep, *elsewhere])["price"].str.contains("calibrated|measured").any()
        )
    assert (tmp_path / "runs").exists() and not (tmp_path / "runs" / "tiny").exists()


def test_launching_again_adds_only_what_is_missing(finished, tiny_study):
    folder = finished
    stamps = {run.run_id: run.record() for run in read_ledger(folder).runs(folder)}
    ledger = write_ledger(tiny_study("sweep.tokens=[1280,2560,3840]"))
    assert len(ledger.run_ids) == 9 and set(stamps) <= set(ledger.run_ids)
    work(folder, stop=lambda: False)
    for run in ledger.runs(folder):
        assert run.status().state == "done" and run.status().attempts == 1
        assert stamps.get(run.run_id, run.record()) == run.record()


def test_a_killed_sweep_loses_nothing(tiny_study, table, tmp_path):
    ledger = write_ledger(
        tiny_study(
            "sweep.mean_recurrences=[2]", "sweep.tokens=[1280,10240]", "training.checkpoint_every_s=0.05"
        )
    )
    folder = tmp_path / "runs" / "tiny"
    longest = ledger.runs(folder)[0]
    (worker,) = ONE_WORKER.start_workers(folder)
    wait_for(lambda: len(read_metrics(longest.metrics)) > 30)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    wait_for(lambda: not longest.is_held())
    frame = loopscale.status(table).set_index("run_id")
    assert frame.loc[longest.run_id, "status"] == LOST
    work(folder, stop=lambda: False)
    frame = loopscale.status(table)
    assert (frame["status"] == "done").all()
    assert longest.status().attempts == 2 and (frame["attempts"].sum() == len(frame) + 1)
    assert [line["step"] for line in read_metrics(longest.metrics)] == list(range(1, 81))


def test_workers_end_with_their_owner_and_leave_a_checkpoint(tiny_study, tmp_path):
    study = tiny_study("sweep.tokens=[256000]", "sweep.max_epochs=20")
    ledger = write_ledger(study)
    folder = tmp_path / "runs" / "tiny"
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (worker,) = LocalPool(study.cluster).start_workers(folder, owner=owner.pid)
    first = ledger.runs(folder)[0]
    wait_for(lambda: len(read_metrics(first.metrics)) > 5)
    owner.kill()
    owner.wait()
    worker.wait(timeout=60)
    assert first.status().state == "submitted" and list(first.checkpoints.glob("step_*"))
    assert not first.is_held()


def test_a_worker_that_is_still_starting_is_at_the_sweep(tiny_study, tmp_path):
    folder = tmp_path / "runs" / write_ledger(tiny_study()).name
    (worker,) = ONE_WORKER.start_workers(folder)
    os.kill(worker.pid, signal.SIGSTOP)  # while it imports torch
    try:
        text = status(folder).summary(["sweep=tiny"])
        assert "6 runs: 6 planned; workers are starting and will take them up\n" in text
        assert text.endswith("\nnext: loopscale status sweep=tiny watch=true")
        assert ONE_WORKER.workers(folder) == [str(worker.pid)]
    finally:
        worker.kill()
        worker.wait()
    assert not is_worked_on(folder) and not status(folder).worked_on


def test_launch_of_a_finished_sweep_starts_nothing_and_names_what_is_next(
    finished, tiny_sweep, capsys, monkeypatch
):
    monkeypatch.setattr(LocalPool, "start_workers", lambda *_: pytest.fail("a worker was started"))
    loopscale.main(["launch", *tiny_sweep, "confirm=false"])
    out = capsys.readouterr().out
    assert "6 runs: 6 done\n" in out and "\nnothing to start\n" in out
    assert out.splitlines()[-1].startswith("next: loopscale collect sweep=tiny")


def test_a_slot_is_held_once(tiny_study, tmp_path, monkeypatch):
    ledger = write_ledger(tiny_study("sweep.tokens=[1280]", "sweep.mean_recurrences=[2]"))
    folder = tmp_path / "runs" / "tiny"
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own handlers
    with exclusive(slot(folder, 0), wait=True):
        local_pool.main([str(folder), "0"])
    assert [run.status().attempts for run in ledger.runs(folder)] == [0, 0]
    local_pool.main([str(folder), "0"])
    assert [run.status().attempts for run in ledger.runs(folder)] == [1, 1]


def test_a_failed_run_is_named_kept_and_opened_again_on_request(finished, tiny_sweep, table):
    folder = finished
    broken = read_ledger(folder).runs(folder)[0]
    shutil.rmtree(broken.path)
    broken.ensure_created()
    config = broken.path / "config.yaml"
    good = config.read_text()
    config.write_text(good.replace("seed: 0", "seed: 9"))
    work(folder, stop=lambda: False)
    frame = loopscale.status(table).set_index("run_id")
    assert frame.loc[broken.run_id, "status"] == "failed:bad_config"
    assert "seed: 9 / 0" in frame.loc[broken.run_id, "message"]
    assert (frame["status"] == "done").sum() == 5
    runs, _ = loopscale.collect(table)
    assert runs.set_index("run_id").loc[broken.run_id, "status"] == "failed:bad_config"
    work(folder, stop=lambda: False)
    assert broken.status().attempts == 1, "a failed run is not tried again by itself"
    config.write_text(good)
    loopscale.launch([*tiny_sweep, "retry_failed=true"])
    wait_for_end(folder)
    assert (loopscale.status(table)["status"] == "done").all()


def test_a_run_whose_process_dies_is_tried_again_a_few_times(tiny_study, tmp_path, monkeypatch):
    write_ledger(tiny_study("sweep.tokens=[1280]", "retry.lost.retries=1"))
    folder = tmp_path / "runs" / "tiny"

    def dies(path, cache, stop_requested):
        from harness.run.folder import RunFolder, Status

        run = RunFolder(path)
        run.set_status(Status(state="running", attempts=run.status().attempts + 1, steps=10))
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("sweeps.workers.run_process.run_job", dies)
    work(folder, stop=lambda: False)
    for run in read_ledger(folder).runs(folder):
        assert str(run.status()) == "failed:lost" and run.status().attempts == 2
        assert "killed by signal 9" in run.status().message


def test_status_prints_machine_readable_json_and_nothing_else(tiny_study, table, capsys):
    write_ledger(tiny_study())
    capsys.readouterr()
    loopscale.main(["status", *table, "format=json"])
    parsed = json.loads(capsys.readouterr().out)
    assert parsed["counts"] == {"planned": 6} and len(parsed["rows"]) == 6


def test_one_run_is_shown_whole_and_repeated_by_its_command(finished, table, capsys, tmp_path):
    run = read_ledger(finished).runs(finished)[0]
    capsys.readouterr()
    loopscale.main(["status", *table, f"run={run.run_id[-8:]}", "format=json"])
    (command,) = [
        line for line in json.loads(capsys.readouterr().out)["repeat"].splitlines() if "train" in line
    ]
    words = shlex.split(command)
    root = words.index("root=$(mktemp -d)")  # a folder of its own: a run that is done there is not repeated
    words[root] = f"root={tmp_path / 'repeated'}"
    loopscale.main([*words[words.index("train") :], "format=json"])
    again = json.loads(capsys.readouterr().out)
    assert again["val_loss_nats"] == run.record()["val_loss_nats"] and again["run_id"] == run.run_id
    assert again["sweep"] == "single"


def test_a_finished_sweep_is_watched_to_its_end(finished, table, capsys):
    capsys.readouterr()
    loopscale.main(["status", *table, "watch=true"])
    out = capsys.readouterr().out
    assert "6 runs: 6 done\n" in out and out.splitlines()[-1].startswith("next: loopscale collect sweep=tiny")


def test_ctrl_c_ends_the_watching_and_says_that_the_runs_go_on(finished, table, capsys, monkeypatch):
    def interrupted(folder, page):
        raise KeyboardInterrupt

    monkeypatch.setattr("sweeps.cli.progress.watch_until_idle", interrupted)
    loopscale.main(["status", *table, "watch=true"])
    out, err = capsys.readouterr()
    assert "no longer watched; the runs go on" in err and "interrupted" not in err and "6 done" in out


def test_a_run_without_a_loss_yet_is_watched_without_one(finished):
    state = status(finished)
    state.rows[0].update(status="running", train_loss_nats=float("nan"), step=0)
    state.rows[1].update(status="running", train_loss_nats=2.5)
    text = progress._Meter().line(state)
    assert text.endswith("training losses now: 2.500") and "nan" not in text


def test_one_failed_run_is_retried_alone(finished, table):
    first, second, *_ = read_ledger(finished).runs(finished)
    for run in (first, second):
        run.set_status(run.status().failed("diverged", "loss rose"))
    assert loopscale.retry([*table, f"run={first.path}"]) == [first.run_id]
    wait_for(lambda: first.status().state == "done" and not is_worked_on(finished))
    assert second.status().state == "failed"


def test_cancel_and_retry_answer_in_json(tiny_study, table, tmp_path, capsys):
    one = ["sweep.tokens=[1280]", "sweep.mean_recurrences=[2]", "sweep.control=none"]
    ledger = write_ledger(tiny_study(*one))
    folder = tmp_path / "runs" / "tiny"

    def answer(*command):
        capsys.readouterr()
        loopscale.main([*command, *table, "format=json"])
        return json.loads(capsys.readouterr().out)

    assert answer("cancel") == {"cancelled": []}
    assert answer("retry", "failed=true") == {"started": [], "notes": []}
    with subprocess.Popen(["sleep", "60"]) as worker, exclusive(slot(folder, 0), wait=True):
        slot(folder, 0).with_suffix(".pid").write_text(str(worker.pid))
        assert answer("cancel") == {"cancelled": [f"worker process {worker.pid}"]}
        assert worker.wait(10) == -signal.SIGTERM
        (run,) = ledger.runs(folder)
        run.set_status(run.status().failed("diverged", "loss rose"))
        assert answer("retry", "failed=true") == {"started": [run.run_id], "notes": []}
        assert run.status().state == "submitted"
        started = local._DETACHED.pop()
        started.kill()  # before it has a slot: what it would train is no part of this
        assert started.wait(10) == -signal.SIGKILL


def test_nothing_launched_is_said_with_what_is_there(table):
    with pytest.raises(ConfigError, match=r"no sweep 'tiny' under .* \(nothing was launched there yet"):
        loopscale.status(table)


def test_runs_of_train_are_no_sweep(tmp_path):
    record = tmp_path / "runs" / "single" / "looped_40k-mu4-steps7-seed0-0123abcd" / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    with pytest.raises(
        ConfigError, match=r"holds runs but no launched sweep: .*loopscale collect sweep=single"
    ):
        loopscale.status(["sweep=single", f"root={tmp_path / 'runs'}"])


def test_a_crash_that_cannot_be_written_down_is_not_repeated_for_ever(tiny_study, tmp_path, monkeypatch):
    write_ledger(tiny_study("retry.lost.retries=1", "sweep.trunk=false"))
    folder = tmp_path / "runs" / "tiny"
    log = tmp_path / "started"

    def crashes(path, cache, stop_requested):
        with log.open("a") as handle:
            handle.write("x")
        os._exit(1)

    monkeypatch.setattr("sweeps.workers.run_process.run_job", crashes)
    work(folder, stop=lambda: False)
    assert len(log.read_text()) == 6 * 2


def test_a_sweep_does_not_mix_data(tiny_study):
    write_ledger(tiny_study())
    with pytest.raises(ConfigError, match="holds runs on other data"):
        write_ledger(tiny_study("data.vocabulary_size=310"))


def test_a_new_machine_setting_reaches_a_run_that_is_not_done(tiny_study, tmp_path):
    write_ledger(tiny_study())
    ledger = write_ledger(tiny_study("training.micro_batch=2"))
    assert {run.config().training.micro_batch for run in ledger.runs(tmp_path / "runs" / "tiny")} == {2}


def test_a_second_launch_says_that_workers_are_at_work(tiny_study, tmp_path):
    study = tiny_study("cluster.parallel_runs=1")
    folder = tmp_path / "runs" / write_ledger(study).name
    with subprocess.Popen(["sleep", "60"]) as worker, exclusive(slot(folder, 0), wait=True):
        slot(folder, 0).with_suffix(".pid").write_text(str(worker.pid))
        submission = start_missing(folder)
        worker.kill()
        local._DETACHED.pop().wait(60)
    assert submission.jobs == []
    assert submission.notes == [
        f"at work already: worker process {worker.pid}; another starts only where one has ended"
    ]


def test_a_launch_names_the_other_sweep_whose_workers_share_the_machine(tiny_study, tmp_path):
    root, study = tmp_path / "runs", tiny_study("cluster.parallel_runs=1")
    folder = root / write_ledger(study).name
    other = root / "other"
    other.mkdir()
    (other / "sweep.json").write_text("{}")
    with subprocess.Popen(["sleep", "60"]) as worker, exclusive(slot(other, 0), wait=True):
        slot(other, 0).with_suffix(".pid").write_text(str(worker.pid))
        submission = start_missing(folder)
        worker.kill()
        started = local._DETACHED.pop()
        started.terminate()
        started.wait(60)
    (note,) = submission.notes
    assert note.startswith("other trains on this machine too") and "cancel sweep=other" in note
