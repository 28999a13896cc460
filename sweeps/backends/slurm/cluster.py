"""SLURM: submission, states, cancellation and requeueing, including controller outages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from model.config_validation import ConfigError
from sweeps.backends.base import Backend, CurrentJob, Elements, Requeue, SchedulerError
from sweeps.backends.job_array import JobArray, array_folder
from sweeps.backends.registry import outside_jobs
from sweeps.backends.slurm.states import ACCOUNTING_FORMAT, QUEUE_FORMAT, parse_accounting, parse_queue

T = TypeVar("T")
# What commands print when the controller is away or overloaded; any other error is final.
OUTAGE = re.compile(
    r"unable to contact|timed out|connection refused|connection reset|zero bytes|communication connection"
    r"|standby|temporarily|not respond|unable to connect|slurmdbd.*(down|error)|try again",
    re.IGNORECASE,
)
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0)  # and 15 s from then on
CANCEL_AT_ONCE = 500  # ids in one call of scancel


class Slurm(Backend):
    """The cluster that SLURM's commands reach from here."""

    display_name = "SLURM"
    signal_lead_s = 60.0  # as sbatch documents --signal
    job_variables = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_")
    kept_variables = ("SLURM_CONF", "SLURM_CONF_SERVER")

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
        return int(self.settings["MaxArraySize"])

    @property
    def has_accounting(self) -> bool:
        return "none" not in self.settings.get("AccountingStorageType", "none")

    def job_file(self, sweep: Path, array: JobArray, version: str) -> str:
        from sweeps.backends.slurm.job_file import executor_for

        return executor_for(self.config, sweep, array, version).text

    def submit(self, sweep: Path, array: JobArray, version: str) -> str:
        """Submit an array once and return its job id.

        When the controller's answer is lost, it is asked for a job of the array's name before anything is
        sent again. Raises SchedulerError when it does not answer in time, ConfigError when it refuses.
        """
        from submitit.core.utils import FailedJobError

        from sweeps.backends.slurm.job_file import executor_for

        _require("sbatch")
        executor = executor_for(self.config, sweep, array, version)
        folder = array_folder(sweep, array)
        sent = 0

        def attempt() -> str:
            nonlocal sent
            if sent and (job_id := self.find(array.name)):
                return job_id
            sent += 1
            try:
                with outside_jobs():
                    return executor.submit_array()
            except FailedJobError as error:
                for draft in folder.glob(".submission_file_*"):
                    draft.unlink()
                raise SchedulerError(_sentence(str(error))) from error

        return self.patiently(attempt)

    def find(self, name: str) -> str | None:
        command = ("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F")
        ids = self.call(*command).split()
        if not ids and self.has_accounting:
            listing = ("--noheader", "--parsable2", "--allocations", f"--name={name}", "--format=JobID")
            ids = self.call("sacct", *listing, "--starttime=now-7days").split()
        return ids[0].partition("_")[0] if ids else None

    def states(self, arrays: Iterable[JobArray], *, patient: bool = True) -> Elements:
        """Return the state of every element of the arrays that SLURM still knows.

        One call of squeue; one of sacct if that does not know all and there is accounting.
        """
        known = {array.name: array for array in arrays}
        if not known:
            return {}
        call = self.call if patient else _run
        selection = ("--noheader", "--array", "--states=all", f"--name={','.join(known)}")
        queued = parse_queue(call("squeue", *selection, f"--format={QUEUE_FORMAT}"))
        missing = {
            array.name: array.created_s
            for array in known.values()
            if any((array.name, index) not in queued for index in range(len(array.elements)))
        }
        if not missing or not self.has_accounting:
            return queued
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(min(missing.values()) - 60))
        # Not --array, which SLURM before 23.02 does not know: ranges of indices are expanded here.
        listing = ("--noheader", "--parsable2", f"--starttime={since}")
        text = call("sacct", *listing, f"--name={','.join(missing)}", f"--format={ACCOUNTING_FORMAT}")
        return parse_accounting(text) | queued

    def cancel(self, jobs: Iterable[str]) -> None:
        ids = list(jobs)
        for start in range(0, len(ids), CANCEL_AT_ONCE):
            self.call("scancel", *ids[start : start + CANCEL_AT_ONCE])

    def job_log(self, folder: Path, index: int) -> Path | None:
        logs = sorted(folder.glob(f"*_{index}_*_log.out"))
        return logs[-1] if logs else None

    def current_job(self) -> CurrentJob | None:
        environment = os.environ
        if "SLURM_JOB_ID" not in environment and "SLURM_ARRAY_JOB_ID" not in environment:
            return None
        index, end = environment.get("SLURM_ARRAY_TASK_ID"), environment.get("SLURM_JOB_END_TIME")
        return CurrentJob(
            cluster=environment.get("SLURM_CLUSTER_NAME", ""),
            # Not SLURM_JOB_ID: the last element shares it with the whole array.
            job_id=environment.get("SLURM_ARRAY_JOB_ID", ""),
            index=int(index) if index is not None else None,
            node=environment.get("SLURMD_NODENAME", ""),
            restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
            ends_s=float(end) if end is not None else None,
        )

    def requeue(self, job: CurrentJob) -> Requeue:
        try:
            listing = ("--noheader", f"--jobs={job.element_id}", "--states=all", "--format=%T")
            state = self.call("squeue", *listing).strip()
            if state in ("PENDING", "REQUEUED"):
                return Requeue(message="queued again by SLURM")
            if state != "RUNNING":
                return Requeue(message="cancelled; launch continues it", cancelled=True)
            self.call("scontrol", "requeue", job.element_id)
        except (ValueError, OSError) as error:
            return Requeue(message=f"not requeued, launch continues it: {error}")
        return Requeue(message="queued again")

    def call(self, *command: str) -> str:
        """Return what a command prints; waits for a controller that does not answer."""
        return self.patiently(lambda: _run(*command))

    def patiently(self, action: Callable[[], T]) -> T:
        """Repeat `action` with growing pauses while the controller is away, as long as the profile allows."""
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
    """Return the lines of an error that name it, as one line."""
    lines = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    return "; ".join(dict.fromkeys(lines)) or " ".join(text.split())
