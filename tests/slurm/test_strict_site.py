"""A site that forgets, limits and refuses what sites may: no accounting, no requeue, arrays of 11 elements.

Its partitions are preempted without a warning, by requeueing or for good; one takes two minutes, one has a
single node.
"""

from __future__ import annotations

import os
import subprocess

import pytest

import loopscale
from harness.run.metrics import read_metrics
from sweeps.backends.job_array import read_array
from sweeps.state.ended_jobs import attempts_of
from sweeps.state.status import status
from tests.waiting import wait_for

from .conftest import EVENT, fault, slurm, turn

SLOW = fault("slow=0.12")
ONE = ["sweep.seeds=[0]"]


@pytest.fixture(autouse=True)
def _turn(request, site, strict_site):
    """Wait for a turn at this cluster instead of the first one."""
    with turn(strict_site, alone=request.node.get_closest_marker("alone") is not None):
        yield


def summary(made):
    return status(made.folder).summary([f"sweep={made.folder.name}", f"root={made.root}"])


def better_job(node: str) -> None:
    """Submit a job that needs all of a node now."""
    slurm("sbatch", "-p", "urgent", "-w", node, "-c8", "-o", "/dev/null", "--wrap", "sleep 1")


def test_what_the_queue_has_forgotten_is_planned_and_goes_on(sweep, calm, strict_site):
    made = sweep("forgotten", *EVENT, SLOW)
    of_a_job = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "1", "SLURM_MEM_PER_NODE": "1", "RANK": "1"}
    assert made.launch_process(WORLD_SIZE="2", **of_a_job).wait(120) == 0
    made.wait_for_step(8)
    slurm("scontrol", "suspend", made.element())
    assert set(made.status()["status"]) >= {"suspended"}
    slurm("scontrol", "resume", made.element())
    array = made.element().partition("_")[0]
    assert loopscale.cancel([f"root={made.root}", "sweep=forgotten"])
    wait_for(lambda: array not in slurm("squeue", "-h", "--states=all", "-o", "%F").split())
    ended = made.status()["status"]
    assert set(ended) <= {"planned", "lost"}  # lost: it had no time for a checkpoint
    assert "\nnext: loopscale launch " in summary(made)
    loopscale.launch([text for text in made.overrides if text != "cluster=slurm"])
    made.finish()
    assert made.losses() == calm
    for run in made.runs():  # a lost run counts once, a planned one has not failed
        assert run.status().failures == ({"lost": 1} if ended[run.run_id] == "lost" else {})


@pytest.mark.alone
def test_preemption_without_grace_is_preemption(sweep, calm):
    made = sweep(
        "requeued", *EVENT, *ONE, SLOW, "cluster.resources.partition=batch", "cluster.requeue=true",
        "cluster.resources.cpus_per_task=8",
    )  # fmt: skip
    made.launch()
    for attempt in (1, 2):
        wait_for(lambda attempt=attempt: made.run().status().attempts == attempt)
        made.wait_for_step(8)
        better_job(attempts_of(made.run())[-1]["node"])
    wait_for(lambda: made.run().status().attempts == 3)
    made.finish()
    (run,) = made.runs()
    assert run.status().failures == {"preempted": 2} and len(made.batches()) == 1
    assert made.losses()[run.run_id] == calm[run.run_id]


@pytest.mark.alone
def test_preemption_for_good_is_continued_by_launch(sweep, calm):
    resources = ["cluster.resources.partition=scrap", "cluster.resources.cpus_per_task=8"]
    made = sweep("scrapped", *EVENT, *ONE, SLOW, *resources)
    made.launch()
    made.wait_for_step(8)
    better_job(attempts_of(made.run())[-1]["node"])
    wait_for(lambda: not made.run().is_held())
    made.wait_until_idle()
    made.launch()
    made.finish()
    (run,) = made.runs()
    assert run.status().failures == {"preempted": 1} and "cancelled" not in run.status().message
    assert made.losses()[run.run_id] == calm[run.run_id]


@pytest.mark.alone  # the queue's length counts
def test_arrays_and_the_queue_are_as_long_as_the_site_allows(sweep):
    made = sweep(
        "long", *EVENT, f"sweep.seeds={list(range(30))}", "cluster.resources.options={hold: true}",
        "cluster.resources.partition=brief", "cluster.resources.time_min=5", "cluster.max_queued=25",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="5 runs are not submitted yet"):
        frame = made.launch()
    sizes = [len(read_array(path.parent).elements) for path in made.batches()]
    assert sorted(sizes) == [3, 11, 11] and (frame["status"] == "submitted").sum() == 25
    assert frame["message"].str.contains("JobHeldUser|PartitionTimeLimit").sum() == 25
    changed = ["cluster.resources.time_min=2", "cluster.max_queued=100"]
    with pytest.warns(UserWarning, match=r"25 queued jobs ask .*\(time_min=5, now 2\)"):
        assert (made.launch(*changed)["status"] == "submitted").sum() == 30
    made.launch(*changed, "resubmit=true")
    limits = slurm("squeue", "-h", "-r", "-o", "%j %l").splitlines()
    assert [line.split()[1] for line in limits if line.startswith("long-")] == ["2:00"] * 30
    assert len(loopscale.cancel([f"root={made.root}", "sweep=long"])) == 30


@pytest.mark.alone
def test_a_job_goes_on_submitting_what_found_no_room(sweep):
    queue = ["cluster.max_queued=2", "cluster.keep_submitting=true"]
    made = sweep("kept", *EVENT, "sweep.tokens=[640]", "sweep.seeds=[0,1,2]", *queue)
    with pytest.warns(UserWarning, match="2 runs are not submitted yet, job .* submits them"):
        made.launch()
    wait_for(made.is_done, 300, lambda: f"for {made.states()} {made.queue()}")
    assert [run.status().attempts for run in made.runs()] == [1, 1, 1]


def test_jobs_that_die_before_python_are_named_and_the_only_node_stays(sweep, calm):
    own = ["cluster.resources.partition=single", "cluster.bad_node_after=2", "cluster.resources.time_min=2"]
    made = sweep("unloaded", *EVENT, *own)
    made.launch("cluster.setup=['echo cuda: no such module >&2','exit 7']")
    made.wait_until_idle()
    frame = made.status()
    assert set(frame["status"]) == {"planned"} and set(frame["node"]) == {"loop8"}
    assert frame["message"].str.match(r"its job ended before it began on loop8: .*no such module").all()
    with pytest.warns(UserWarning, match="loop8: not left out, too few other nodes"):
        made.launch("cluster.setup=[]")
    made.finish()
    assert made.losses() == calm
    assert all(run.status().failures == {"not_started": 1} for run in made.runs())


def test_a_job_killed_for_its_memory_was_out_of_memory(sweep, calm):
    made = sweep("greedy", *EVENT, *ONE, "cluster.resources.memory_gb=1.5")
    made.launch(fault("takes=3"))
    made.wait_until_idle()
    wait_for(lambda: not made.run().is_held())
    made.launch("cluster.setup=[]")
    made.finish()
    (run,) = made.runs()
    assert run.status().failures == {"oom": 1} and run.record()["micro_batch_changed"] == 1
    assert made.losses()[run.run_id] == pytest.approx(calm[run.run_id], abs=1e-5)


def test_a_sweep_folder_renamed_under_its_jobs(sweep, calm):
    made = sweep("renamed", *EVENT, SLOW)
    made.launch()
    made.wait_for_step(8)
    array = made.batches()[0].parent.name
    before, new = made.root, made.root.with_name("elsewhere")
    before.rename(new)
    made.root, made.folder = new, new / "renamed"
    made.overrides[0] = f"root={new}"
    made.wait_until_idle()
    assert list(before.rglob("*")) == [] and not before.exists(), "nothing is made anew"
    logs = [path.read_text() for path in (made.folder / "jobs" / array).glob("*_log.out")]
    assert logs and all("is gone, it was renamed or deleted" in text for text in logs)
    made.launch()
    made.finish()
    assert made.losses() == calm
    assert [line["step"] for line in read_metrics(made.run().metrics)] == list(range(1, 61))


NAME = "it's $(touch hacked)"


def as_override(key: str, value: object) -> str:
    """Return key=value with the value quoted for Hydra."""
    quoted = str(value).replace("'", "\\'")
    return f"{key}='{quoted}'"


def test_names_with_blanks_quotes_and_commands_in_them(sweep, calm, tmp_path):
    shape = "{nodes: 2, tasks_per_node: 1, ranks: torchrun, gpus_per_node: 2}"
    # The nodes have GPUs in name alone.
    made = sweep("plain", *EVENT, *ONE, f"cluster.per_scale={{looped_40k: {shape}}}", "training.device=cpu")
    made.root = tmp_path / "a root's $(touch hacked)"
    made.name, made.folder = NAME, made.root / NAME
    own = {"root": made.root, "sweep.name": NAME}
    kept = [text for text in made.overrides if text.partition("=")[0] not in own]
    made.overrides = [*kept, *(as_override(key, value) for key, value in own.items())]
    made.launch()
    wait_for(made.is_done, 300, lambda: f"for {made.states()} {slurm('squeue', '-o', '%j %T %r')}")
    (run,) = made.runs()
    assert made.losses()[run.run_id] == pytest.approx(calm[run.run_id], rel=1e-5)
    assert not list(tmp_path.rglob("hacked")) and run.status().attempts == 1


def test_a_job_held_after_a_requeue_says_so(sweep, calm):
    made = sweep("held", *EVENT, *ONE, SLOW, "cluster.requeue=true")
    made.launch()
    made.wait_for_step(8)
    slurm("scontrol", "requeuehold", made.element())
    wait_for(lambda: not made.run().is_held())
    wait_for(lambda: "held" in made.status().iloc[0]["message"], 60, made.status)
    assert "cancelled" not in made.run().status().message
    slurm("scontrol", "release", made.element())
    made.finish()
    (run,) = made.runs()
    assert made.losses()[run.run_id] == calm[run.run_id] and len(made.batches()) == 1


def test_a_site_is_strict(strict_site):
    shown = slurm("scontrol", "show", "config")
    settings = {line.partition("=")[0].strip(): line.partition("=")[2].strip() for line in shown.splitlines()}
    assert settings["MaxArraySize"] == "11" and settings["MinJobAge"].startswith("5 ")
    assert settings["JobRequeue"] == "0" and "none" in settings["AccountingStorageType"]
    assert len(slurm("sinfo", "-h", "-N", "-p", "batch", "-o", "%N").split()) == 8
    assert set(slurm("sinfo", "-h", "-o", "%G").split()) == {"gpu:none:2"}
    assert slurm("sinfo", "-h", "-p", "brief", "-o", "%l").strip() == "2:00"
    assert subprocess.run(["sacct"], capture_output=True, env=os.environ).returncode != 0
