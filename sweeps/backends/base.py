"""What a sweep needs of a cluster, in neutral terms. Each scheduler is a module or folder beside this one."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar

from model.config_validation import ConfigError
from sweeps.backends.job_array import JobArray, element_id
from sweeps.config.cluster import ClusterConfig, Resources


class JobState(Enum):
    """How an element of a job array stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUSPENDED = "suspended"  # stopped where it is, and goes on by itself
    UNSTARTABLE = "held in the queue"  # its node could not start it, and it is not tried elsewhere
    ORPHANED = "waiting for a failed job"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"  # for an unknown cause, or one that the run itself records
    OUT_OF_MEMORY = "out of memory"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    NODE_FAILURE = "node failure"
    FORGOTTEN = "no longer listed"  # the scheduler answered without it
    UNKNOWN = "not known"  # it is not in the queue, and what became of it could not be asked


# The failure class of a run that was running in such a job; "lost" for all others.
_FAILURE_CLASSES = {
    JobState.UNSTARTABLE: "node_failure",
    JobState.ORPHANED: "",
    JobState.CANCELLED: "",
    JobState.OUT_OF_MEMORY: "oom",
    JobState.TIMEOUT: "timeout",
    JobState.PREEMPTED: "preempted",
    JobState.NODE_FAILURE: "node_failure",
}


class SchedulerError(OSError):
    """The scheduler does not answer, or refuses."""


class QueueFull(ConfigError):
    """The scheduler takes no more jobs of this user now."""


@dataclass(frozen=True, kw_only=True)
class JobElement:
    """One element of a job array as the scheduler sees it."""

    state: JobState
    native_state: str = ""  # the scheduler's own name for the state
    reason: str = ""  # why it waits
    node: str = ""
    time_left_s: float | None = None
    job_id: str = ""  # of the array

    @property
    def is_live(self) -> bool:
        """Return True if it is running, or queued and will start."""
        return self.state in (JobState.QUEUED, JobState.RUNNING, JobState.SUSPENDED)

    @property
    def is_stuck(self) -> bool:
        """Return True if it stands in the queue but can never start."""
        return self.state in (JobState.UNSTARTABLE, JobState.ORPHANED)

    @property
    def failure_class(self) -> str:
        """Return the failure class of a run that was running in it, "" where no failure is to be counted."""
        return _FAILURE_CLASSES.get(self.state, "lost")

    @property
    def shown_state(self) -> str:
        """Return the state as a message shows it."""
        return self.native_state or self.state.value


Elements = dict[tuple[str, int], JobElement]  # by array name and index


@dataclass(frozen=True, kw_only=True)
class JobOutput:
    """What an element printed from its last start on."""

    lines: list[str]
    node: str = ""
    cause: JobState | None = None  # why it was ended, if it says so


@dataclass(frozen=True, kw_only=True)
class CurrentJob:
    """The job that this process is in."""

    cluster: str = ""
    job_id: str = ""  # of the array; "" in a job that is no element of one
    index: int | None = None
    node: str = ""
    restarts: int = 0  # how often the scheduler has started the job again
    ends_s: float | None = None  # when its time limit ends it, in seconds since the epoch

    @property
    def element_id(self) -> str:
        """Return the id of this element, "" where the job is no element of an array."""
        return element_id(self.job_id, self.index) if self.job_id and self.index is not None else ""


@dataclass(frozen=True, kw_only=True)
class Requeue:
    """What became of the request of a stopping job to be queued again."""

    message: str
    cancelled: bool = False  # the user has stopped the job: no failure is counted


class Backend(ABC):
    """A cluster, real or simulated; `sweeps.backends.registry` opens the one that `cluster.kind` names.

    A backend that has a queue takes job arrays by `submit`. One with `pulls_runs` has worker processes that
    take the open runs of a sweep by themselves, and nothing is submitted to it.
    """

    display_name: ClassVar[str]  # in messages
    pulls_runs: ClassVar[bool] = False
    simulated: ClassVar[bool] = False  # no job exists and nothing is trained
    has_job_files: ClassVar[bool] = True
    signal_lead_s: ClassVar[float] = 0.0  # a job may get the signal before its time limit this much earlier
    job_variables: ClassVar[
        tuple[str, ...]
    ] = ()  # beginnings of names that are set in the environment of jobs
    kept_variables: ClassVar[tuple[str, ...]] = ()  # of those, what its commands need outside of jobs too

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def name(self) -> str:
        """Return the name that qualifies job ids; a real cluster may have to be asked for it."""

    @property
    @abstractmethod
    def max_array(self) -> int:
        """Return the number of elements that one array may have; a real cluster may have to be asked."""

    def room(self) -> int | None:
        """Return how many more elements may be submitted now; None where that is not limited or not known."""
        return None

    @abstractmethod
    def submit(self, sweep: Path, array: JobArray, version: str) -> str:
        """Submit an array once and return its job id.

        Parameters
        ----------
        sweep : folder of the sweep.
        version : of the code, for the runs' records.

        Raises
        ------
        SchedulerError : the scheduler does not answer.
        ConfigError : it refuses the array.
        """

    @abstractmethod
    def find(self, name: str) -> str | None:
        """Return the id of the array of that name, None if the cluster has none."""

    @abstractmethod
    def states(self, arrays: Iterable[JobArray], *, patient: bool = True) -> Elements:
        """Return the state of every element that the cluster still knows.

        With `patient=False`, a scheduler that does not answer is not waited for.
        """

    @abstractmethod
    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs, elements (`job_array.element_id`) or worker processes, by id."""

    def job_file(self, sweep: Path, array: JobArray, version: str) -> str:
        """Return the job file that `submit` submits."""
        raise NotImplementedError(f"{self.display_name} has no job files")

    def job_output(self, folder: Path, index: int) -> JobOutput | None:
        """Return what an element of the array in `folder` has printed, None if there is nothing of it."""
        return None

    def restart_cause(self, folder: Path, job: CurrentJob) -> JobState | None:
        """Return why the job that this process is in was started again, None if nobody knows."""
        return None

    def nodes_to_avoid(self, resources: Resources, nodes: set[str]) -> set[str]:
        """Return `nodes`, or none of them if a job with these resources could not start without them."""
        return nodes

    def concurrency(self, scales: Iterable[str]) -> list[tuple[set[str], int]]:
        """Return groups of scales that share places, each with how many of its runs go on side by side.

        With job arrays, the scales of one resource shape share arrays, which have a cap of their own.
        """
        shapes: dict[str, tuple[set[str], int]] = {}
        for scale in set(scales):
            resources = self.config.resources_of(scale)
            places = self.config.array_parallelism * min(resources.parallel_runs, resources.runs_per_job)
            shapes.setdefault(repr(resources), (set(), places))[0].add(scale)
        return list(shapes.values())

    def current_job(self) -> CurrentJob | None:
        """Return the job that this process is in, None if it is in none of this backend's."""
        return None

    def requeue(self, job: CurrentJob) -> Requeue:
        """Queue the job that this process is in again after its end."""
        return Requeue(message=f"{self.display_name} does not requeue; launch continues it")

    def start_workers(self, sweep: Path, *, owner: int | None = None) -> list[subprocess.Popen[bytes]]:
        """Start the worker processes of a backend that `pulls_runs`, and return them.

        They outlive this process, but end with the process `owner`. A worker that is there already is left
        alone.
        """
        return []

    def workers(self, sweep: Path) -> list[str]:
        """Return the ids of the worker processes that are at the sweep now."""
        return []

    def is_working(self, sweep: Path) -> bool:
        """Return True if a worker process is at the sweep now."""
        return False
