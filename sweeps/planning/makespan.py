"""Time to solution: how long jobs take on so many workers, each after the one that it starts from."""

from __future__ import annotations

import heapq
from collections.abc import Mapping


def makespan(lengths: Mapping[str, float], parents: Mapping[str, str], workers: int) -> float:
    """Return when the last job ends if every free worker takes the first job in order that can start.

    `lengths` are in any unit of time, in the order of preference; `parents` names the job that each job waits
    for. A parent that has no length is done already.
    """
    children: dict[str, list[str]] = {}
    rank = {name: number for number, name in enumerate(lengths)}
    ready: list[int] = []
    for name, number in rank.items():
        if parents.get(name, "") in lengths:
            children.setdefault(parents[name], []).append(name)
        else:
            heapq.heappush(ready, number)
    names = list(lengths)
    busy: list[tuple[float, int]] = []
    now = 0.0
    while ready or busy:
        while ready and len(busy) < workers:
            number = heapq.heappop(ready)
            heapq.heappush(busy, (now + lengths[names[number]], number))
        now, number = heapq.heappop(busy)
        for child in children.get(names[number], ()):
            heapq.heappush(ready, rank[child])
    return now
