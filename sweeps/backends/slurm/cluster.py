"""SLURM: submission, states, cancellation and requeueing, including controller outages."""

from __future__ import annotations

import contextlib
import getpass
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from model.config_validation import ConfigError
from sweeps.backends.base import (
    Backend,
    CurrentJob,
    Elements,
    JobElement,
    JobOutput,
    JobState,
    Requeue,
    SchedulerError,
)
from sweeps.backends.job_array import JobArray, array_folder
from sweeps.backends.registry import outside_jobs
from sweeps.backends.slurm.commands import patiently, require, run, sentence
from sweeps.backends.slurm.limits import SubmitLimit, array_limit, submit_limits, usable_nodes
from sweeps.backends.slurm.states import (
    ACCOUNTING_FORMAT,
    QUEUE_FORMAT,
    QUEUED,
    STARTED,
    job_state,
    parse_accounting,
    parse_log,
    parse_queue,
)
from sweeps.config.cluster import Resources

T = TypeVar("T")
ACCOUNTING_PATIENCE_S = 15.0  # the queue has answered, which is enough to go on
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
        require("scontrol")
        text = self.call("scontrol", "show", "config")
        pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
        return {key.strip(): value.strip() for key, _, value in pairs}

    @property
    def name(self) -> str:
        return self.config.name or self.settings["ClusterName"]

    @property
    def max_array(self) -> int:
        return min(array_limit(self.settings), self.config.max_array_tasks or sys.maxsize)

    def room(self) -> int | None:
        if self.config.max_queued is not None:
            limits = [SubmitLimit(jobs=self.config.max_queued)]
        elif self.has_accounting:
            limits = submit_limits(run, getpass.getuser(), self.name, self.config)
        else:
            return None
        if not limits:
            return None
        listing = ("--noheader", "--array", f"--user={getpass.getuser()}", "--states=PD,R,CF,S")
        lines = self.call("squeue", *listing, "--format=%a|%q").splitlines()
        queued = [(account, qos) for account, _, qos in (line.partition("|") for line in lines)]
        return min(limit.room(queued) for limit in limits)

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

        require("sbatch")
        executor = executor_for(self.config, sweep, array, version)
        folder = array_folder(sweep, array)
        sent = 0

        def attempt() -> str:
            nonlocal sent
            if sent and (job_id := self.find(array.name)):
                return job_id
            sent += 1
            try:
                # submitit prints what it raises, even where the next attempt succeeds.
                with outside_jobs(), contextlib.redirect_stderr(io.StringIO()):
                    return executor.submit_array()
            except FailedJobError as error:
                for draft in folder.glob(".submission_file_*"):
                    draft.unlink()
                raise SchedulerError(sentence(str(error))) from error

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

        One call of squeue; one of sacct if that does not know all and there is accounting. Where that does
        not answer, the queue's answer stands, and what it lacks is UNKNOWN. What accounting calls running and
        the queue lacks, when asked again, is FORGOTTEN: its end was never entered (a runaway job).
        """
        known = {array.name: array for array in arrays}
        if not known:
            return {}
        call = self.call if patient else run
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
        command = ("sacct", *listing, f"--name={','.join(missing)}", f"--format={ACCOUNTING_FORMAT}")
        try:
            accounted = parse_accounting(self.call(*command, seconds=ACCOUNTING_PATIENCE_S * patient))
        except (SchedulerError, ConfigError) as error:
            unknown = JobElement(state=JobState.UNKNOWN, reason=str(error))
            places = ((name, index) for name in missing for index in range(len(known[name].elements)))
            return dict.fromkeys(places, unknown) | queued
        if any(element.is_live for place, element in accounted.items() if place not in queued):
            queued |= parse_queue(call("squeue", *selection, f"--format={QUEUE_FORMAT}"))
        return {
            place: replace(element, state=JobState.FORGOTTEN) if element.is_live else element
            for place, element in accounted.items()
        } | queued

    def cancel(self, jobs: Iterable[str]) -> None:
        ids = list(jobs)
        for start in range(0, len(ids), CANCEL_AT_ONCE):
            self.call("scancel", *ids[start : start + CANCEL_AT_ONCE])

    def job_output(self, folder: Path, index: int) -> JobOutput | None:
        text = _log(folder, index)
        return parse_log(text) if text else None

    def restart_cause(self, folder: Path, job: CurrentJob) -> JobState | None:
        text = _log(folder, job.index or 0)
        before = parse_log(text, start=-2).cause if text.count(STARTED) > 1 else None
        if before is not None:
            return before
        listing = ("--noheader", "--parsable2", "--allocations", "--duplicates", "--format=State")
        try:
            records = run("sacct", *listing, f"--jobs={job.element_id}").splitlines()
        except (SchedulerError, ConfigError):
            return None
        states = [job_state(record.split()[0]) for record in records if record.strip()]
        ended = [state for state in states if state not in (JobState.QUEUED, JobState.RUNNING)]
        return ended[-1] if ended else None

    def nodes_to_avoid(self, resources: Resources, nodes: set[str]) -> set[str]:
        if not nodes:
            return nodes
        usable = usable_nodes(self.call("sinfo", "--noheader", "--Node", "--format=%P %N %T"), resources)
        return nodes if len(usable - nodes) >= resources.nodes else set()

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
            text = self.call("scontrol", "--oneliner", "show", "job", job.element_id)
            shown = dict(part.partition("=")[::2] for part in text.split())
            # Of a job that is stopping the state is COMPLETING, whatever comes next.
            if shown["JobState"] in QUEUED or int(shown.get("Restarts", 0)) > job.restarts:
                reason = shown.get("Reason", "").replace("_", " ")
                held = "held" in reason.lower()
                return Requeue(message=f"held in the queue: {reason}" if held else "queued again by SLURM")
            if shown["JobState"] != "RUNNING":
                if shown.get("PreemptTime", "None") != "None":
                    return Requeue(message="preempted for good; launch continues it")
                return Requeue(message="cancelled; launch continues it", cancelled=True)
            self.call("scontrol", "requeue", job.element_id)
        except (KeyError, ValueError, OSError) as error:
            return Requeue(message=f"not requeued, launch continues it: {error}")
        return Requeue(message="queued again")

    def call(self, *command: str, seconds: float = math.inf) -> str:
        """Return what a command prints; waits for a controller that does not answer, as `patiently`."""
        return self.patiently(lambda: run(*command), seconds)

    def patiently(self, action: Callable[[], T], seconds: float = math.inf) -> T:
        """Repeat `action` while the controller is away, for `seconds` or as long as the profile says."""
        return patiently(action, min(seconds, self.config.patience_s))


def _log(folder: Path, index: int) -> str:
    """Return the newest output of an element of the array in `folder`, "" if there is none."""
    logs = sorted(folder.glob(f"*_{index}_*_log.out"))
    return logs[-1].read_text(encoding="utf-8", errors="replace") if logs else ""
