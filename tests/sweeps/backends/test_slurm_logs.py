"""What SLURM 22.05 writes into the log of a job that it ends, recorded, and what follows for its runs."""

from __future__ import annotations

import dataclasses

import pytest

from harness.run.folder import RunFolder
from sweeps.backends.base import CurrentJob, JobElement, JobState
from sweeps.backends.slurm.cluster import Slurm
from sweeps.backends.slurm.states import parse_log
from sweeps.config.cluster import ClusterConfig, RetryConfig
from sweeps.launch.launch import write_ledger
from sweeps.launch.reconcile import classify_failure
from sweeps.state.ended_jobs import ended_as
from sweeps.state.ledger import read_ledger
from sweeps.workers.array_task import _record_restart

PREEMPTED = """loopscale: started on loop7
slurmstepd-loop7: error: *** JOB 8 ON loop7 CANCELLED AT 2026-11-30T15:10:21 DUE TO PREEMPTION ***
slurmstepd-loop7: error: *** STEP 8.0 ON loop7 CANCELLED AT 2026-11-30T15:10:21 DUE TO PREEMPTION ***
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
srun: error: loop7: task 0: Terminated
"""
MEMORY = """loopscale: started on loop8
slurmstepd-loop8: error: StepId=10.0 exceeded memory limit (194740224 > 104857600), being killed
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
slurmstepd-loop8: error: Exceeded job memory limit
slurmstepd-loop8: error: *** STEP 10.0 ON loop8 CANCELLED AT 2026-11-30T15:10:25 ***
srun: error: loop8: task 0: Killed
"""
REQUEUED = """loopscale: started on loop3
slurmstepd-loop3: error: *** JOB 3 ON loop3 CANCELLED AT 2026-11-30T15:09:51 DUE TO JOB REQUEUE ***
"""
CANCELLED = """loopscale: started on loop1
slurmstepd-loop1: error: *** JOB 1 ON loop1 CANCELLED AT 2026-11-30T15:09:43 ***
"""
AGAIN = "loopscale: started on loop2\n"


@pytest.mark.parametrize(
    ("text", "node", "cause"),
    [
        (PREEMPTED, "loop7", JobState.PREEMPTED),
        (MEMORY, "loop8", JobState.OUT_OF_MEMORY),
        (REQUEUED, "loop3", None),
        (CANCELLED, "loop1", JobState.CANCELLED),
        (PREEMPTED + AGAIN, "loop2", None),  # it speaks of the start before
        ("no line of ours", "", None),
        ("", "", None),
    ],
)
def test_a_log_names_node_and_cause_of_the_last_start(text, node, cause):
    output = parse_log(text)
    assert (output.node, output.cause) == (node, cause)


ACCOUNTING = "echo PREEMPTED; echo NODE_FAIL; echo RUNNING"


@pytest.mark.parametrize(
    ("log", "sacct", "failures"),
    [
        (PREEMPTED + AGAIN, "exit 1", {"preempted": 1}),
        (AGAIN + AGAIN, ACCOUNTING, {"node_failure": 1}),
        (AGAIN + AGAIN, "echo 'CANCELLED by 0'; echo PENDING", {"restarted": 1}),
        (AGAIN + AGAIN, "echo 'Slurm accounting storage is disabled' >&2; exit 1", {"restarted": 1}),
        ("", "exit 1", {"restarted": 1}),
    ],
)
def test_a_silent_restart_asks_why(commands, tiny_study, tmp_path, log, sacct, failures):
    commands("sacct", sacct)
    (tmp_path / "12_2_0_log.out").write_text(log)
    cause = Slurm(ClusterConfig(kind="slurm")).restart_cause(tmp_path, CurrentJob(job_id="12", index=2))
    folder = tmp_path / "runs" / write_ledger(tiny_study()).name
    run: RunFolder = read_ledger(folder).runs(folder)[0]
    run.set_status(dataclasses.replace(run.status(), state="running", attempts=1))
    _record_restart([run], RetryConfig(), cause)
    assert run.status().failures == failures and run.status().state == "submitted"


def test_a_stop_that_was_killed_before_it_was_counted_is_counted(tiny_study, tmp_path):
    folder = tmp_path / "runs" / write_ledger(tiny_study()).name
    run = read_ledger(folder).runs(folder)[0]
    stopped = dataclasses.replace(run.status(), state="submitted", failure_class="timeout", attempts=1)
    run.set_status(stopped)
    _record_restart([run], RetryConfig(), None)
    assert run.status().failures == {"timeout": 1} and run.status().failure_class == ""
    _record_restart([run], RetryConfig(), None)
    assert run.status().failures == {"timeout": 1}, "once"


def test_preemption_without_grace_time_never_gives_a_run_up(tiny_study, tmp_path):
    """As node failures, six of them did."""
    folder = tmp_path / "runs" / write_ledger(tiny_study()).name
    run = read_ledger(folder).runs(folder)[0]
    for cause, times in ((JobState.PREEMPTED, 40), (None, 40)):
        for _ in range(times):
            run.set_status(dataclasses.replace(run.status(), state="running"))
            _record_restart([run], RetryConfig(), cause)
    assert run.status().failures == {"preempted": 40, "restarted": 40}
    assert run.status().state == "submitted"


def test_a_job_killed_for_memory_is_out_of_memory_whatever_its_state(tiny_study, tmp_path):
    folder = tmp_path / "runs" / write_ledger(tiny_study()).name
    status = dataclasses.replace(read_ledger(folder).runs(folder)[0].status(), state="running")
    output = parse_log(MEMORY)
    for state in (JobState.FAILED, JobState.CANCELLED, None):
        element = JobElement(state=state, node="loop8") if state else None
        ended = ended_as(element, output)
        classified = classify_failure(status, ended, "SLURM", began=True, output=output)
        assert str(classified) == "failed:oom" and "on loop8" in classified.message
