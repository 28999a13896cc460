"""SLURM through submitit's executor: job files, submission, states and cancellation, whatever the weather.

The job file and the submission are submitit's; the jobs' own record is the array's folder, not a pickle, so
that a job does not need its launcher to survive.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import submitit
from submitit.core.utils import FailedJobError

from harness.distributed.rendezvous import job_port
from model.config_validation import ConfigError
from sweeps.backends.base import Elements, JobElement, SchedulerError
from sweeps.backends.job_array import JOBS, JobArray, array_folder, read_submitted
from sweeps.config.cluster import ClusterConfig

T = TypeVar("T")
# What commands say when the controller is away or overloaded; anything else is final.
OUTAGE = re.compile(
    r"unable to contact|timed out|connection refused|connection reset|zero bytes|communication connection"
    r"|standby|temporarily|not respond|unable to connect|slurmdbd.*(down|error)|try again",
    re.IGNORECASE,
)
DEFAULT_MAX_ARRAY = 1001
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0)  # and so on


class Executor(submitit.SlurmExecutor):
    """submitit's SLURM executor, submitting a command instead of a pickle."""

    def __init__(self, folder: Path, command: str) -> None:
        super().__init__(folder=folder)
        self._command = command

    @classmethod
    def name(cls) -> str:
        return "slurm"

    @classmethod
    def affinity(cls) -> int:
        """Say yes everywhere: job files can be looked at where there is no SLURM."""
        return 2

    @property
    def text(self) -> str:
        """Return the job file."""
        return str(self._make_submission_file_text(self._command, ""))

    def submit_array(self) -> str:
        """Submit and return the id of the array."""
        return str(self._submit_command(self._command).job_id)


class Slurm:
    """The cluster that SLURM's commands reach from here."""

    def __init__(self, config: ClusterConfig, *, dry_run: bool = False) -> None:
        self.config = config
        self._dry_run = dry_run  # job files are shown without a controller too

    @cached_property
    def settings(self) -> dict[str, str]:
        """Return the controller's configuration."""
        _require("scontrol")
        text = self.call("scontrol", "show", "config")
        pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
        return {key.strip(): value.strip() for key, _, value in pairs}

    @property
    def name(self) -> str:
        return self.config.name or self.settings["ClusterName"]

    @property
    def max_array(self) -> int:
        try:
            return int(self.settings["MaxArraySize"])
        except (ConfigError, SchedulerError):
            if not self._dry_run:
                raise
            return DEFAULT_MAX_ARRAY

    @property
    def has_accounting(self) -> bool:
        return "none" not in self.settings.get("AccountingStorageType", "none")

    def job_file(self, sweep: Path, array: JobArray, version: str) -> str:
        """Return the job file of an array."""
        return _executor(self.config, sweep, array, version).text

    def submit(self, sweep: Path, array: JobArray, version: str) -> str:
        """Submit an array once and return its job id.

        When the controller's answer is lost, it is asked for a job of the array's name before anything is
        sent again. Raises SchedulerError when it does not answer in time, ConfigError when it refuses.
        """
        _require("sbatch")
        executor = _executor(self.config, sweep, array, version)
        folder = array_folder(sweep, array)
        sent = 0

        def attempt() -> str:
            nonlocal sent
            if sent and (found := self.find(array.name)):
                return found
            sent += 1
            try:
                return executor.submit_array()
            except FailedJobError as error:
                for left in folder.glob(".submission_file_*"):
                    left.unlink()
                raise SchedulerError(_sentence(str(error))) from error

        return self.patiently(attempt)

    def find(self, name: str) -> str | None:
        """Return the id of the job of that name, None where there is none."""
        command = ("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F")
        found = self.call(*command).split()
        if not found and self.has_accounting:
            listing = ("--noheader", "--parsable2", "--allocations", f"--name={name}", "--format=JobID")
            found = self.call("sacct", *listing, "--starttime=now-7days").split()
        return found[0].partition("_")[0] if found else None

    def states(self, arrays: Iterable[JobArray], *, patient: bool = True) -> Elements:
        """Return the state of every element of the arrays that SLURM still knows.

        One call of squeue; one of sacct when that does not know all, where there is accounting.
        """
        known = {array.name: array for array in arrays}
        if not known:
            return {}
        call = self.call if patient else _run
        names = ",".join(known)
        form = "--format=%j|%K|%T|%r|%N|%L|%F"
        queue = call("squeue", "--noheader", "--array", "--states=all", f"--name={names}", form)
        found = dict(_element(line) for line in queue.splitlines())
        missing = {
            array.name: array.created_s
            for array in known.values()
            if any((array.name, index) not in found for index in range(len(array.elements)))
        }
        if missing and self.has_accounting:
            return self._accounted(missing, call) | found
        return found

    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs or elements, by id."""
        jobs = list(jobs)
        for start in range(0, len(jobs), 500):
            self.call("scancel", *jobs[start : start + 500])

    def call(self, *command: str) -> str:
        """Return what a command prints; waits for a controller that does not answer."""
        return self.patiently(lambda: _run(*command))

    def patiently(self, action: Callable[[], T]) -> T:
        """Repeat `action` with growing pauses while the controller is away, as long as the profile says."""
        until = time.monotonic() + self.config.patience_s
        for tried in range(10_000):
            try:
                return action()
            except SchedulerError as error:
                if not OUTAGE.search(str(error)):
                    raise ConfigError(f"SLURM refuses: {error}") from error
                pause = BACK_OFF_S[min(tried, len(BACK_OFF_S) - 1)]
                if time.monotonic() + pause > until:
                    waited = f"{self.config.patience_s:g} s"
                    raise SchedulerError(
                        f"SLURM does not answer for {waited} ({error}): run the same command again later"
                    ) from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _accounted(self, missing: dict[str, float], call: Callable[..., str]) -> Elements:
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(min(missing.values()) - 60))
        listing = (
            "--noheader",
            "--parsable2",
            "--array",
            f"--starttime={since}",
            f"--name={','.join(missing)}",
        )
        text = call("sacct", *listing, "--format=JobID,JobName,State,NodeList")
        return parse_accounting(text)


def parse_accounting(text: str) -> Elements:
    """Read the lines of sacct. A step that ran out of memory says so for its job, whose own line does not."""
    found: Elements = {}
    places: dict[str, tuple[str, int]] = {}
    for line in text.splitlines():
        job, name, state, node = line.split("|")
        element, _, step = job.partition(".")
        state = state.split()[0] if state else ""
        if not step:
            number = element.partition("_")[2]
            if number.isdigit():
                places[element] = (name, int(number))
                found[places[element]] = JobElement(state=state, node=node, job_id=element.partition("_")[0])
        elif state == "OUT_OF_MEMORY" and element in places:
            place = places[element]
            found[place] = JobElement(state=state, node=found[place].node, job_id=found[place].job_id)
    return found


def _element(line: str) -> tuple[tuple[str, int], JobElement]:
    name, index, state, reason, node, left, job = line.split("|")
    return (name, int(index)), JobElement(state=state, reason=reason, node=node, time_left=left, job_id=job)


def _executor(config: ClusterConfig, sweep: Path, array: JobArray, version: str) -> Executor:
    folder = array_folder(sweep.resolve(), array)
    wanted = array.resources
    python = config.python or shlex.quote(sys.executable)
    command = f"{python} -u -m sweeps.workers.array_task {shlex.quote(str(folder))}"
    if wanted.ranks == "torchrun":
        command = _torchrun(config, array, folder)
    executor = Executor(folder, command)
    options: dict[str, Any] = {key.replace("_", "-"): value for key, value in wanted.options.items()}
    if array.after:  # else it would wait for ever when that fails; cancelled, launch submits it again
        options["kill-on-invalid-dep"] = "yes"
    if config.requeue is not None:
        options["requeue" if config.requeue else "no-requeue"] = True
    if wanted.ranks == "torchrun":  # it passes on SIGTERM and dies of SIGUSR2
        options["signal"] = f"TERM@{config.signal_s}"
    stated = {
        "partition": wanted.partition,
        "qos": wanted.qos,
        "account": wanted.account,
        "constraint": wanted.constraint,
        "cpus_per_task": wanted.cpus_per_task,
        "gpus_per_node": wanted.gpus_per_node or None,
        "mem": f"{round(wanted.memory_gb * 1024)}M" if wanted.memory_gb else None,
        "exclude": ",".join(array.exclude) or None,
        "dependency": _dependency(sweep, array),
        # Since SLURM 22.05 srun does not take this over from the job.
        "srun_args": [f"--cpus-per-task={wanted.cpus_per_task}"] if wanted.cpus_per_task else None,
    }
    executor.update_parameters(
        job_name=array.name,
        time=wanted.time_min,
        nodes=wanted.nodes,
        ntasks_per_node=1 if wanted.ranks == "torchrun" else wanted.tasks_per_node,
        signal_delay_s=config.signal_s,
        array_parallelism=array.array_parallelism,
        stderr_to_stdout=True,
        setup=[*config.setup, *_environment(config, sweep, array, version)],
        additional_parameters=options,
        **{key: value for key, value in stated.items() if value is not None},
    )
    executor.parameters["map_count"] = len(array.elements)
    return executor


def _dependency(sweep: Path, array: JobArray) -> str | None:
    """Say what an array waits for: element by element for another array, or for one element of it."""
    if not array.after:
        return None
    submitted = read_submitted(sweep / JOBS / array.after)
    job = submitted.job_id if submitted else f"JOB_OF_{array.after}"  # in a dry run nobody knows it yet
    return f"aftercorr:{job}" if array.after_index is None else f"afterok:{job}_{array.after_index}"


def _environment(config: ClusterConfig, sweep: Path, array: JobArray, version: str) -> list[str]:
    code = shlex.quote(str((sweep / array.snapshot).resolve()))
    return [
        f"cd {code}",
        f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        f"export LOOPSCALE_CODE_VERSION={shlex.quote(version)}",
        f"export OMP_NUM_THREADS={config.threads_per_run}",
        # Data and tokenizer were checked before submission; compute nodes may have no internet.
        "export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1",
    ]


def _torchrun(config: ClusterConfig, array: JobArray, folder: Path) -> str:
    port = job_port(array.token)
    python = config.python or shlex.quote(sys.executable)
    return (
        f"bash -c 'exec {python} -m torch.distributed.run --nnodes=$SLURM_JOB_NUM_NODES "
        f"--nproc-per-node={array.resources.tasks_per_node} --node-rank=$SLURM_NODEID "
        f'--master-addr=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) --master-port={port} '
        f"-m sweeps.workers.array_task {shlex.quote(str(folder))}'"
    )


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError(f"{command[0]} is not on PATH: is this a login node of the cluster?") from None
    if done.returncode:
        raise SchedulerError(_sentence(done.stderr or f"{command[0]} ended with code {done.returncode}"))
    return done.stdout


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise ConfigError(f"{program} is not on PATH: is this a login node of the cluster?")


def _sentence(text: str) -> str:
    """Return the telling part of an error on one line."""
    lines = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    return "; ".join(dict.fromkeys(lines)) or " ".join(text.split())
