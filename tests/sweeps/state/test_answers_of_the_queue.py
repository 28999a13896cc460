"""What status makes of the scheduler's answer: gone, not asked, ended before it began, suspended, silent."""

from __future__ import annotations

import dataclasses
import os
import time

import pytest

import loopscale
from harness.run.folder import RunFolder
from harness.storage.files import write_json
from sweeps.backends.base import JobState
from sweeps.backends.job_array import Submitted, array_folder, read_arrays, write_submitted
from sweeps.backends.slurm.cluster import Slurm
from sweeps.cli import progress
from sweeps.config.cluster import ClusterConfig
from sweeps.launch.launch import write_ledger
from sweeps.state.ledger import read_ledger
from sweeps.state.status import status

CONFIG = "echo 'ClusterName = somewhere'; echo 'MaxArraySize = 50'; echo 'AccountingStorageType = {}'"


@pytest.fixture
def sweep(queued):
    """The folder of two runs in one array, job 5, of which both runs have been in the queue."""
    folder, _ = queued()
    for run in read_ledger(folder).runs(folder):
        run.set_status(dataclasses.replace(run.status(), state="submitted"))
    return folder


def shown(folder):
    return [row["status"] for row in status(folder).rows]


def rows_of(folder, *answers):
    (array,) = read_arrays(folder)
    lines = [f"{array.name}|{index}|{answer}|5" for index, answer in enumerate(answers)]
    return "; ".join(f"echo '{line}'" for line in lines)


def test_a_job_that_the_queue_no_longer_lists_is_gone(sweep, commands):
    assert shown(sweep) == ["planned", "planned"]
    text = status(sweep).summary(["sweep=queued"])
    following = text.splitlines()[-1]
    assert following.startswith("next: loopscale launch ") and " sweep.name=queued " in following
    progress.watch_until_idle(sweep)  # ends
    commands("squeue", rows_of(sweep, "PENDING|Priority||1:00", "RUNNING|None|n1|1:00"))
    assert shown(sweep) == ["submitted", "submitted"]


def test_it_is_not_gone_while_nobody_has_answered(sweep, commands):
    commands("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert shown(sweep) == ["submitted", "submitted"]
    assert "scheduler was not asked" in status(sweep).notes[0]
    commands("squeue", "true")
    (array,) = read_arrays(sweep)
    (array_folder(sweep, array) / "job.json").unlink()  # a launch is submitting it now
    assert shown(sweep) == ["submitted", "submitted"]


def test_another_clusters_queue_says_nothing_about_it(sweep, commands):
    (array,) = read_arrays(sweep)
    write_submitted(sweep, array, Submitted(cluster="elsewhere", job_id="5"))
    assert shown(sweep) == ["submitted", "submitted"]
    write_submitted(sweep, array, Submitted(cluster="elsewhere", job_id=""))  # it never arrived there
    assert shown(sweep) == ["planned", "planned"]


def test_without_accounting_for_a_while_the_answer_of_the_queue_stands(sweep, commands):
    commands("scontrol", CONFIG.format("accounting_storage/slurmdbd"))
    commands("squeue", rows_of(sweep, "RUNNING|None|n1|1:00"))
    commands("sacct", "echo 'sacct: error: slurmdbd: Connection refused' >&2; exit 1")
    assert shown(sweep) == ["submitted", "submitted"]
    assert "Connection refused" in status(sweep).notes[0]


def test_what_accounting_alone_calls_running_is_no_job_any_more(sweep, commands):
    """SLURM's runaway jobs: the controller lost them, and their end never reached the database."""
    commands("scontrol", CONFIG.format("accounting_storage/slurmdbd"))
    (array,) = read_arrays(sweep)
    commands("sacct", f"echo '5_0|{array.name}|RUNNING|n1'; echo '5_1|{array.name}|COMPLETED|n1'")
    asked = commands("squeue", "true")
    before = len(asked())
    assert shown(sweep) == ["planned", "planned"] and len(asked()) == before + 2
    assert Slurm(ClusterConfig(kind="slurm")).states([array])[array.name, 0].state is JobState.FORGOTTEN
    # It came into the queue between the two questions.
    row = rows_of(sweep, "RUNNING|None|n1|1:00").partition(";")[0]
    commands("squeue", f"[ -e {sweep}/asked ] && {row}; touch {sweep}/asked")
    assert shown(sweep)[0] == "submitted"


def print_in_job(folder, index, text):
    (array,) = read_arrays(folder)
    (array_folder(folder, array) / f"5_{index}_0_log.out").write_text(text)


def test_a_job_that_died_before_python_is_named_with_node_and_log(sweep, commands):
    commands("squeue", rows_of(sweep, "FAILED|NonZeroExitCode|n7|0:00", "PENDING|Priority||1:00"))
    log = "loopscale: started on n7\n/var/spool/job: line 30: module: command not found\n"
    print_in_job(sweep, 0, log)
    first, second = status(sweep).rows
    assert first["status"] == "planned" and first["node"] == "n7"
    assert first["message"] == (
        "its job ended before it began on n7: SLURM reports FAILED: "
        "/var/spool/job: line 30: module: command not found"
    )
    assert second["message"] == "waits: Priority"
    commands("squeue", "true")  # forgotten: what the job printed is still there
    first, second = status(sweep).rows
    assert first["node"] == "n7" and "no longer listed: /var/spool/job" in first["message"]
    assert second["status"] == "planned" and second["message"] == ""


def test_a_run_that_its_job_has_reached_is_not_said_to_have_never_begun(sweep, commands):
    run = read_ledger(sweep).runs(sweep)[0]
    commands("squeue", rows_of(sweep, "FAILED|NonZeroExitCode|n7|0:00"))
    (run.path / "logs").mkdir()
    (run.path / "logs" / "attempts.jsonl").write_text('{"job": "5_0", "node": "n7", "attempt": 1}\n')
    assert "before it began" in status(sweep).rows[0]["message"], "its process died while it imported"
    run.set_status(dataclasses.replace(run.status(), attempts=1))
    assert "before it began" not in status(sweep).rows[0]["message"]


def held(run: RunFolder, **changes: object):
    run.set_status(dataclasses.replace(run.status(), state="running", attempts=1, **changes))
    return run.lease()


def test_a_suspended_job_is_shown_as_such(sweep, commands):
    commands("squeue", rows_of(sweep, "SUSPENDED|None|n1|1:00"))
    with held(read_ledger(sweep).runs(sweep)[0]):
        assert shown(sweep) == ["suspended", "planned"]
        text = status(sweep).summary(["sweep=queued"])
        assert text.endswith("next: loopscale status sweep=queued watch=true")


def test_a_process_that_is_there_and_measures_nothing_is_shown_as_stalled(tiny_study, tmp_path):
    folder = tmp_path / "runs" / write_ledger(tiny_study()).name
    run = read_ledger(folder).runs(folder)[0]

    def silent(seconds: float, step_s: float):
        """Return the run's row, with a last line and a start so long ago, at a step in so many seconds."""
        rate = run.record()["batch_tokens"] / step_s
        run.metrics.write_text(f'{{"step": 3, "tokens_per_s": {rate}}}\n')
        os.utime(run.metrics, (time.time() - seconds,) * 2)
        write_json(run.path / "status.json", vars(run.status()) | {"updated_s": time.time() - seconds})
        return next(row for row in status(folder).rows if row["run_id"] == run.run_id)

    with held(run):
        assert silent(100, 10)["status"] == "running"
        row = silent(2000, 10)
        assert row["status"] == "stalled" and row["message"] == "no step for 33 min"
        assert silent(2000, 1000)["status"] == "running", "its steps take 17 minutes each"
        silent(2000, 10)
        run.set_status(run.status())
        assert status(folder).rows[0]["status"] == "running", "it was resumed a moment ago"


def test_a_pool_without_workers_has_stopped(tiny_study, tmp_path):
    folder = tmp_path / "runs" / write_ledger(tiny_study()).name
    for run in read_ledger(folder).runs(folder):
        run.set_status(dataclasses.replace(run.status(), state="submitted", message="stopped at step 3"))
    assert set(shown(folder)) == {"planned"}
    at = ["sweep=tiny", f"root={tmp_path / 'runs'}"]
    assert "\nnext: loopscale launch " in status(folder).summary(at) and at[1] in status(folder).summary(at)


def test_a_sweep_that_has_ended_is_not_to_be_watched(finished, tmp_path):
    text = dataclasses.replace(status(finished), worked_on=True).summary(["sweep=tiny"])
    assert text.endswith("next: loopscale collect sweep=tiny")


def test_a_lost_ledger_is_written_anew_by_launch(queued, commands):
    folder, overrides = queued()
    before = read_ledger(folder)
    (folder / "sweep.json").unlink()
    with pytest.raises(ValueError, match=r"sweep\.json is lost: loopscale launch sweep=queued"):
        status(folder)
    commands("squeue", rows_of(folder, *["PENDING|Priority||1:00"] * 2))
    loopscale.launch([*overrides, "cluster=slurm"])
    assert set(read_ledger(folder).run_ids) == set(before.run_ids) and len(read_arrays(folder)) == 1
