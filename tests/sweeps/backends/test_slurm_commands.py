"""What is said to SLURM and how its answers are read; fakes stand on PATH, a real cluster in tests/slurm."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import loopscale
from model.config_validation import ConfigError
from sweeps.backends.base import CurrentJob, JobElement, JobState, SchedulerError
from sweeps.backends.job_array import JobArray, Submitted, read_arrays, write_array, write_submitted
from sweeps.backends.registry import current_job, open_backend
from sweeps.backends.slurm.cluster import Slurm
from sweeps.backends.slurm.states import indices, parse_accounting, parse_duration, parse_queue
from sweeps.config.cluster import ClusterConfig, Resources
from sweeps.launch.code_snapshot import take_snapshot
from sweeps.planning.cost import ESTIMATED, MEASURED, SIMILAR, Throughputs, known_throughputs, shape_of
from sweeps.state.ledger import read_ledger

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def batch(tmp_path):
    """A batch of two jobs in a sweep's folder."""
    made = JobArray(
        token="abc",
        sweep="s",
        elements=[["a"], ["b"]],
        resources=Resources(),
        snapshot="code/x",
        array_parallelism=9,
    )
    write_array(tmp_path, made)
    return made


def test_a_price_is_learnt_from_runs_of_the_same_cluster_alone(commands, batch, tmp_path):
    other = dataclasses.replace(batch, token="def", elements=[["b"], ["c"]])
    write_array(tmp_path, other)
    for one, cluster in ((batch, "somewhere"), (other, "elsewhere")):
        write_submitted(tmp_path, one, Submitted(cluster=cluster, job_id="1"))
    here, there, unnamed = (
        known_throughputs(ClusterConfig(kind="slurm", name=name), tmp_path, tmp_path)[1]
        for name in ("somewhere", "elsewhere", None)
    )
    assert here == unnamed == {"a": batch.resources, "b": None, "c": None}
    assert there == {"a": None, "b": batch.resources, "c": batch.resources}
    record = {"scale": "s", "kind": "looped", "mean_recurrence": 2.0, "batch_tokens": 8}
    prices = Throughputs(cluster=ClusterConfig(device_peak_flops_per_s=10.0, device_utilisation=0.5))
    prices.add_record(record | {"tokens_per_s": 3.0, "nominal_flops": 40, "tokens": 20}, batch.resources)
    for depth, resources, expected in (
        (2, Resources(), (6.0, MEASURED)),
        (4, Resources(), (6.0, SIMILAR)),
        (2, Resources(gpus_per_node=2), (10.0, ESTIMATED)),
    ):
        assert prices.flops_per_s(shape_of("s", "looped", depth, 8), resources) == expected


def test_a_lost_answer_is_not_sent_twice(commands, batch, tmp_path):
    sent = commands("sbatch", "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1")
    asked = commands("squeue", "echo 77; echo 77")
    assert Slurm(ClusterConfig(kind="slurm")).submit(tmp_path, batch, "1") == "77"
    assert len(sent()) == 1 and "--name=s-abc" in asked()[0]


OF_A_JOB = {
    "SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "100", "SBATCH_MEM": "1", "SUBMITIT_EXECUTOR": "slurm",
    "RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "5", "TORCHELASTIC_RUN_ID": "x",
}  # fmt: skip


def test_a_launch_from_within_a_job_hands_nothing_of_it_on(commands, batch, tmp_path, monkeypatch):
    """What memory that job has contradicts what the new one asks for, and its rank is no rank of theirs."""
    kept = {"SLURM_CONF": "/etc/slurm.conf", "HOME": str(tmp_path)}
    for name, value in (OF_A_JOB | kept).items():
        monkeypatch.setenv(name, value)
    commands("sbatch", f"env > {tmp_path / 'seen'}; echo 'Submitted batch job 5'")
    commands("squeue", "true")
    assert Slurm(ClusterConfig(kind="slurm")).submit(tmp_path, batch, "1") == "5"
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert not OF_A_JOB.keys() & seen.keys() and kept.items() <= seen.items()
    assert OF_A_JOB.items() <= os.environ.items(), "and this process is as it was"
    started = {}

    def start(*_command, env, **_options):
        started.update(env)
        return SimpleNamespace(pid=1)

    monkeypatch.setattr(subprocess, "Popen", start)
    open_backend(ClusterConfig(parallel_runs=1)).start_workers(tmp_path)
    assert not OF_A_JOB.keys() & started.keys() and kept.items() <= started.items()


def test_what_never_arrived_is_sent_again_without_a_word(commands, batch, tmp_path, capfd):
    once = tmp_path / "once"
    script = (
        f"[ -e {once} ] && echo 'Submitted batch job 5' && exit; touch {once}; echo 'timed out' >&2; exit 1"
    )
    sent = commands("sbatch", script)
    commands("squeue", "true")
    assert Slurm(ClusterConfig(kind="slurm")).submit(tmp_path, batch, "1") == "5"
    assert len(sent()) == 2 and capfd.readouterr().err == "", "the error was recovered from"


def test_a_refusal_is_final_and_one_line(commands, batch, tmp_path):
    sent = commands("sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    with pytest.raises(ConfigError, match="SLURM refuses: sbatch: error: invalid partition specified: nope"):
        Slurm(ClusterConfig(kind="slurm")).submit(tmp_path, batch, "1")
    assert len(sent()) == 1


def test_a_silent_controller_is_waited_for_only_so_long(commands, batch):
    commands("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SchedulerError, match="SLURM does not answer for 0 s"):
        Slurm(ClusterConfig(kind="slurm", patience_s=0)).states([batch])


def test_squeue_is_asked_once_and_read_by_name_and_index(commands, batch):
    asked = commands(
        "squeue", "echo 's-abc|0|RUNNING|None|n7|5:00|12'; echo 's-abc|1|PENDING|Priority||1:00|12'"
    )
    states = Slurm(ClusterConfig(kind="slurm")).states([batch])
    assert states["s-abc", 0] == JobElement(
        state=JobState.RUNNING,
        native_state="RUNNING",
        reason="None",
        node="n7",
        time_left_s=300.0,
        job_id="12",
    )
    assert states["s-abc", 1].is_live and len(asked()) == 1


def test_a_job_that_a_failing_node_could_not_start_is_not_waited_for():
    (stuck,) = parse_queue("s-abc|0|PENDING|launch failed requeued held||1:00|12").values()
    assert not stuck.is_live and stuck.is_stuck and stuck.failure_class == "node_failure"


def test_the_record_of_a_cancelled_array_is_no_element():
    """What squeue prints for minutes after the waiting elements of an array were cancelled."""
    text = "s-abc|N/A|CANCELLED|None||1:00|12\ns-abc|1|RUNNING|None|n7|5:00|12\n"
    assert list(parse_queue(text)) == [("s-abc", 1)]


@pytest.mark.parametrize(
    ("parse", "line"),
    [
        (parse_queue, "s-abc|1|RUNNING"),
        (parse_queue, "s-abc|first|RUNNING|None|n7|5:00|12"),
        (parse_accounting, "a new headline of this version"),
    ],
)
def test_a_line_that_is_not_understood_is_named_and_passed_over(parse, line):
    known = {
        parse_queue: "s-abc|2|RUNNING|None|n7|5:00|12",
        parse_accounting: "12_2|s-abc|COMPLETED|n7",
    }
    with pytest.warns(UserWarning, match=f"not understood and passed over: {re.escape(line)}"):
        elements = parse(f"{line}\n{known[parse]}\n")
    assert list(elements) == [("s-abc", 2)]


@pytest.mark.parametrize("native", ["POWER_UP_NODE", "EXPEDITING", "UPDATE_DB"])
def test_states_of_later_versions_of_slurm_are_those_of_a_live_job(native):
    """Their names are those of `slurm.h` of 24.05 and 25.05."""
    (element,) = parse_queue(f"s-abc|0|{native}|None|n7|5:00|12").values()
    assert element.is_live


def test_a_job_in_an_unknown_state_is_named_and_not_started_twice():
    with pytest.warns(UserWarning, match="unknown state 'TELEPORTING', taken for running: s-abc"):
        (element,) = parse_queue("s-abc|0|TELEPORTING|None|n7|5:00|12").values()
    assert element.is_live and element.shown_state == "TELEPORTING"


@pytest.mark.parametrize("native", ["FAILED", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"])
def test_a_job_that_the_queue_lists_as_failed_is_not_waited_for(native):
    (element,) = parse_queue(f"s-abc|0|{native}|NonZeroExitCode|n7|0:00|12").values()
    assert not element.is_live and element.failure_class == "lost"


def test_an_answer_in_another_encoding_is_read(commands, batch):
    commands("squeue", r"printf 's-abc|0|PENDING|gesperrt f\374r Pr\374fung||1:00|12\n'")
    (element,) = Slurm(ClusterConfig(kind="slurm")).states([batch]).values()
    assert element.state is JobState.QUEUED and element.reason == "gesperrt f\ufffdr Pr\ufffdfung"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("7", [7]),
        ("[0-3,8-12:2%4]", [0, 1, 2, 3, 8, 10, 12]),
        ("[5,9-10]", [5, 9, 10]),
        ("[1-2,...", [1, 2]),
        ("", []),
    ],
)
def test_ranges_of_waiting_elements_are_expanded(text, numbers):
    assert indices(text) == numbers


def test_accounting_names_elements_that_never_ran_in_one_line():
    text = (
        "12_[2-4%2]|s-abc|CANCELLED by 0|None assigned\n12_[5-9]|s-abc|PENDING|None assigned\n"
        "12_0|s-abc|FAILED|n7\n12_0.batch|batch|OUT_OF_MEMORY|n7\n"
        "12_1|s-abc|CANCELLED by 0|n8\n12_1.extern|extern|COMPLETED|n8\n"
    )
    states = {place: element.state for place, element in parse_accounting(text).items()}
    assert states == {
        ("s-abc", 0): JobState.OUT_OF_MEMORY,
        ("s-abc", 1): JobState.CANCELLED,
        **{("s-abc", index): JobState.CANCELLED for index in (2, 3, 4)},
    }


def test_the_time_left_is_read_as_squeue_prints_it():
    times = {"0:07": 7, "5:00": 300, "1:02:03": 3723, "2-01:00:00": 176400}
    assert {text: parse_duration(text) for text in times} == times
    assert parse_duration("UNLIMITED") is parse_duration("INVALID") is parse_duration("") is None


def test_a_step_out_of_memory_speaks_for_its_job():
    text = (
        "12_0|s-abc|FAILED|n1\n12_0.batch|batch|FAILED|n1\n12_0.0|python|OUT_OF_MEMORY|n1\n"
        "12_1|s-abc|CANCELLED by 7|n2\n12_2|s-abc|NODE_FAIL|n3\n12_[3-9]|s-abc|PENDING|\n"
    )
    found = parse_accounting(text)
    assert {index: element.failure_class for (_, index), element in found.items()} == {
        0: "oom",
        1: "",
        2: "node_failure",
    }


def test_a_job_file_says_what_the_profile_says(tmp_path, batch):
    resources = Resources(
        partition="gpu", gpus_per_node=4, tasks_per_node=4, nodes=2, cpus_per_task=12, memory_gb=1.5,
        time_min=90, options={"mail_type": "FAIL", "exclusive": True},
    )  # fmt: skip
    cluster = ClusterConfig(
        kind="slurm", setup=["module load cuda"], signal_s=120, requeue=False, python="my python"
    )
    made = JobArray(**vars(batch) | {"resources": resources, "exclude": ["n1", "n2"]})
    text = Slurm(cluster).job_file(tmp_path, made, "1.0")
    for line in (
        "partition=gpu", "gpus-per-node=4", "ntasks-per-node=4", "nodes=2", "cpus-per-task=12", "mem=1536M",
        "time=90", "mail-type=FAIL", "exclusive", "signal=USR2@120", "no-requeue", "exclude=n1,n2",
        "array=0-1%2", "job-name=s-abc",
    ):  # fmt: skip
        assert f"#SBATCH --{line}\n" in text
    assert text.index("module load cuda") < text.index(f"cd {tmp_path}/code/x") < text.index("srun ")
    assert (
        f"my python -u -m sweeps.workers.array_task {tmp_path}/jobs/abc" in text
        and "--cpus-per-task=12 my python" in text
    )


@pytest.mark.parametrize("ranks", ["srun", "torchrun"])
def test_a_rank_that_dies_ends_the_others_of_its_job(tmp_path, batch, ranks):
    def srun(**shape):
        made = JobArray(**vars(batch) | {"resources": Resources(ranks=ranks, **shape)})
        text = Slurm(ClusterConfig(kind="slurm")).job_file(tmp_path, made, "1")
        return next(line for line in text.splitlines() if line.startswith("srun "))

    assert " --kill-on-bad-exit=1 " in srun(nodes=2, tasks_per_node=4)
    assert "kill-on-bad-exit" not in srun()


def test_torchrun_is_told_by_the_signal_that_it_passes_on(tmp_path, batch):
    resources = Resources(nodes=2, tasks_per_node=8, ranks="torchrun")
    text = Slurm(ClusterConfig(kind="slurm")).job_file(
        tmp_path, JobArray(**vars(batch) | {"resources": resources}), "1"
    )
    assert "#SBATCH --signal=TERM@90\n" in text and "#SBATCH --ntasks-per-node=1\n" in text
    assert "--nproc-per-node=8" in text and "-m sweeps.workers.array_task" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["cluster.resources.tasks_per_node=2", "cluster.resources.parallel_runs=2"],
            "runs side by side have one",
        ),
        (["cluster.per_scale={looped_90k: {gpu: 1}}"], r"unknown key cluster\.per_scale\.looped_90k\.gpu"),
        (["retry.lost.retries=-1"], r"retry\.lost\.retries=-1: must be greater than or equal to 0"),
        (["cluster.fake.failures={lost: 2.0}"], r"cluster\.fake\.failures"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        loopscale.compose(["cluster=slurm", *overrides])


def test_a_snapshot_holds_edits_and_new_files_and_stays_as_it_is(tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / "model").mkdir(parents=True)
    for name in ("kept", "edited", "removed"):
        (checkout / "model" / f"{name}.py").write_text(f"{name} = 1\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=checkout, check=True)
    clean = take_snapshot(tmp_path / "sweep", checkout)
    assert not clean.dirty and not clean.version.endswith("-dirty")
    (checkout / "model" / "edited.py").write_text("edited = 2\n")
    (checkout / "model" / "removed.py").unlink()
    (checkout / "model" / "new.py").write_text("new = 1\n")
    dirty = take_snapshot(tmp_path / "sweep", checkout)
    code = tmp_path / "sweep" / dirty.path
    assert dirty.path != clean.path and dirty.version.endswith("-dirty")
    assert sorted(path.name for path in (code / "model").iterdir()) == ["edited.py", "kept.py", "new.py"]
    assert (code / "model" / "edited.py").read_text() == "edited = 2\n"
    assert "+edited = 2" in (code / "changes.diff").read_text()
    (checkout / "model" / "edited.py").write_text("edited = 3\n")
    assert (code / "model" / "edited.py").read_text() == "edited = 2\n"
    assert (tmp_path / "sweep" / clean.path / "model" / "edited.py").read_text() == "edited = 1\n"


def test_outside_of_git_the_rooms_are_copied(tmp_path):
    checkout = tmp_path / "unpacked"
    (checkout / "model").mkdir(parents=True)
    (checkout / "model" / "config.py").write_text("a = 1\n")
    taken = take_snapshot(tmp_path / "sweep", checkout)
    assert (tmp_path / "sweep" / taken.path / "model" / "config.py").read_text() == "a = 1\n"
    assert taken.commit == "" and not taken.dirty


def test_what_waits_on_another_cluster_is_named_by_launch_and_retry(commands, tiny, capsys):
    commands("squeue", "true")
    commands("sbatch", "echo 'Submitted batch job 5'")
    sweep = ["sweep.name=moved", "sweep.tokens=[640]", "sweep.min_steps=5", "sweep.control=none"]
    launch = ["launch", *tiny, *sweep, "sweep.mean_recurrences=[2]", "cluster=slurm", "confirm=false"]
    loopscale.main(launch)
    assert "another cluster" not in capsys.readouterr().out
    commands("scontrol", "echo 'ClusterName = elsewhere'; echo 'MaxArraySize = 50'")
    note = "submitted before on another cluster, cancel there what still waits: somewhere:5"
    loopscale.main(launch)
    assert note in capsys.readouterr().out
    loopscale.main([*launch, "format=json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["notes"] == [note] and len(shown["rows"]) == 1 and shown["counts"]
    table = [tiny[0], "sweep=moved", "failed=true"]
    folder = Path(tiny[0].removeprefix("root=")) / "moved"
    (run,) = read_ledger(folder).runs(folder)
    run.set_status(run.status().failed("diverged", "on purpose"))
    loopscale.main(["retry", *table])
    assert note in capsys.readouterr().out
    run.set_status(run.status().failed("diverged", "on purpose"))
    with pytest.warns(UserWarning, match="cancel there what still waits: somewhere:5"):
        assert loopscale.retry(table) == [run.run_id]


def test_a_launch_needs_neither_pandas_nor_torch(commands, tiny):
    commands("squeue", "true")
    commands("sbatch", "echo 'Submitted batch job 5'")
    loopscale.data(tiny)  # reading text may take more
    grid = ["sweep.name=light", "sweep.tokens=[640]", "sweep.min_steps=5", "sweep.control=none"]
    launch = ["launch", *tiny, *grid, "sweep.mean_recurrences=[2]", "cluster=slurm", "confirm=false"]
    code = (
        "import sys, loopscale; loopscale.main(sys.argv[1:]);"
        "print(sorted({'pandas', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, *launch], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("1 run: 1 planned")
    assert done.stdout.endswith("[]\n")


def test_a_run_cancelled_in_the_queue_says_so_in_its_folder(commands, tiny):
    for name in ("squeue", "scancel"):
        commands(name, "true")
    commands("sbatch", "echo 'Submitted batch job 5'")
    grid = ["sweep.name=queued", "sweep.tokens=[640]", "sweep.min_steps=5", "sweep.control=none"]
    loopscale.launch([*tiny, *grid, "sweep.mean_recurrences=[2]", "cluster=slurm"])
    folder = Path(tiny[0].removeprefix("root=")) / "queued"
    (run,), (batch,) = read_ledger(folder).runs(folder), read_arrays(folder)
    assert not run.path.exists()
    commands("squeue", f"echo '{batch.name}|0|PENDING|Priority||1:00|5'")
    assert loopscale.cancel([tiny[0], "sweep=queued"]) == [f"somewhere:5_0 ({run.run_id})"]
    assert run.path.exists() and run.check().steps == 5
    assert (run.status().state, run.status().message) == ("planned", "cancelled")


def test_a_process_knows_the_job_that_it_is_in(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    assert current_job() is None
    own = {"JOB_ID": "14", "JOB_END_TIME": "1000", "CLUSTER_NAME": "somewhere"}
    for name, value in own.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert current_job() == CurrentJob(cluster="somewhere", ends_s=1000.0)
    array = {"ARRAY_JOB_ID": "12", "ARRAY_TASK_ID": "2", "RESTART_COUNT": "1"}
    for name, value in array.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    job = current_job()
    assert job.element_id == "12_2" and (job.node, job.restarts) == ("n7", 1)


SHOWN = "JobId=12 ArrayJobId=12 ArrayTaskId=2 JobState={} Reason={} Requeue=1 Restarts={} PreemptTime={}"


@pytest.mark.parametrize(
    ("shown", "message", "cancelled"),
    [
        (("RUNNING", "None", 1, "None"), "queued again", False),
        (("COMPLETING", "None", 2, "None"), "queued again by SLURM", False),
        (("PENDING", "BeginTime", 2, "None"), "queued again by SLURM", False),
        (
            ("COMPLETING", "job_requeued_in_held_state", 2, "None"),
            "held in the queue: job requeued in held state",
            False,
        ),
        (("COMPLETING", "None", 1, "None"), "cancelled; launch continues it", True),
        (("COMPLETING", "None", 1, "2026-11-30T15:10:18"), "preempted for good; launch continues it", False),
    ],
)
def test_a_stopping_job_knows_what_comes_next(commands, shown, message, cancelled):
    """The state is COMPLETING in each of these cases but two, as SLURM 22.05 prints them."""
    job, slurm = CurrentJob(job_id="12", index=2, restarts=1), Slurm(ClusterConfig(kind="slurm"))
    calls = commands("scontrol", f"echo '{SHOWN.format(*shown)}'")
    answer = slurm.requeue(job)
    assert (answer.message, answer.cancelled) == (message, cancelled)
    assert ("scontrol requeue 12_2" in calls()) is (message == "queued again")
