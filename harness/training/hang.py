"""A watch on the progress of training: a process that hangs ends, so that its run can resume."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Self

from harness.run.folder import RunFolder

TIMES_MEDIAN = 20  # a step is lost after so many median steps, but not before `guardrails.hang_s`
TIMES_FIRST = 3  # the first step, which may compile, has so many times `guardrails.hang_s`
EXIT_CODE = 70
_WINDOW = 50  # steps whose median counts


class HangWatch:
    """Call `hung` with a sentence, from a thread, if the time between two beats is too long.

    A context manager. Time in which this process is stopped, as by a scheduler that suspends its job, does
    not count.
    """

    def __init__(self, at_least_s: float, hung: Callable[[str], None]) -> None:
        self._at_least_s, self._hung = at_least_s, hung
        self._steps: deque[float] = deque(maxlen=_WINDOW)
        self._idle_s, self._beats = 0.0, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def limit_s(self) -> float:
        """Return how long the next beat may take."""
        if not self._steps:
            return TIMES_FIRST * self._at_least_s
        return max(self._at_least_s, TIMES_MEDIAN * median(self._steps))

    def beat(self) -> None:
        """Count a step that is done."""
        self._steps.append(self._idle_s)
        self._idle_s = 0.0
        self._beats += 1

    def _watch(self) -> None:
        tick_s = min(1.0, self._at_least_s / 10)
        last = time.monotonic()
        while not self._ended.wait(tick_s):
            now = time.monotonic()
            self._idle_s += min(now - last, 2 * tick_s)
            last = now
            if self._idle_s > (limit := self.limit_s):
                self._hung(f"no step within {limit:.0f} s after {self._beats} steps of this attempt")
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()


def end_hung(folder: RunFolder, attempt: int, rank: int, reason: str) -> None:
    """Write the stacks of all threads and the status, then end this process, whose step may never return."""
    try:
        logs = folder.path / "logs"
        logs.mkdir(exist_ok=True)
        path = logs / f"hang_{attempt}_process_{rank}.txt"
        with path.open("w", encoding="utf-8") as handle:
            faulthandler.dump_traceback(handle, all_threads=True)
        status = folder.status()
        if status.state == "running":  # the first process to find out says so
            folder.set_status(status.failed("hang", f"process {rank}: {reason}; its stacks are in {path}"))
    finally:  # also where the disk is full: what stays would hang for ever
        os._exit(EXIT_CODE)
