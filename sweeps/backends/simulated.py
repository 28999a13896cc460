"""A scripted cluster for rehearsals and tests: queue delays, failures, preemption, in simulated time."""

from __future__ import annotations

import dataclasses
import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sweeps.backends.base import Elements, JobElement
from sweeps.backends.job_array import JobArray
from sweeps.config.cluster import FakeConfig

# What the real scheduler would say of a job that ended so; code errors and the like are the run's own word.
STATES = {
    "oom": "OUT_OF_MEMORY",
    "timeout": "TIMEOUT",
    "preempted": "PREEMPTED",
    "node_failure": "NODE_FAIL",
    "lost": "FAILED",
}
Train = Callable[[str, str], None]  # run id, failure class or ""


@dataclass(kw_only=True)
class SimulatedCluster:
    """Behaves as `sweeps.backends.base.Scheduler`; `step` lets its jobs happen.

    `train` stands in for a run: it is told the run and how the attempt shall end, and writes what a real
    attempt would have left in the folder. Everything is a function of the script's seed.
    """

    script: FakeConfig
    train: Train
    max_array: int = 1001
    name: str = "fake"
    now_s: float = 0.0
    jobs: dict[str, str] = field(default_factory=dict)  # ids by name
    submissions: int = 0
    elements: Elements = field(default_factory=dict)
    _waiting: list[tuple[float, int, JobArray, int]] = field(
        default_factory=list
    )  # by the time they may start
    _running: list[tuple[float, int, JobArray, int, str]] = field(
        default_factory=list
    )  # by the time they end
    _blocked: dict[tuple[str, int], list[tuple[float, JobArray, int]]] = field(default_factory=dict)
    _count: int = 0
    _attempts: dict[str, int] = field(default_factory=dict)

    def job_file(self, sweep: Path, array: JobArray, version: str) -> str:
        """Return a line in place of a job file."""
        return f"# {array.name}: {len(array.elements)} simulated jobs"

    def submit(self, sweep: Path, array: JobArray, version: str) -> str:
        """Queue an array."""
        job_id = str(len(self.jobs) + 1)
        self.jobs[array.name] = job_id
        self.submissions += 1
        draw = random.Random(f"{self.script.seed} {array.name}")
        for index in range(len(array.elements)):
            self.elements[array.name, index] = JobElement(state="PENDING", reason="Priority", job_id=job_id)
            ready = self.now_s + draw.uniform(0.5, 1.5) * self.script.queue_s
            heapq.heappush(self._waiting, (ready, self._next(), array, index))
        return job_id

    def find(self, name: str) -> str | None:
        """Return the id of the array of that name."""
        return self.jobs.get(name)

    def states(self, arrays: Iterable[JobArray], *, patient: bool = True) -> Elements:
        """Return the state of every element of the arrays."""
        names = {array.name for array in arrays}
        return {place: element for place, element in self.elements.items() if place[0] in names}

    def cancel(self, jobs: Iterable[str]) -> None:
        """Take elements out of the queue."""
        gone = set(jobs)
        for place, element in self.elements.items():
            if element.is_live and f"{element.job_id}_{place[1]}" in gone:
                self._set_state(place, "CANCELLED by 0")

    def step(self) -> bool:
        """Let the next thing happen; says False when nothing is queued or running."""
        if self._waiting and len(self._running) < self.script.slots:
            ready, _, array, index = heapq.heappop(self._waiting)
            if self.elements[array.name, index].is_live:
                self._start_or_block(max(ready, self.now_s), array, index)
            return True
        if not self._running:
            return False
        self.now_s, _, array, index, failure = heapq.heappop(self._running)
        self._end(array, index, failure)
        return True

    def _start_or_block(self, start_s: float, array: JobArray, index: int) -> None:
        """Start an element, unless the one that it comes after is not done yet or never will be."""
        first = array.after_index if array.after_index is not None else index
        before = (f"{array.sweep}-{array.after}", first)
        if not array.after or self.elements[before].state == "COMPLETED":
            self._start(start_s, array, index)
        elif self.elements[before].is_live:
            self._blocked.setdefault(before, []).append((start_s, array, index))
        else:
            self._set_state((array.name, index), "CANCELLED by 0")

    def _start(self, start_s: float, array: JobArray, index: int) -> None:
        node = f"node{self._next() % self.script.slots}"
        element = self.elements[array.name, index]
        self.elements[array.name, index] = dataclasses.replace(element, state="RUNNING", node=node)
        draw = random.Random(f"{self.script.seed} {array.name} {index}")
        chance, failure = draw.random(), ""
        for name, share in self.script.failures.items():
            if 0 <= chance < share:
                failure = name
            chance -= share
        end_s = start_s + draw.uniform(0.5, 1.5) * self.script.run_s * (draw.random() if failure else 1)
        heapq.heappush(self._running, (end_s, self._next(), array, index, failure))

    def _end(self, array: JobArray, index: int, failure: str) -> None:
        for run in array.elements[index]:
            self._attempts[run] = self._attempts.get(run, 0) + 1
            self.train(run, failure)
        self._set_state((array.name, index), STATES.get(failure, "FAILED") if failure else "COMPLETED")

    def _set_state(self, place: tuple[str, int], state: str) -> None:
        """End an element and look again at those that wait for it."""
        self.elements[place] = dataclasses.replace(self.elements[place], state=state)
        for ready, array, index in self._blocked.pop(place, []):
            heapq.heappush(self._waiting, (ready, self._next(), array, index))

    def _next(self) -> int:
        self._count += 1
        return self._count
