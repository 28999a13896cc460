"""What an element of an array does when the process of its run is killed."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal

import pytest

from harness.run.folder import POSITIVE, RunFolder, Status
from sweeps.backends.base import CurrentJob
from sweeps.backends.job_array import JobArray
from sweeps.config.cluster import Resources, RetryConfig, RetryRule
from sweeps.workers import array_task, run_process


@pytest.fixture
def work(monkeypatch, tmp_path):
    """Work through a run whose process is killed by a signal; return its folder and the exit code if any."""

    def killed_by(number, *, tasks):
        folder = RunFolder(tmp_path / "s" / "a")
        folder.path.mkdir(parents=True)
        folder.set_record(dict.fromkeys(POSITIVE, 1))
        folder.set_status(Status(state="submitted"))

        def start_child(*_arguments, **_options):
            folder.set_status(Status(state="running", attempts=1))
            child = multiprocessing.get_context("fork").Process(target=_die, args=(number,))
            child.start()
            return child

        monkeypatch.setattr(run_process, "start_child", start_child)
        array = JobArray(
            token="abc", sweep="s", elements=[[folder.run_id]], resources=Resources(tasks_per_node=tasks),
            snapshot="code/x", array_parallelism=1,
        )  # fmt: skip
        never = RetryConfig(lost=RetryRule(retries=0))
        try:
            array_task.work_through([folder], tmp_path, array, never, lambda: False, CurrentJob())
        except SystemExit as ended:
            return folder, ended.code
        return folder, None

    return killed_by


def _die(number):
    faulthandler.disable()  # pytest's would print every stack
    os.kill(os.getpid(), number)


def test_a_rank_whose_process_was_killed_exits_so_that_the_others_are_ended(work):
    folder, code = work(signal.SIGKILL, tasks=2)
    assert code == 1 and str(folder.status()) == "failed:lost"


def test_a_rank_that_the_watchdog_of_nccl_aborts_has_lost_another_one(work):
    folder, code = work(signal.SIGABRT, tasks=2)
    assert code == 1 and str(folder.status()) == "failed:node_failure"


def test_a_run_alone_leaves_its_job_to_the_runs_after_it(work):
    folder, code = work(signal.SIGABRT, tasks=1)
    assert code is None and str(folder.status()) == "failed:lost"
