"""Runs grouped into job arrays: one array for each resource shape, and after it what waits for its runs."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from sweeps.backends.job_array import JobArray
from sweeps.config.cluster import Resources

T = TypeVar("T")
Make = Callable[[list[list[str]], JobArray, int | None], JobArray]  # elements, the array before, its element


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

    An array's token is a hash of its runs and of `seed`, which differs from launch to launch; a dry run names
    the files that the launch will write.
    """
    shapes: dict[str, tuple[Resources, list[str]]] = {}
    for run, resources in runs:
        shapes.setdefault(repr(resources), (resources, []))[1].append(run)
    arrays: list[JobArray] = []
    for resources, names in shapes.values():
        for elements in chunks(list(chunks(names, resources.runs_per_job)), max_array):
            arrays.append(
                JobArray(
                    token=make_token(seed, len(arrays), elements),
                    sweep=sweep,
                    elements=elements,
                    resources=resources,
                    snapshot=snapshot,
                    array_parallelism=array_parallelism,
                    exclude=exclude,
                )
            )
    return arrays


def make_token(seed: str, number: int, elements: list[list[str]]) -> str:
    """Return the token of the array of this number in a launch."""
    text = "\n".join([seed, str(number), *itertools.chain.from_iterable(elements)])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def following_arrays(roots: list[JobArray], parents: Mapping[str, str], make: Make) -> list[JobArray]:
    """Return the arrays of everything that waits, by `parents`, for a run of `roots`, however far down.

    Element i of an array waits for element i of the one before it: one array takes a whole generation, from
    the first element on without a gap. What is left over waits for its one element in an array of its own.
    """
    children: dict[str, list[str]] = {}
    for name, parent in parents.items():
        children.setdefault(parent, []).append(name)
    made: list[JobArray] = []
    queue = list(roots)
    while queue:
        before = queue.pop(0)
        fresh = list(_next_generation(before, children, make))
        made += fresh
        queue += fresh
    return made


def _next_generation(before: JobArray, children: Mapping[str, list[str]], make: Make) -> Iterator[JobArray]:
    size = before.resources.runs_per_job
    waiting = [
        list(chunks([name for run in element for name in children.get(run, [])], size))
        for element in before.elements
    ]
    for turn in range(max(map(len, waiting), default=0)):
        here = [own[turn] if len(own) > turn else [] for own in waiting]
        aligned = list(itertools.takewhile(bool, here))
        if aligned:
            yield make(aligned, before, None)
        for index in range(len(aligned), len(here)):
            if here[index]:
                yield make([here[index]], before, index)


def most_followed_first(names: list[str], parents: Mapping[str, str]) -> list[str]:
    """Sort names by how many others wait for them, the most first: then their arrays have no gaps."""
    behind: Counter[str] = Counter()
    for name in parents:
        at = name
        while at := parents.get(at, ""):
            behind[at] += 1
    return sorted(names, key=lambda name: -behind[name])


def share_cap(arrays: list[JobArray], array_parallelism: int) -> list[JobArray]:
    """Divide the cap on simultaneous jobs among the arrays of one shape and generation, by their sizes.

    Generations follow each other, so each has the whole cap. An array may run at least one job.
    """
    depths: dict[str, int] = {}
    for array in arrays:  # each after the one that it waits for
        depths[array.token] = depths.get(array.after, -1) + 1
    groups = [(repr(array.resources), depths[array.token]) for array in arrays]
    sizes: Counter[tuple[str, int]] = Counter()
    for group, array in zip(groups, arrays, strict=True):
        sizes[group] += len(array.elements)
    return [
        dataclasses.replace(array, array_parallelism=max(1, _part(array_parallelism, array, sizes[group])))
        for group, array in zip(groups, arrays, strict=True)
    ]


def _part(cap: int, array: JobArray, jobs: int) -> int:
    return cap if jobs <= cap else cap * len(array.elements) // jobs
