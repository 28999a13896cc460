"""What the launcher needs of a cluster, and what a job's state means for its runs; imports no submitit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sweeps.backends.job_array import JobArray

LIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "RESIZING"}
LIVE |= {"REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SIGNALING", "STAGE_OUT", "RESV_DEL_HOLD"}
# What the scheduler did to a run that could not say so itself.
DEATHS = {
    "OUT_OF_MEMORY": "oom",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
}


class SchedulerError(OSError):
    """The scheduler does not answer, or says no."""


@dataclass(frozen=True, kw_only=True)
class JobElement:
    """One element of a job array as the scheduler sees it."""

    state: str
    reason: str = ""
    node: str = ""
    time_left: str = ""  # as SLURM prints it: days-hours:minutes:seconds
    job_id: str = ""

    @property
    def is_live(self) -> bool:
        """Say whether it is queued, running or about to be."""
        return self.state in LIVE and not self.is_stuck

    @property
    def is_stuck(self) -> bool:
        """Say whether SLURM holds it for ever: a job that a failing node could not start, queued again."""
        reason = self.reason.replace("_", " ").lower()
        return self.state == "PENDING" and (reason.startswith("launch failed") or self.is_orphan)

    @property
    def is_orphan(self) -> bool:
        """Say whether it waits for a job that has failed, and so for ever."""
        return self.reason.replace("_", "").lower().startswith("dependencyneversatisfied")

    @property
    def death(self) -> str:
        """Name the failure class of a run that was running in it, "" where the user cancelled it."""
        if self.is_stuck:
            return "" if self.is_orphan else "node_failure"
        return "" if self.state.startswith("CANCELLED") else DEATHS.get(self.state, "lost")


Elements = dict[tuple[str, int], JobElement]  # by array name and index


class Scheduler(Protocol):
    """A cluster, real or simulated."""

    @property
    def name(self) -> str:
        """Give the name that qualifies job ids."""

    @property
    def max_array(self) -> int:
        """Give the most elements that one array may have."""

    def job_file(self, sweep: Path, array: JobArray, version: str) -> str:
        """Return what `submit` would submit."""

    def submit(self, sweep: Path, array: JobArray, version: str) -> str:
        """Submit an array once and return its job id."""

    def find(self, name: str) -> str | None:
        """Return the id of the array of that name, None where the cluster has none."""

    def states(self, arrays: Iterable[JobArray], *, patient: bool = True) -> Elements:
        """Return the state of every element that the cluster still knows."""

    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs or elements, by id."""
