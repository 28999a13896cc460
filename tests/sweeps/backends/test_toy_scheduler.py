"""A scheduler of a page, known to nothing but this file, carries a sweep from launch to its tables.

A folder is its queue, with one JSON file for each element of an array; a thread is its cluster. A job is a
process that registers the scheduler and runs one element.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import loopscale
from harness.run.metrics import read_metrics
from harness.storage.files import read_json, write_json
from sweeps.backends.base import Backend, CurrentJob, JobElement, JobState, Requeue
from sweeps.backends.job_array import array_folder, element_id, latest_elements, read_arrays
from sweeps.backends.registry import register_backend
from sweeps.config.cluster import BACKENDS
from sweeps.state.ended_jobs import attempts_of
from sweeps.state.ledger import read_ledger
from sweeps.state.status import status
from sweeps.workers import array_task
from tests.harness.processes import CONTEXT
from tests.waiting import wait_for
from tests.workers import in_processes

pytestmark = in_processes
QUEUE, JOB = "TOY_QUEUE", "TOY_JOB"  # environment: the folder, and the element that a process is
STATES = {
    "waits": JobState.QUEUED,
    "works": JobState.RUNNING,
    "went well": JobState.DONE,
    "was called off": JobState.CANCELLED,
    "fell over": JobState.FAILED,
}


class Toy(Backend):
    """Keeps its queue in a folder."""

    display_name = "the toy"
    name = "toy"
    max_array = 2

    @property
    def queue(self) -> Path:
        return Path(os.environ[QUEUE])

    def entries(self):
        return {path: read_json(path) for path in sorted(self.queue.glob("*.json"))}

    def submit(self, sweep, array, version):
        job = str(1 + len({entry["name"] for entry in self.entries().values()}))
        for index in range(len(array.elements)):
            before = None
            if array.after:
                first = index if array.after_index is None else array.after_index
                before = [f"{array.sweep}-{array.after}", first]
            entry = {"name": array.name, "index": index, "job": job, "state": "waits", "after": before}
            folder = str(array_folder(sweep.resolve(), array))
            write_json(self.queue / f"{element_id(job, index)}.json", entry | {"folder": folder})
        return job

    def find(self, name):
        return next((entry["job"] for entry in self.entries().values() if entry["name"] == name), None)

    def states(self, arrays, *, patient=True):
        names = {array.name for array in arrays}
        return {
            (entry["name"], entry["index"]): JobElement(
                state=STATES[entry["state"]],
                native_state=entry["state"],
                reason="its turn has not come",
                node="toy-node",
                job_id=entry["job"],
            )
            for entry in self.entries().values()
            if entry["name"] in names
        }

    def cancel(self, jobs):
        for job in jobs:
            path = self.queue / f"{job}.json"
            entry = read_json(path)
            write_json(path, entry | {"state": "was called off"})
            if entry["state"] == "works":
                os.kill(entry["pid"], signal.SIGTERM)

    def job_file(self, sweep, array, version):
        return f"toy job of {len(array.elements)} elements"

    def current_job(self):
        if JOB not in os.environ:
            return None
        job, _, index = os.environ[JOB].partition("_")
        return CurrentJob(cluster="toy", job_id=job, index=int(index), node="toy-node")

    def requeue(self, job):
        path = self.queue / f"{job.element_id}.json"
        entry = read_json(path)
        if entry["state"] == "was called off":
            return Requeue(message="called off", cancelled=True)
        write_json(path, entry | {"again": True})
        return Requeue(message="queued again by the toy")


class Cluster(threading.Thread):
    """Runs what waits in the queue, two processes at a time."""

    def __init__(self, toy):
        super().__init__(daemon=True)
        self.toy, self.closed, self.active = toy, threading.Event(), {}

    def run(self):
        while not self.closed.is_set():
            entries = self.toy.entries()
            for path, process in list(self.active.items()):
                if process.exitcode is not None:
                    self.end(path, entries[path], self.active.pop(path).exitcode)
            entries = self.toy.entries()
            states = {(entry["name"], entry["index"]): entry["state"] for entry in entries.values()}
            for path, entry in entries.items():
                ready = entry["after"] is None or states[tuple(entry["after"])] == "went well"
                if entry["state"] == "waits" and ready and len(self.active) < 2:
                    self.start_entry(path, entry)
            time.sleep(0.05)
        for process in self.active.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()

    def start_entry(self, path, entry):
        self.active[path] = job = CONTEXT.Process(target=run_element, args=(path, entry["folder"]))
        job.start()
        write_json(path, entry | {"state": "works", "pid": job.pid, "again": False})

    @staticmethod
    def end(path, entry, code):
        if entry["state"] == "works":
            ended = "went well" if code == 0 else "fell over"
            write_json(path, entry | {"state": "waits" if entry["again"] else ended})


def run_element(path, folder):
    os.setsid()  # with the runs' own processes a group, which a lost node takes along
    os.environ |= {QUEUE: str(path.parent), JOB: path.stem}
    register_backend("toy", Toy)
    sys.exit(array_task.main([folder]))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The scheduler, its cluster at work, registered as any other is."""
    (tmp_path / "queue").mkdir()
    monkeypatch.setenv(QUEUE, str(tmp_path / "queue"))
    monkeypatch.setitem(BACKENDS, "toy", Toy)
    made = Toy(loopscale.compose(["cluster.kind=toy"]).cluster)
    cluster = Cluster(made)
    cluster.start()
    yield made
    cluster.closed.set()
    cluster.join(60)


def test_a_toy_scheduler_carries_a_sweep_from_launch_to_its_tables(toy, tiny_sweep, tmp_path, capsys):
    own = [
        "sweep.mean_recurrences=[2]", "sweep.control=none", "sweep.tokens=[1280,64000]",
        "sweep.max_epochs=20",
        "training.checkpoint_every_s=0.25", "cluster.kind=toy",
    ]  # fmt: skip
    launch = [*tiny_sweep, *own]
    table, folder = ["sweep=tiny", f"root={tmp_path / 'runs'}"], tmp_path / "runs" / "tiny"

    def entry_of(run):
        array, index = latest_elements(read_arrays(folder))[run.run_id]
        return next(
            entry
            for entry in toy.entries().values()
            if (entry["name"], entry["index"]) == (array.name, index)
        )

    def wait_for_steps(run, steps):
        wait_for(
            lambda: run.metrics.exists() and len(read_metrics(run.metrics)) >= steps,
            what=lambda: f"for step {steps}: {run.status()} {toy.entries()}",
        )

    def wait_until_idle():
        active = ("waits", "works")
        wait_for(
            lambda: not any(entry["state"] in active for entry in toy.entries().values()), what=toy.entries
        )

    loopscale.data(launch)
    loopscale.main(["launch", *launch, "dry_run=true"])
    assert capsys.readouterr().out.count("toy job of 1 elements") == 4, (
        "two segments of a trunk, and a branch of each"
    )
    assert not folder.exists() and not toy.entries()

    frame = loopscale.launch(launch)
    assert len(frame) == 2 and set(frame["status"]) == {"submitted"}
    segments = {row["run_id"] for row in status(folder).trunks}
    assert set(frame["message"]) == {f"waits for {name}" for name in segments}
    long = read_ledger(folder).runs(folder)[0]
    wait_for_steps(long, 265)
    (running,) = loopscale.status(table).query("status == 'running'")["job"]
    assert running == f"toy:{element_id(entry_of(long)['job'], 0)}"
    os.kill(entry_of(long)["pid"], signal.SIGUSR2)  # a better job needs its place
    wait_for(lambda: long.status().attempts == 2, what=long.status)
    assert long.status().failures == {"preempted": 1} and entry_of(long)["state"] == "works"

    wait_for_steps(long, 290)
    os.killpg(entry_of(long)["pid"], signal.SIGKILL)
    wait_for(lambda: entry_of(long)["state"] == "fell over", what=toy.entries)
    # The run's own process dies a moment after the element that waits for it.
    wait_for(lambda: loopscale.status(table).set_index("run_id").loc[long.run_id, "status"] == "lost")
    wait_until_idle()
    before = len(read_arrays(folder))
    loopscale.launch(launch)
    assert len(read_arrays(folder)) == before + 1 and long.status().failures == {"preempted": 1, "lost": 1}

    wait_for_steps(long, 320)
    job = element_id(entry_of(long)["job"], 0)
    assert loopscale.cancel(table) == [f"toy:{job} ({long.run_id})"]
    wait_for(lambda: "called off" in long.status().message, what=long.status)
    loopscale.launch(launch)
    wait_until_idle()
    assert set(loopscale.status(table)["status"]) == {"done"}
    assert long.status().attempts == 4 and long.status().failures == {"preempted": 1, "lost": 1}
    assert [line["step"] for line in read_metrics(long.metrics)] == list(range(1, 501))
    assert [(place["cluster"], place["node"]) for place in attempts_of(long)] == [("toy", "toy-node")] * 4

    short = read_ledger(folder).runs(folder)[1]
    short.set_status(short.status().failed("diverged", "on purpose"))
    assert loopscale.retry([*table, "failed=true"]) == [short.run_id]
    wait_until_idle()
    runs, depths = loopscale.collect(table)
    assert set(runs["status"]) == {"done"} and runs["val_loss_nats"].notna().all() and len(depths) == 8
