"""Shared trunks on a real cluster: jobs wait for each other in the queue, and survive what happens there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from harness.run.folder import RunFolder
from harness.run.metrics import read_metrics
from sweeps.state.ended_jobs import attempts_of
from sweeps.state.ledger import read_ledger
from tests.waiting import wait_for

from .conftest import eventually, fault, slurm, undisturbed

GROUPS = [
    "sweep.mean_recurrences=[2]", "sweep.control=none", "sweep.seeds=[0,1]", "sweep.tokens=[1920,7680]",
]  # fmt: skip
SLOW = fault("slow=0.06")
PATIENCE_S = 400  # four jobs in a row, each of which imports torch on a machine with other work


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> dict[str, list[float]]:
    """The losses of the same runs, each trained by itself."""
    return undisturbed(tmp_path_factory.mktemp("alone"), data, *GROUPS, "sweep.trunk=false")


def segments(made):
    """The segments of one trunk, the first steps first."""
    known = read_ledger(made.folder).segments
    trunk = next(iter(known.values())).trunk_id
    names = sorted((name for name in known if known[name].trunk_id == trunk), key=lambda n: known[n].end)
    return [RunFolder(made.folder / name) for name in names]


def wait_for_step(run, step):
    def reached():
        lines = read_metrics(run.metrics) if run.metrics.exists() else []
        return bool(lines) and lines[-1]["step"] >= step

    wait_for(reached, PATIENCE_S, lambda: f"for {run.run_id}")


def started(run):
    return attempts_of(run)[0]["started_s"]


def test_branches_wait_in_the_queue_for_their_own_segment_alone(sweep, alone):
    made = sweep("trunks", *GROUPS, SLOW)
    frame = made.launch()
    assert len(made.batches()) == 4 and set(frame["status"]) <= {"submitted", "running"}
    ledger = read_ledger(made.folder)
    made.wait_until_idle(PATIENCE_S)
    made.finish(again=False)
    assert made.losses() == alone
    nodes = {run.run_id: run for run in ledger.nodes(made.folder)}
    for run in nodes.values():
        parent = ledger.parent_of(run.run_id)
        assert not parent or started(run) > started(nodes[parent])
    last = segments(made)[-1]
    shortest = made.runs()[-1]
    assert started(shortest) < last.status().updated_s, "it did not wait for the whole trunk"
    assert {run.status().attempts for run in nodes.values()} == {1}


def test_a_killed_segment_holds_up_what_starts_from_it_and_nothing_else(sweep, alone):
    made = sweep("trunk_killed", *GROUPS, "sweep.seeds=[0]", SLOW)
    made.launch()
    last = segments(made)[-1]
    wait_for_step(last, 12)
    task = attempts_of(last)[0]["pid"]
    (child,) = Path(f"/proc/{task}/task/{task}/children").read_text().split()
    for pid in (task, int(child)):
        os.kill(pid, signal.SIGKILL)
    made.wait_until_idle(PATIENCE_S)
    states = {run.run_id: run.status().state for run in made.runs()}
    held = [name for name in states if read_ledger(made.folder).parents[name] == last.run_id]
    assert {name for name, state in states.items() if state != "done"} == set(held) and len(held) == 1
    made.launch()
    made.wait_until_idle(PATIENCE_S)
    made.finish()
    assert made.losses().items() <= alone.items()
    assert last.status().failures == {"lost": 1} and last.status().attempts == 2


@pytest.mark.alone
def test_a_preempted_branch_goes_on_from_its_own_checkpoint(sweep, alone):
    made = sweep(
        "branch_preempted", *GROUPS, "sweep.seeds=[0]", SLOW,
        "cluster.resources.partition=batch", "cluster.resources.cpus_per_task=8",
    )  # fmt: skip
    made.launch()
    branch = made.runs()[0]
    wait_for_step(branch, 35)
    better = slurm(
        "sbatch", "--parsable", "-p", "urgent", "-N4", "-c8", "-o", "/dev/null", "--wrap", "sleep 2"
    ).strip()
    made.wait_until_idle(PATIENCE_S)
    made.finish()
    assert made.losses().items() <= alone.items()
    assert branch.status().failures == {"preempted": 1} and branch.status().attempts == 2
    assert [line["step"] for line in read_metrics(branch.metrics)] == list(range(1, 61))
    eventually(lambda: slurm("sacct", "-nXP", "-j", better, "-o", "State").strip(), "COMPLETED")
