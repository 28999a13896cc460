"""What a site limits: elements of an array, jobs in the queue; and nodes that end jobs before they begin."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from model.config_validation import ConfigError
from sweeps.backends.base import JobOutput, JobState, QueueFull, SchedulerError
from sweeps.backends.job_array import JobArray, Submitted, read_arrays, write_array, write_submitted
from sweeps.backends.slurm.cluster import Slurm
from sweeps.backends.slurm.limits import array_limit, usable_nodes
from sweeps.config.cluster import ClusterConfig, Resources
from sweeps.launch.bad_nodes import bad_nodes, count_ends, forget
from sweeps.launch.code_snapshot import take_snapshot
from sweeps.launch.send import FOLLOW_UP
from sweeps.launch.submit import submit_missing
from tests.sweeps.launch.conftest import run_dry


def test_what_fits_the_queue_is_submitted_and_the_rest_is_named(entered, monkeypatch):
    folder, ledger, cluster = entered
    monkeypatch.setattr(cluster, "room", lambda: 30)
    first = submit_missing(folder, ledger, cluster)
    assert first.runs == 30 and "170 runs are not submitted yet" in first.notes[0]
    monkeypatch.setattr(cluster, "room", lambda: 0)
    assert submit_missing(folder, ledger, cluster).jobs == []
    monkeypatch.setattr(cluster, "room", lambda: None)
    rest = submit_missing(folder, ledger, cluster)
    assert rest.runs == 170 and rest.notes == []
    run_dry(cluster)
    assert {run.status().attempts for run in ledger.runs(folder)} == {1}


def test_a_limit_that_only_the_refusal_tells_is_an_answer(entered, monkeypatch):
    folder, ledger, cluster = entered
    submit, asked = cluster.submit, []

    def limited(sweep, array, version):
        asked.append(len(array.elements))
        if asked[-1] + sum(element.is_live for element in cluster.elements.values()) > 60:
            raise QueueFull("SLURM takes no more jobs now: AssocMaxSubmitJobLimit")
        return submit(sweep, array, version)

    monkeypatch.setattr(cluster, "submit", limited)
    submission = submit_missing(folder, ledger, cluster)
    assert asked == [200, 100, 50] and submission.runs == 50
    assert "150 runs are not submitted yet" in submission.notes[0]
    assert "AssocMaxSubmitJobLimit" in submission.notes[0] and len(read_arrays(folder)) == 1
    while submission.runs:
        run_dry(cluster)
        submission = submit_missing(folder, ledger, cluster)
    assert {run.status().attempts for run in ledger.runs(folder)} == {1}


def test_a_job_follows_that_submits_the_rest(entered, monkeypatch):
    folder, ledger, cluster = entered
    ledger = dataclasses.replace(ledger, cluster=dataclasses.replace(ledger.cluster, keep_submitting=True))
    monkeypatch.setattr(cluster, "room", lambda: 30)
    first = submit_missing(folder, ledger, cluster)
    assert first.runs == 29 and "171 runs are not submitted yet, job fake:2 submits them" in first.notes[0]
    job = read_arrays(folder)[-1]
    assert job.module == "sweeps.launch.follow_up" and job.runs == []
    assert job.after == read_arrays(folder)[0].token
    monkeypatch.setattr(cluster, "room", lambda: 0)
    again = submit_missing(folder, ledger, cluster)
    assert "job fake:2 submits them" in again.notes[0] and len(read_arrays(folder)) == 2, "there is one"
    run_dry(cluster)
    monkeypatch.setattr(cluster, "room", lambda: None)
    assert submit_missing(folder, ledger, cluster).notes == [], "and none for nothing"


def test_the_job_that_follows_waits_for_the_end_of_the_others(tmp_path):
    first = JobArray(
        token="one", sweep="s", elements=[["a"]], resources=Resources(), snapshot="x", array_parallelism=1
    )
    write_array(tmp_path / "s", first)
    write_submitted(tmp_path / "s", first, Submitted(cluster="c", job_id="12"))
    follows = dataclasses.replace(first, token="two", elements=[[]], after="one", module=FOLLOW_UP)
    text = Slurm(ClusterConfig(kind="slurm")).job_file(tmp_path / "s", follows, "1")
    assert "#SBATCH --dependency=afterany:12\n" in text
    assert f"-m sweeps.launch.follow_up {tmp_path}/s/jobs/two" in text
    importlib.import_module(FOLLOW_UP)


def test_a_job_that_launches_keeps_the_code_that_it_runs(tmp_path):
    sweep = tmp_path / "sweep"
    taken = take_snapshot(sweep)
    assert take_snapshot(sweep, (sweep / taken.path).resolve()) == taken


LIMIT = (
    "sbatch: error: AssocMaxSubmitJobLimit\n"
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
    "(job submit limit, user's size and/or time limits)"
)


@pytest.mark.parametrize(("said", "error"), [(LIMIT, QueueFull), ("sbatch: error: invalid qos", ConfigError)])
def test_the_answer_to_a_submission_is_read(said, error):
    def refuse():
        raise SchedulerError(said)

    with pytest.raises(error) as refused:
        Slurm(ClusterConfig(kind="slurm")).patiently(refuse)
    assert type(refused.value) is error


def test_the_controller_tells_how_long_an_array_may_be():
    assert array_limit({"MaxArraySize": "1001"}) == 1001
    limited = {"MaxArraySize": "1001", "SchedulerParameters": "bf_interval=5,max_array_tasks=300,defer"}
    assert array_limit(limited) == 300


def test_the_profile_may_say_less(commands):
    commands("scontrol", "echo 'MaxArraySize = 50'; echo 'AccountingStorageType = accounting_storage/none'")
    assert Slurm(ClusterConfig(kind="slurm")).max_array == 50
    assert Slurm(ClusterConfig(kind="slurm", max_array_tasks=7)).max_array == 7
    assert Slurm(ClusterConfig(kind="slurm")).room() is None
    commands("squeue", "printf 'mine|normal\\nmine|normal\\nmine|normal\\n'")
    assert Slurm(ClusterConfig(kind="slurm", max_queued=10)).room() == 7
    assert Slurm(ClusterConfig(kind="slurm", max_queued=2)).room() == 0


@pytest.mark.parametrize(
    ("associations", "account", "qos", "room"),
    [
        ("mine|normal|normal,long|40\nother|normal|normal|5", "mine", None, 38),  # of that account alone
        (
            "mine|normal|normal,long|40\nother|normal|normal|5",
            None,
            None,
            38,
        ),  # of the user's default account
        ("mine|long|normal,long|", "mine", None, 19),  # by the QOS that is the account's default
        ("other|long|long|\nmine||long,normal|", None, None, None),  # "normal" is what SLURM takes by itself
        ("mine||long|", None, None, 19),
        ("mine|normal|normal,long|", "mine", "long", 19),
        ("mine|normal|normal|", "mine", None, None),
    ],
)
def test_limits_of_associations_and_qos_are_found(commands, associations, account, qos, room):
    commands("scontrol", "echo 'ClusterName = c'; echo 'AccountingStorageType = accounting_storage/slurmdbd'")
    levels = "normal|\nlong|20"
    users = "*' user '*) echo mine;;"
    commands("sacctmgr", f"case $* in {users} *assoc*) printf '{associations}';; *) printf '{levels}';; esac")
    commands("squeue", "printf 'mine|normal\\nmine|long\\nother|normal\\n'")
    resources = Resources(account=account, qos=qos)
    assert Slurm(ClusterConfig(kind="slurm", resources=resources)).room() == room


NODES = """batch* n1 idle
batch* n2 mixed
batch* n3 down*
batch* n4 drained
single n5 allocated
"""


def test_nodes_are_left_out_only_where_enough_others_take_jobs(commands):
    assert usable_nodes(NODES, Resources()) == {"n1", "n2"}
    assert usable_nodes(NODES, Resources(partition="single")) == {"n5"}
    commands("sinfo", f"cat <<'E'\n{NODES}E")
    slurm = Slurm(ClusterConfig(kind="slurm"))
    assert slurm.nodes_to_avoid(Resources(), {"n1"}) == {"n1"}
    assert slurm.nodes_to_avoid(Resources(nodes=2), {"n1"}) == set()
    assert slurm.nodes_to_avoid(Resources(partition="single"), {"n5"}) == set()


def test_a_node_that_ends_jobs_before_they_begin_is_left_out_and_named(entered, monkeypatch):
    folder, ledger, cluster = entered
    submit_missing(folder, ledger, cluster)
    (array,) = read_arrays(folder)
    while cluster.step():
        pass_over = [place for place, each in cluster.elements.items() if each.state is JobState.RUNNING]
        for place in pass_over:  # a job ends at once, and no process of it reaches a run
            failed = dataclasses.replace(cluster.elements[place], state=JobState.FAILED, node="hole")
            cluster.elements[place] = failed
        cluster._running.clear()
    monkeypatch.setattr(
        cluster, "job_output", lambda *_: JobOutput(lines=["module: command not found"], node="hole")
    )
    again = submit_missing(folder, ledger, cluster)
    status = ledger.runs(folder)[0].status()
    assert status.failures == {"not_started": 1} and "on hole" in status.message
    assert "module: command not found" in status.message
    assert again.notes[0] == (
        "hole has ended 200 jobs before they began: it is left out until loopscale retry"
    )
    assert read_arrays(folder)[-1].exclude == ["hole"] and len(array.elements) == 200
    monkeypatch.setattr(cluster, "nodes_to_avoid", lambda *_: set())  # the only node
    for place in list(cluster.elements):
        cluster.elements[place] = dataclasses.replace(cluster.elements[place], state=JobState.CANCELLED)
    last = submit_missing(folder, ledger, cluster)
    assert read_arrays(folder)[-1].exclude == []
    assert last.notes[0] == "hole: not left out, too few other nodes take these jobs"


def test_ends_are_counted_by_node_until_they_are_forgotten(tmp_path):
    count_ends(tmp_path, ["n1", "n1", "", "n2"])
    count_ends(tmp_path, ["n1"])
    assert bad_nodes(tmp_path, 3) == {"n1": 3} and bad_nodes(tmp_path, 1) == {"n1": 3, "n2": 1}
    forget(tmp_path)
    assert bad_nodes(tmp_path, 1) == {}
