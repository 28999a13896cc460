"""The real launcher on a scripted cluster: what fails comes back within its limits, nothing goes twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from model.config_validation import ConfigError
from sweeps.backends.base import SchedulerError
from sweeps.backends.job_array import read_arrays
from sweeps.config.cluster import FakeConfig, RetryConfig, RetryRule
from sweeps.launch.arrays import share_cap
from sweeps.launch.rehearsal import rehearse_with
from sweeps.launch.submit import submit_missing
from sweeps.state.ledger import is_open, read_ledger
from tests.sweeps.launch.conftest import run_dry


def test_a_rehearsal_with_failures_ends_complete(study):
    folder, ledger, _, _ = rehearse_with(study)
    states = [run.status() for run in ledger.runs(folder)]
    assert len(states) == 200 and {status.state for status in states} == {"done"}
    attempts = sum(status.attempts for status in states)
    failures: Counter[str] = Counter()
    for status in states:
        failures.update(status.failures)
        assert status.attempts == 1 + sum(status.failures.values())
    # One attempt in five fails: 250 attempts give 200 good ones, with a standard deviation of 8.
    assert 225 < attempts < 275 and attempts == 200 + failures.total()
    assert set(failures) >= {"preempted", "node_failure", "oom", "timeout"}
    halved = [run for run in ledger.runs(folder) if "oom" in run.status().failures]
    for run in halved:
        assert run.record()["micro_batch_changed"] == 1
        assert run.config().training.micro_batch == 32 // 2 ** run.status().failures["oom"]


def test_a_rehearsal_stays_apart_from_the_sweep(study, tmp_path):
    folder = rehearse_with(study)[0]
    assert folder.name == "rehearsal-isoflop_140m"
    assert [path.name for path in Path(tmp_path).iterdir()] == [folder.name]
    devices = {run.record()["device"] for run in read_ledger(folder).runs(folder)}
    assert devices == {"fake"}
    with pytest.raises(ConfigError, match="holds an earlier rehearsal"):
        rehearse_with(study)


def test_launching_again_submits_nothing_that_is_queued(entered):
    folder, ledger, cluster = entered
    assert submit_missing(folder, ledger, cluster).runs == 200
    assert submit_missing(folder, ledger, cluster).runs == 0
    for _ in range(100):
        cluster.step()
    assert submit_missing(folder, ledger, cluster).runs == 0
    run_dry(cluster)
    assert submit_missing(folder, ledger, cluster).runs == 0
    assert {run.status().attempts for run in ledger.runs(folder)} == {1} and cluster.submissions == 1


def test_runs_that_end_while_the_scheduler_is_asked_are_not_run_again(entered, monkeypatch):
    folder, ledger, cluster = entered
    submit_missing(folder, ledger, cluster)
    states = cluster.states

    def slow_to_answer(batches):
        run_dry(cluster)
        return states(batches)

    monkeypatch.setattr(cluster, "states", slow_to_answer)
    assert submit_missing(folder, ledger, cluster).runs == 0
    assert {str(run.status()) for run in ledger.runs(folder)} == {"done"} and cluster.submissions == 1


def test_arrays_are_split_below_the_limit_and_share_the_cap(entered):
    folder, ledger, cluster = entered
    cluster.max_array = 64
    submit_missing(folder, ledger, cluster)
    batches = read_arrays(folder)
    assert sorted(len(batch.elements) for batch in batches) == [8, 64, 64, 64]
    assert {batch.array_parallelism for batch in batches} == {256}, "all 200 jobs may run at once"
    caps = {len(batch.elements): batch.array_parallelism for batch in share_cap(batches, 100)}
    assert caps == {64: 32, 8: 4}, "half of each array"
    assert sorted(run for batch in batches for run in batch.runs) == sorted(ledger.run_ids)


def test_a_launch_that_dies_between_two_arrays_is_completed_by_the_next(entered, monkeypatch):
    folder, ledger, cluster = entered
    cluster.max_array = 100
    submit = cluster.submit

    def dies(*arguments):
        submit(*arguments)
        raise KeyboardInterrupt  # the cluster has the batch, nobody wrote its id down

    monkeypatch.setattr(cluster, "submit", dies)
    with pytest.raises(KeyboardInterrupt):
        submit_missing(folder, ledger, cluster)
    monkeypatch.undo()
    assert submit_missing(folder, ledger, cluster).runs == 100
    run_dry(cluster)
    assert cluster.submissions == 2
    assert {run.status().attempts for run in ledger.runs(folder)} == {1}


def test_a_batch_that_never_reached_the_cluster_is_submitted_again(entered, monkeypatch):
    folder, ledger, cluster = entered

    def away(*arguments):
        raise SchedulerError("SLURM does not answer for 120 s")

    monkeypatch.setattr(cluster, "submit", away)
    with pytest.raises(SchedulerError):
        submit_missing(folder, ledger, cluster)
    monkeypatch.undo()
    assert submit_missing(folder, ledger, cluster).runs == 200
    run_dry(cluster)
    assert {run.status().attempts for run in ledger.runs(folder)} == {1}


def test_a_cancelled_element_comes_back_and_counts_as_no_failure(entered):
    folder, ledger, cluster = entered
    submit_missing(folder, ledger, cluster)
    cluster.cancel([f"1_{index}" for index in range(10)])
    run_dry(cluster)
    assert submit_missing(folder, ledger, cluster).runs == 10
    run_dry(cluster)
    assert all(run.status().state == "done" and not run.status().failures for run in ledger.runs(folder))


@pytest.mark.parametrize("name", ["code_error", "bad_config", "diverged"])
def test_what_would_fail_again_is_not_started_again(entered, name):
    folder, ledger, cluster = entered
    cluster.script = FakeConfig(failures={name: 0.999999})
    submit_missing(folder, ledger, cluster)
    run_dry(cluster)
    assert submit_missing(folder, ledger, cluster).runs == 0
    assert {str(run.status()) for run in ledger.runs(folder)} == {f"failed:{name}"}


def test_a_class_is_given_up_after_its_retries(entered):
    folder, ledger, cluster = entered
    cluster.script = FakeConfig(failures={"lost": 0.999999})
    launches = 0
    while submit_missing(folder, ledger, cluster).runs:
        run_dry(cluster)
        launches += 1
    assert launches == 3, "retry.lost.retries=2"
    assert {run.status().attempts for run in ledger.runs(folder)} == {3}


def test_a_lost_node_is_left_out_of_the_next_submission(entered):
    folder, ledger, cluster = entered
    cluster.script = FakeConfig(failures={"node_failure": 0.5})
    submit_missing(folder, ledger, cluster)
    run_dry(cluster)
    submit_missing(folder, ledger, cluster)
    first, second = read_arrays(folder)
    assert first.exclude == [] and second.exclude
    lost = {cluster.elements[first.name, i].node for i in range(200) if first.elements[i][0] in second.runs}
    assert set(second.exclude) == lost


def test_every_failure_class_has_a_rule_and_unknown_ones_are_left_alone():
    retry = RetryConfig()
    names = ("oom", "timeout", "preempted", "node_failure", "diverged", "bad_config", "code_error", "lost")
    assert all(isinstance(getattr(retry, name), RetryRule) for name in names)
    assert retry.rule("something_new") == RetryRule(retries=0)


def test_attempts_within_the_limit_keep_a_run_open():
    from harness.run.folder import Status

    status = Status(state="running")
    retry = RetryConfig(lost=RetryRule(retries=1))
    once = status.failed("lost", "gone")
    assert is_open(once, retry) and not is_open(once.failed("lost", "gone"), retry)
    assert is_open(once.failed("oom", "no memory"), retry), "each class has a count of its own"
