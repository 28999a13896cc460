"""A array: the runs that went to the cluster as one job array, written down before it is submitted."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from harness.storage.files import read_json, write_json
from model.config_validation import build
from sweeps.config.cluster import Resources

T = TypeVar("T")
JOBS = "jobs"  # folder of the arrays inside a sweep's


@dataclass(frozen=True, kw_only=True)
class JobArray:
    """One job array, in `<sweep>/jobs/<token>`: element i of the array trains `elements[i]`, run ids.

    The name is unique, so that the scheduler can be asked whether it has the array when nobody knows the
    job id: the launch died, or the controller's answer was lost. Paths are relative to the sweep's folder.
    """

    token: str
    sweep: str
    elements: list[list[str]]
    resources: Resources
    snapshot: str
    array_parallelism: int
    exclude: list[str] = field(default_factory=list)
    after: str = ""  # token of the array that it waits for, element by element
    after_index: int | None = None  # ... or all of it for this element
    created_s: float = 0.0  # seconds since the epoch

    @property
    def name(self) -> str:
        return f"{self.sweep}-{self.token}"

    @property
    def runs(self) -> list[str]:
        return [run for element in self.elements for run in element]


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What the scheduler made of an array. An empty job id: it never got there."""

    cluster: str
    job_id: str

    def element(self, index: int) -> str:
        """Name an element of the array, qualified by its cluster."""
        return f"{self.cluster}:{self.job_id}_{index}"


def make_arrays(
    sweep: str,
    runs: Iterable[tuple[str, Resources]],
    *,
    max_array: int,
    array_parallelism: int,
    snapshot: str,
    exclude: list[str],
    seed: str,
) -> list[JobArray]:
    """Group runs that ask for the same resources into arrays of at most `max_array` elements.

    A array's token is a hash of its runs and of `seed`, which differs from launch to launch; a dry run names
    the files that the launch will write.
    """
    shapes: dict[str, tuple[Resources, list[str]]] = {}
    for run, resources in runs:
        shapes.setdefault(repr(resources), (resources, []))[1].append(run)
    arrays: list[JobArray] = []
    for resources, names in shapes.values():
        elements = list(chunks(names, resources.runs_per_job))
        for members in chunks(elements, max_array):
            arrays.append(
                JobArray(
                    token=make_token(seed, len(arrays), members),
                    sweep=sweep,
                    elements=members,
                    resources=resources,
                    snapshot=snapshot,
                    array_parallelism=array_parallelism,
                    exclude=exclude,
                )
            )
    return arrays


def make_token(seed: str, number: int, elements: list[list[str]]) -> str:
    """Name the array of this number in a launch."""
    text = "\n".join([seed, str(number), *itertools.chain.from_iterable(elements)])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def array_folder(sweep: Path, array: JobArray) -> Path:
    """Return the folder of an array."""
    return sweep / JOBS / array.token


def write_array(sweep: Path, array: JobArray) -> None:
    """Write an array down: from now on its runs may be in the queue."""
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
    """Write down what the scheduler answered."""
    write_json(array_folder(sweep, array) / "job.json", asdict(submitted))


def read_submitted(folder: Path) -> Submitted | None:
    """Return what the scheduler answered for the array in `folder`, None where its answer was lost."""
    path = folder / "job.json"
    return Submitted(**read_json(path)) if path.exists() else None


def latest_elements(arrays: list[JobArray]) -> dict[str, tuple[JobArray, int]]:
    """Return, for every run that was ever submitted, its newest array and the index of its element there."""
    return {
        run: (array, index)
        for array in arrays
        for index, element in enumerate(array.elements)
        for run in element
    }
