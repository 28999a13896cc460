"""A sweep that something happens to, and what the commands say about it."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import loopscale
from harness.run.folder import RunFolder
from harness.run.metrics import last_metrics
from sweeps.backends.job_array import read_array
from sweeps.state.ended_jobs import attempts_of
from sweeps.state.status import status
from tests.waiting import wait_for

from .cluster import Daemons
from .conftest import Sweep, fault, slurm
from .sites import Site

STEP_S = 0.2
MARGIN = 25  # a run that has fewer steps left may end before something happens to it


class Scene:
    """A launched sweep on a site, what was done to it, what was said of it, and what of that is wrong."""

    def __init__(self, made: Sweep, site: Site, trace: Path, steps: int, draw: random.Random) -> None:
        self.made, self.site, self.trace, self.steps, self.draw = made, site, trace, steps, draw
        self.made.overrides.append(self.fault())
        self.daemons = Daemons(site)
        self.did: list[str] = []
        self.said: list[str] = []
        self.wrong: list[str] = []

    def fault(self, what: str = f"slow={STEP_S}") -> str:
        """Return the override that slows the jobs down, or another fault; what they train is noted."""
        return fault(f"{what},trace={self.trace}")

    def clear(self) -> None:
        """Cancel what is left of the sweep."""
        jobs = {line.split("|")[1].partition("_")[0] for line in self.made.queue()}
        if jobs:
            slurm("scancel", *jobs)

    def begin(self) -> None:
        """Forget what was noted of the event before."""
        self.did, self.said, self.wrong = [], [], []

    def do(self, what: str) -> None:
        self.did.append(what)

    def says(self, text: str, true: object, truth: str) -> None:
        """Note what was said; `true` says whether it is, and `truth` what should be said."""
        self.said.append(" ".join(text.split())[:300])
        if not true:
            self.wrong.append(f"should say {truth}")

    def ask(self, command: str, *more: str) -> str:
        """Return what a command on this sweep prints."""
        own = [f"root={self.made.root}", f"sweep={self.made.name}"]
        own = self.made.overrides if command == "launch" else own
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                loopscale.main([command, *own, *more])
            except SystemExit as end:
                out.write("" if isinstance(end.code, int | None) else end.code)
        return out.getvalue()

    def row(self, number: int) -> dict[str, Any]:
        """Return the run's row of the status."""
        rows = status(self.made.folder).rows
        return next(row for row in rows if row["run_id"] == self.made.run(number).run_id)

    def step(self, number: int) -> int:
        return int(last_metrics(self.made.run(number).metrics).get("step", 0))

    def victim(self) -> int | None:
        """Return a run at work that has made some more steps and has more to make; None if none is left."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            open_runs = [n for n, run in enumerate(self.made.runs()) if run.status().state != "done"]
            early = [n for n in open_runs if self.step(n) < self.steps - MARGIN]
            if not early:
                return None
            at_work = [n for n in early if self.is_at_work(n)]
            if at_work:
                number = self.draw.choice(at_work)
                target = self.step(number) + self.draw.randrange(2, 10)
                while self.is_at_work(number) and time.monotonic() < until:
                    if self.step(number) >= target:
                        return number
                    time.sleep(0.05)
            elif not self.made.queue():
                self.launch()
            time.sleep(0.2)
        raise TimeoutError(f"nothing is at work: {self.made.states()} {self.made.queue()}")

    def is_at_work(self, number: int) -> bool:
        run = self.made.run(number)
        return run.is_held() and run.status().state == "running" and self.step(number) > 0

    def launch(self, *more: str) -> str:
        """Launch, hold what it says against what it submitted, and every run against the queue."""
        before = set(self.made.batches())
        text = self.ask("launch", *more)
        arrays = [read_array(path.parent) for path in set(self.made.batches()) - before]
        count = sum(len(array.runs) for array in arrays)
        said = re.search(r"submitted (\d+) runs?: ", text)
        if (int(said[1]) if said else 0) != count:
            self.says(text, False, f"that {count} runs were submitted")
        live = Counter(self.live())
        if live and max(live.values()) > 1:
            self.says(str(live), False, "every run once in the queue")
        return text

    def live(self) -> list[str]:
        """Return the runs of the elements in the queue."""
        arrays = {array.name: array for array in (read_array(p.parent) for p in self.made.batches())}
        lines = slurm("squeue", "-h", "-r", "-t", "PD,R,S,CF,RH", "-o", "%j|%K").splitlines()
        parts = [line.split("|") for line in lines if line.partition("|")[0] in arrays]
        return [run for name, index in parts if index.isdigit() for run in arrays[name].elements[int(index)]]

    def stop(self) -> None:
        """Cancel the sweep and wait until nothing of it is left in the queue."""
        text = self.ask("cancel")
        self.made.wait_until_idle(120)
        wait_for(lambda: not any(run.is_held() for run in self.made.runs()), 60)
        self.do(f"cancel ({text.count('cancelled ')} jobs)")

    def pids(self, number: int) -> list[int]:
        """Return the job's process that looks after the run, and the run's own."""
        task = attempts_of(self.made.run(number))[-1]["pid"]
        children = Path(f"/proc/{task}/task/{task}/children").read_text().split()
        return [task, *map(int, children)]

    def wait_for_attempt(self, number: int, attempts: int, seconds: float = 120) -> None:
        """Wait until the run is in a further attempt, or its job is gone for good."""

        def moved() -> bool:
            return self.made.run(number).status().attempts > attempts or not self.made.queue()

        wait_for(moved, seconds, lambda: f"for attempt {attempts + 1}: {self.made.states()}")

    def gone(self, number: int) -> None:
        """Wait until no process holds the run and its element has left the queue."""
        run: RunFolder = self.made.run(number)
        wait_for(lambda: not run.is_held() and run.run_id not in self.live(), 120)


def kill(*pids: int, number: int = signal.SIGKILL) -> None:
    """Signal processes, of which some may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def output_of(process: subprocess.Popen, log: Path, start: int) -> str:
    """Wait for a process and return what it has written to its log since `start`."""
    process.wait(180)
    return log.read_bytes()[start:].decode(errors="replace")


def summary(text: str) -> str:
    """Return the line of a status that counts and advises."""
    return next((line for line in text.splitlines() if re.search(r" runs?: ", line)), text[-200:])
