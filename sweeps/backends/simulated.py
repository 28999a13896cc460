"""A scripted cluster for rehearsals and tests: queue delays, failures and preemption in simulated time."""

from __future__ import annotations

import dataclasses
import heapq
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from sweeps.backends.base import Backend, Elements, JobElement, JobState
from sweeps.backends.job_array import JobArray, element_id
from sweeps.config.cluster import ClusterConfig

# How a job ends whose run fails in a class; a run that knows its class records it itself.
STATES = {
    "oom": JobState.OUT_OF_MEMORY,
    "timeout": JobState.TIMEOUT,
    "preempted": JobState.PREEMPTED,
    "node_failure": JobState.NODE_FAILURE,
}
Train = Callable[[str, str], object]  # run id, failure class or ""


class SimulatedCluster(Backend):
    """A cluster whose jobs happen in `step`; everything is a function of the script's seed.

    Parameters
    ----------
    config : profile with the script, in `config.fake`.
    train : stands in for a run: called with the run's id and the failure class of the attempt ("" for a good
        end), it writes what a real attempt would have left in the folder.
    """

    display_name = "the simulated cluster"
    simulated = True
    has_job_files = False
    name = "fake"
    max_array = 1001

    def __init__(self, config: ClusterConfig, train: Train = lambda run, failure: None) -> None:
        super().__init__(config)
        self.script = config.fake
        self.train = train
        self.now_s = 0.0
        self.jobs: dict[str, str] = {}  # ids by name
        self.submissions = 0
        self.elements: Elements = {}
        self._waiting: list[tuple[float, int, JobArray, int]] = []  # by the time they may start
        self._running: list[tuple[float, int, JobArray, int, str]] = []  # by the time they end
        self._blocked: dict[tuple[str, int], list[tuple[float, JobArray, int]]] = {}
        self._count = 0

    def job_file(self, sweep: Path, array: JobArray, version: str) -> str:
        """Return a line in place of a job file."""
        return f"# {array.name}: {len(array.elements)} simulated jobs"

    def submit(self, sweep: Path, array: JobArray, version: str) -> str:
        job_id = str(len(self.jobs) + 1)
        self.jobs[array.name] = job_id
        self.submissions += 1
        draw = random.Random(f"{self.script.seed} {array.name}")
        for index in range(len(array.elements)):
            self.elements[array.name, index] = JobElement(
                state=JobState.QUEUED, reason="Priority", job_id=job_id
            )
            ready = self.now_s + draw.uniform(0.5, 1.5) * self.script.queue_s
            heapq.heappush(self._waiting, (ready, self._next(), array, index))
        return job_id

    def find(self, name: str) -> str | None:
        return self.jobs.get(name)

    def states(self, arrays: Iterable[JobArray], *, patient: bool = True) -> Elements:
        names = {array.name for array in arrays}
        return {place: element for place, element in self.elements.items() if place[0] in names}

    def cancel(self, jobs: Iterable[str]) -> None:
        ids = set(jobs)
        for place, element in self.elements.items():
            if element.is_live and element_id(element.job_id, place[1]) in ids:
                self._set_state(place, JobState.CANCELLED)

    def concurrency(self, scales: Iterable[str]) -> list[tuple[set[str], int]]:
        return [(set(scales), self.script.slots)]

    def step(self) -> bool:
        """Let the next thing happen; return False if nothing is queued or running."""
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
        if not array.after or self.elements[before].state is JobState.DONE:
            self._start(start_s, array, index)
        elif self.elements[before].is_live:
            self._blocked.setdefault(before, []).append((start_s, array, index))
        else:
            self._set_state((array.name, index), JobState.CANCELLED)

    def _start(self, start_s: float, array: JobArray, index: int) -> None:
        node = f"node{self._next() % self.script.slots}"
        element = self.elements[array.name, index]
        self.elements[array.name, index] = dataclasses.replace(element, state=JobState.RUNNING, node=node)
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
            self.train(run, failure)
        state = STATES.get(failure, JobState.FAILED) if failure else JobState.DONE
        self._set_state((array.name, index), state)

    def _set_state(self, place: tuple[str, int], state: JobState) -> None:
        """End an element and look again at those that wait for it."""
        self.elements[place] = dataclasses.replace(self.elements[place], state=state)
        for ready, array, index in self._blocked.pop(place, []):
            heapq.heappush(self._waiting, (ready, self._next(), array, index))

    def _next(self) -> int:
        self._count += 1
        return self._count
