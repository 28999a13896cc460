"""Job arrays that follow others: what starts from a trunk's segment waits in the queue for it alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from sweeps.backends.job_array import JobArray, chunks

Make = Callable[[list[list[str]], JobArray, int | None], JobArray]  # elements, the array before, its element


def follow(roots: list[JobArray], parents: Mapping[str, str], make: Make) -> list[JobArray]:
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
        fresh = list(_next(before, children, make))
        made += fresh
        queue += fresh
    return made


def _next(before: JobArray, children: Mapping[str, list[str]], make: Make) -> Iterator[JobArray]:
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


def by_followers(names: list[str], parents: Mapping[str, str]) -> list[str]:
    """Sort names so that those with most behind them come first: then their arrays have no gaps."""
    behind: Counter[str] = Counter()
    for name in parents:
        at = name
        while at := parents.get(at, ""):
            behind[at] += 1
    return sorted(names, key=lambda name: -behind[name])


def shared_out(arrays: list[JobArray], array_parallelism: int) -> list[JobArray]:
    """Let the arrays of one shape and generation share the cap on jobs at once, by their sizes.

    Generations come one after the other, so each has the whole cap. An array has one job at least.
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
