"""A job array and its files in `<sweep>/jobs/<token>`, written before it is submitted."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from harness.storage.files import read_json, write_json
from model.config_validation import ConfigError, build
from sweeps.config.cluster import Resources

TASK = "sweeps.workers.array_task"  # trains the runs of an element
JOBS = "jobs"  # folder of the arrays inside a sweep's


@dataclass(frozen=True, kw_only=True)
class JobArray:
    """One job array; element i of it trains the runs `elements[i]`.

    The name is unique: when the job id is lost, because the launch died or the scheduler's answer never
    arrived, the scheduler can be asked for the name. Paths are relative to the sweep's folder.
    """

    token: str
    sweep: str
    elements: list[list[str]]
    resources: Resources
    snapshot: str
    array_parallelism: int
    exclude: list[str] = field(default_factory=list)
    after: str = ""  # token of the array that it waits for, element by element, or, without runs, all of it
    after_index: int | None = None  # all of it waits for this element instead
    module: str = TASK  # what every element runs, given the array's folder
    created_s: float = 0.0  # seconds since the epoch

    @property
    def name(self) -> str:
        return f"{self.sweep}-{self.token}"

    @property
    def runs(self) -> list[str]:
        return [run for element in self.elements for run in element]


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """The scheduler's answer to the submission of an array. An empty job id: it never arrived there."""

    cluster: str
    job_id: str

    def element(self, index: int) -> str:
        """Return the id of an element, qualified by its cluster."""
        return f"{self.cluster}:{element_id(self.job_id, index)}"


def element_id(job_id: str, index: int) -> str:
    """Return the id of one element of the array that the scheduler calls `job_id`."""
    return f"{job_id}_{index}"


def array_folder(sweep: Path, array: JobArray) -> Path:
    """Return the folder of an array."""
    return sweep / JOBS / array.token


def write_array(sweep: Path, array: JobArray) -> None:
    """Write an array to its folder; from now on its runs may be in the queue."""
    folder = array_folder(sweep, array)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "batch.json", asdict(replace(array, created_s=time.time())))


def read_array(folder: Path) -> JobArray:
    """Return the array in `folder`."""
    fields = read_json(folder / "batch.json")
    return JobArray(**fields | {"resources": build(Resources, fields["resources"], "resources.")})


def read_arrays(sweep: Path) -> list[JobArray]:
    """Return the arrays of a sweep, oldest first."""
    arrays = [read_array(path.parent) for path in (sweep / JOBS).glob("*/batch.json")]
    return sorted(arrays, key=lambda array: array.created_s)


def write_submitted(sweep: Path, array: JobArray, submitted: Submitted) -> None:
    """Write the scheduler's answer to the array's folder."""
    write_json(array_folder(sweep, array) / "job.json", asdict(submitted))


def read_submitted(folder: Path) -> Submitted | None:
    """Return the scheduler's answer for the array in `folder`, None if it was lost or is damaged."""
    path = folder / "job.json"
    try:
        return Submitted(**read_json(path)) if path.exists() else None
    except (ConfigError, TypeError):
        return None  # the next launch asks for it again


def latest_elements(arrays: list[JobArray]) -> dict[str, tuple[JobArray, int]]:
    """Return the newest array of every run that was ever submitted, with the index of its element there."""
    return {
        run: (array, index)
        for array in arrays
        for index, element in enumerate(array.elements)
        for run in element
    }
