"""wandb beside a run: an offline history made from metrics.jsonl, and no network unless it is asked for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import loopscale
from harness.run.folder import RunFolder
from harness.run.metrics import read_metrics
from model.config_validation import ConfigError
from tests.harness.processes import join, start_held, wait_for_hold
from tests.waiting import wait_for
from tests.workers import in_processes

pytestmark = in_processes  # what they share is made once

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def reader():
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        yield import_module("wandb_reader")
    finally:
        sys.path.remove(str(Path(__file__).parent))


def only_run(tmp_path):
    (path,) = (tmp_path / "runs" / "single").iterdir()
    return RunFolder(path)


def history_file(folder):
    (found,) = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    return found


def whole_history(folder, reader):
    """Return that file once wandb's own process has written all of it, which may be after `finish`."""

    def has_ended():
        records = reader.records(history_file(folder))
        return any(record.WhichOneof("record_type") == "exit" for record in records)

    wait_for(has_ended, what=lambda: f"for the end of {history_file(folder)}")
    return history_file(folder)


def test_a_run_killed_and_resumed_has_every_step_once_in_its_history(tiny, make, cache, tmp_path, reader):
    settings = ["tokens=3840", "logger=wandb", "training.checkpoint_every_s=0.01"]
    folder, _ = make(*settings, parent="runs/single")
    child = start_held(folder.path, cache, 9)
    wait_for_hold(folder.path, 9)
    child.kill()
    join([child])
    assert folder.status().state == "running"
    assert loopscale.sync(["sweep=single", f"root={tmp_path / 'runs'}"])["wandb"].tolist() == ["rebuilt"]
    part = reader.history(whole_history(folder, reader))
    assert [line["_step"] for line in part] == [line["step"] for line in read_metrics(folder.metrics)]
    loopscale.train([*tiny, *settings])

    lines = reader.history(whole_history(folder, reader))  # that of the first attempt is replaced
    metrics = read_metrics(folder.metrics)
    assert [line["_step"] for line in lines] == list(range(1, 31)) == [line["step"] for line in metrics]
    assert [line["train_loss_nats"] for line in lines] == [line["train_loss_nats"] for line in metrics]
    run = reader.run_record(whole_history(folder, reader))
    assert (run.run_id, run.run_group, run.project) == (folder.run_id, "single", "loopscale")
    summary = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in reader.records(whole_history(folder, reader))
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    assert summary["val_loss_nats"] == folder.record()["val_loss_nats"]
    assert summary["attempts"] == 2


def test_sync_takes_any_run_skips_what_is_unchanged_and_follows_what_has(tiny, tmp_path, reader):
    loopscale.train([*tiny, "tokens=640"])  # logger=none: nothing of wandb beside it
    folder = only_run(tmp_path)
    assert not (folder.path / "wandb").exists()
    how = ["sweep=single", f"root={tmp_path / 'runs'}"]
    assert loopscale.sync(how)["wandb"].tolist() == ["rebuilt"]
    first = history_file(folder)
    assert loopscale.sync(how)["wandb"].tolist() == ["unchanged"]
    assert history_file(folder) == first
    shutil.rmtree(first.parent)
    assert loopscale.sync(how)["wandb"].tolist() == ["rebuilt"]
    assert loopscale.sync([*how, "project=other"])["wandb"].tolist() == ["rebuilt"]
    assert reader.run_record(whole_history(folder, reader)).project == "other"
    with folder.metrics.open("a") as file:
        file.write('{"step": 6, "train_loss_nats": 1.0}\n{"step": 7, "train_lo')  # torn by a kill
    assert loopscale.sync([*how, "project=other"])["wandb"].tolist() == ["rebuilt"]
    assert [line["_step"] for line in reader.history(whole_history(folder, reader))] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ConfigError, match=rf"run=x is not in .*single \(choose from {folder.run_id}\)"):
        loopscale.sync([*how, "run=x"])
    with pytest.raises(ConfigError, match=r"no runs in .*nowhere: launch the sweep first, or set root"):
        loopscale.sync(["sweep=nowhere", f"root={tmp_path}"])


def test_wandb_out_of_order_costs_a_warning_and_not_the_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(UserWarning, match=r"no wandb history of .*: make it with loopscale sync"):
        record = loopscale.train([*tiny, "tokens=640", "logger=wandb"])
    assert record["status"] == "done"


def test_online_mode_without_wandb_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"logger: logger\.mode=online logs nowhere .*: set logger=wandb"):
        loopscale.compose([*tiny, "logger.mode=online"])


def works(*command):
    return (
        shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


def calls_to_the_network(trace):
    """The lines of a trace that reach for another host: connect or send to an internet address."""
    return [line for line in trace.splitlines() if re.search(r"(connect|send\w+)\(.*sa_family=AF_INET", line)]


STRACE, UNSHARE = works("strace", "true"), works("unshare", "-rn", "true")
MAIN = "import json, sys, loopscale\nfor command in json.loads(sys.argv[1]): loopscale.main(command)"


def watched(trace):
    """Return the start of a command whose calls for a connection go to the file `trace`."""
    return ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]


@pytest.fixture(scope="module")
def offline(tiny_run, tmp_path_factory):
    """Train with wandb and sync, watched and without a network if that can be; the folder, what was said."""
    folder = tmp_path_factory.mktemp("offline")
    root = f"root={folder / 'runs'}"
    commands = [
        ["train", root, *tiny_run, "tokens=640", "logger=wandb"],
        ["sync", "sweep=single", root],
        ["sync", "sweep=single", root, "project=other"],
    ]
    around = [*(["unshare", "-rn"] if UNSHARE else []), *(watched(folder / "trace.txt") if STRACE else [])]
    command = [*around, sys.executable, "-c", MAIN, json.dumps(commands)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return folder, done.stdout


@pytest.mark.skipif(not STRACE, reason="needs strace")
def test_no_network_call_is_made_without_mode_online(offline, tmp_path):
    trace = (offline[0] / "trace.txt").read_text()
    assert "connect(" in trace  # wandb's service is seen to be called, on its own socket
    assert not calls_to_the_network(trace)
    # The watch sees a name looked up, were there one: an address that is this machine's own.
    ask = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 53))"
    subprocess.run([*watched(tmp_path / "trace.txt"), sys.executable, "-c", ask], check=True)
    assert len(calls_to_the_network((tmp_path / "trace.txt").read_text())) == 1


@pytest.mark.skipif(not UNSHARE, reason="needs unshare with user namespaces")
def test_a_machine_without_a_network_trains_and_syncs(offline, reader):
    folder, said = offline
    assert re.findall(r"^.*single: 1 (\w+)$", said, re.MULTILINE) == ["unchanged", "rebuilt"]
    assert len(reader.history(whole_history(only_run(folder), reader))) == 5
