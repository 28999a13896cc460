"""What clusters do to a sweep: after each event, launch again brings it to the end, with the same bits."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import loopscale
from harness.run.metrics import read_metrics
from sweeps.backends.job_array import read_array
from sweeps.state.ended_jobs import attempts_of
from sweeps.state.status import status
from tests.waiting import wait_for

from .cluster import step_daemons
from .conftest import EVENT, ROOT, eventually, fault, slurm

SLOW = fault("slow=0.12")


def trained_once(run, attempts):
    """Every step once, in order, in so many attempts."""
    steps = [line["step"] for line in read_metrics(run.metrics)]
    return steps == list(range(1, 61)) and run.status().attempts == attempts


def test_a_signal_saves_a_checkpoint_and_the_job_queues_itself_again(sweep, calm):
    made = sweep("signalled", *EVENT, SLOW)
    made.launch()
    made.wait_for_step(8)
    slurm("scancel", "--signal=USR2", made.element())
    wait_for(lambda: "queued again" in made.run().status().message)
    made.wait_until_idle()
    assert made.losses() == calm and trained_once(made.run(), 2)
    assert made.run().status().failures == {"preempted": 1} and len(made.batches()) == 1


@pytest.mark.alone
def test_preemption_by_a_better_partition(sweep, calm):
    made = sweep(
        "preempted", *EVENT, SLOW, "cluster.resources.partition=batch", "cluster.resources.cpus_per_task=8"
    )
    made.launch()
    made.wait_for_step(8)
    better = slurm("sbatch", "--parsable", "-p", "urgent", "-N4", "-c8", "--wrap", "sleep 2").strip()
    made.finish()
    assert made.losses() == calm
    assert all(run.status().failures.get("preempted") == 1 for run in made.runs())
    eventually(lambda: slurm("sacct", "-nXP", "-j", better, "-o", "State").strip(), "COMPLETED")


@pytest.mark.alone
def test_a_node_that_loses_power(sweep, calm, site, daemons):
    made = sweep("node_lost", *EVENT, SLOW)
    made.launch()
    made.wait_for_step(8)
    place = attempts_of(made.run())[0]
    node = place["node"]
    daemons.stop(f"slurmd.{node}", number=signal.SIGKILL)
    steps = step_daemons(site, node)
    # The step daemons first: one that outlives its processes still reports that they failed.
    for pid in [*steps, *(child for step in steps for child in processes_under(step))]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: made.run().status().attempts == 2)
    daemons.start_node(node)
    made.finish()
    assert made.losses() == calm and made.run().status().failures == {"node_failure": 1}
    assert attempts_of(made.run())[1]["node"] != node and len(made.batches()) == 1


@pytest.mark.alone
def test_a_node_that_is_set_down_and_returns(sweep, calm):
    made = sweep("node_down", *EVENT, SLOW)
    made.launch()
    made.wait_for_step(8)
    node = attempts_of(made.run())[0]["node"]
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    wait_for(lambda: not made.run().is_held())
    wait_for(lambda: in_use(node))
    made.finish()
    assert made.losses() == calm
    wait_for(lambda: in_use(node))  # it may have refused the job meanwhile, which drains it


def in_use(node: str) -> bool:
    """Return True if a node takes jobs; one that is drained is told to."""
    state = slurm("sinfo", "-h", "-n", node, "-p", "batch", "-o", "%T")
    if "drain" in state:
        slurm("scontrol", "update", f"nodename={node}", "state=resume")
    return not any(word in state for word in ("drain", "down"))


def processes_under(pid: int) -> list[int]:
    """Return the descendants of a process; one that ends meanwhile has none."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [each for child in children for each in [*processes_under(child), child]]


@pytest.mark.longest
def test_the_time_limit(sweep, calm):
    # A minute of time limit, of which SLURM may take another off for the signal, for a run of 72 s.
    own = ["sweep.seeds=[0]", fault("slow=1.2"), "cluster.resources.time_min=1", "cluster.signal_s=5"]
    made = sweep("limited", *EVENT, *own)
    made.launch()
    made.wait_until_idle()
    made.finish()
    (run,) = made.runs()
    assert made.losses()[run.run_id] == calm[run.run_id]
    assert run.status().failures["timeout"] >= 1 and len(made.batches()) == 1


@pytest.mark.parametrize("whole", [True, False], ids=["the job's step", "the run alone"])
def test_a_kill(sweep, calm, whole):
    made = sweep("killed", *EVENT, SLOW)
    made.launch()
    made.wait_for_step(8)
    task = attempts_of(made.run())[0]["pid"]
    (child,) = Path(f"/proc/{task}/task/{task}/children").read_text().split()
    for pid in [task, int(child)] if whole else [int(child)]:
        os.kill(int(pid), signal.SIGKILL)
    made.finish()
    assert made.losses() == calm and trained_once(made.run(), 2)
    assert made.run().status().failures == {"lost": 1}
    assert len(made.batches()) == (2 if whole else 1)


def test_a_cancelled_element_is_submitted_again_alone(sweep, calm):
    made = sweep("cancelled", *EVENT, SLOW)
    made.launch()
    made.wait_for_step(8)
    slurm("scancel", made.element())
    wait_for(lambda: "cancelled" in made.run().status().message or not made.run().is_held())
    made.finish()
    assert (
        made.losses() == calm and [len(read_array(path.parent).runs) for path in made.batches()].count(1) == 1
    )
    assert [run.status().attempts for run in made.runs()] == [2, 1]


@pytest.mark.alone
def test_the_controller_away_while_launching_and_while_looking(sweep, calm, daemons):
    made = sweep("outage", *EVENT, fault("slow=0.5"))  # lasts while squeue waits for an answer
    daemons.stop("slurmctld")
    launching = made.launch_process()
    time.sleep(20)
    daemons.start_controller()
    assert launching.wait(120) == 0
    made.wait_for_step(8)
    daemons.stop("slurmctld")
    state = status(made.folder)
    assert "running" in set(state.frame["status"]) and "scheduler was not asked" in state.notes[0]
    assert made.launch_process("cluster.patience_s=1").wait(60) == 2  # says that SLURM does not answer
    looking = made.launch_process()
    time.sleep(20)
    daemons.start_controller()
    assert looking.wait(120) == 0
    made.finish()
    assert made.losses() == calm and len(made.batches()) == 1
    assert [run.status().attempts for run in made.runs()] == [1, 1]


def test_shapes_are_timed_in_jobs_of_this_cluster(sweep):
    made = sweep("timed", *EVENT)
    loopscale.main(["plan", *made.overrides, "calibrate=true"])
    frame = loopscale.plan(made.overrides)
    assert frame["price"].str.startswith("calibrated").all() and (frame["hours"] > 0).all()
    assert not made.folder.exists()
    for elsewhere in ("cluster.resources.cpus_per_task=2", "cluster.name=another", "cluster=local"):
        assert not loopscale.plan([*made.overrides, elsewhere])["price"].str.contains("calibrated").any()


def test_two_launches_at_once_submit_every_cell_once(sweep, calm):
    made = sweep("twice", *EVENT)
    both = [made.launch_process(), made.launch_process()]
    assert [process.wait(120) for process in both] == [0, 0]
    made.finish()
    assert made.losses() == calm and len(made.batches()) == 1
    assert [run.status().attempts for run in made.runs()] == [1, 1]


def test_a_launch_killed_right_after_sbatch_is_completed_by_the_next(sweep, calm, tmp_path):
    made = sweep("half", *EVENT)
    script = tmp_path / "bin" / "sbatch"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" > /dev/null\nkill -9 $PPID\n')
    script.chmod(0o755)
    dying = made.launch_process(PATH=f"{script.parent}:{os.environ['PATH']}")
    assert dying.wait(120) == -signal.SIGKILL
    made.launch()
    made.finish()
    assert made.losses() == calm and len(made.batches()) == 1
    assert [run.status().attempts for run in made.runs()] == [1, 1]


def test_a_run_started_twice_is_trained_once(sweep, calm):
    made = sweep("doubled", *EVENT, SLOW)
    made.launch()
    made.wait_for_step(8)
    batch = made.batches()[0].parent
    index = [run_id for (run_id,) in read_array(batch).elements].index(made.run().run_id)
    second = [sys.executable, "-m", "sweeps.workers.array_task", str(batch), str(index)]
    assert subprocess.run(second, cwd=ROOT).returncode == 0
    made.finish()
    assert made.losses() == calm and trained_once(made.run(), 1)


def test_out_of_memory_halves_the_micro_batch(sweep, calm):
    made = sweep("memory", *EVENT, fault("memory=1"))
    made.launch()
    made.finish()
    for run in made.runs():
        assert run.status().failures == {"oom": 2} and run.config().training.micro_batch == 1
        assert run.record()["micro_batch_changed"] == 1
        assert made.losses()[run.run_id] == pytest.approx(calm[run.run_id], abs=1e-5)
    runs, _ = loopscale.collect([f"root={made.root}", "sweep=memory"])
    assert list(runs["micro_batch_changed"]) == [1, 1]


def test_a_full_disk(sweep, calm, tmp_path):
    disk = tmp_path / "runs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
    try:
        made = sweep("full", *EVENT, SLOW, "sweep.seeds=[0]")
        made.launch()
        made.wait_for_step(8)
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as handle:
            while True:
                handle.write(bytes(65536))
        made.wait_until_idle()
        assert made.run().status().state in ("failed", "running")
        filler.unlink()
        made.finish()
        (run,) = made.runs()
        assert made.losses()[run.run_id] == calm[run.run_id] and run.status().failures == {"lost": 1}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.filterwarnings("ignore:submitted before on another cluster")
def test_a_sweep_that_moves_to_a_site_without_requeue_and_accounting(
    sweep, calm, tmp_path, site, strict_site
):
    made = sweep("moved", *EVENT, SLOW)
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setenv("SLURM_CONF", str(site.conf))
        made.launch()
        made.wait_for_step(8)
        assert loopscale.cancel([f"root={made.root}", "sweep=moved"])
        made.wait_until_idle()
    new = tmp_path / "elsewhere"
    made.root.rename(new)
    made.root, made.folder = new, new / "moved"
    made.overrides[0] = f"root={new}"
    made.launch()
    made.wait_for_step(20)
    slurm("scancel", "--signal=USR2", made.element())
    made.wait_until_idle()
    assert "launch continues it" in made.run().status().message
    made.launch()
    wait_for(
        lambda: made.run().status().attempts == 3, what=lambda: f"for {made.run().status()!r} {made.queue()}"
    )
    os.kill(attempts_of(made.run())[-1]["pid"], signal.SIGKILL)  # nobody can say afterwards what it died of
    made.finish()
    assert made.losses() == calm
    assert {place["cluster"] for place in attempts_of(made.run())} == {
        site.name,
        strict_site.name,
    }
