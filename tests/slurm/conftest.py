"""A real SLURM cluster under the tests: `make slurm-up`, `make test-slurm`, `make slurm-down`.

Collected only where LOOPSCALE_SLURM is set; there a cluster that is not up is an error, never a skip.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import loopscale
from harness.run.folder import Status
from harness.run.metrics import read_metrics
from sweeps.state.ledger import read_ledger
from tests.waiting import wait_for

from .cluster import Daemons
from .sites import Site

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

collect_ignore_glob = [] if os.environ.get("LOOPSCALE_SLURM") else ["test_*.py"]


def pytest_sessionfinish(session):
    """Fail where a test of the cluster was skipped: the gate must not pass without them."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("LOOPSCALE_SLURM") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items):
    """Put the longest first, and last what needs a cluster to itself, whose waiting holds up a worker."""

    def place(item):
        return item.get_closest_marker("alone") is not None, item.get_closest_marker("longest") is None

    items.sort(key=place)


@pytest.fixture(scope="session")
def site() -> Site:
    """The main cluster, checked to answer."""
    main = Site.from_environment()
    os.environ["SLURM_CONF"] = str(main.conf)
    wait_for(lambda: _answers("sinfo", "-h", "-o", "%D"), 30, lambda: "for the cluster: make slurm-up")
    return main


@contextmanager
def turn(site: Site, *, alone: bool) -> Iterator[None]:
    """Wait for a turn at the cluster: tests run side by side, but one that disturbs it runs alone."""
    with (site.root / "turn").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@pytest.fixture(autouse=True)
def _turn(request, site):
    with turn(site, alone=request.node.get_closest_marker("alone") is not None):
        yield


@pytest.fixture
def daemons(site) -> Iterator[Daemons]:
    """The cluster's processes; whatever a test does to them, the next one finds them running."""
    found = Daemons(site)
    yield found
    found.start_controller()
    for node in site.nodes:
        found.start_node(node)


@pytest.fixture
def strict_site(site, monkeypatch) -> Site:
    """The second cluster, which this process's commands reach during a test."""
    strict = site.second()
    monkeypatch.setenv("SLURM_CONF", str(strict.conf))
    wait_for(lambda: _answers("sinfo", "-h", "-o", "%D"), 30, lambda: "for the cluster: make slurm-up")
    return strict


def slurm(*command: str) -> str:
    """Return what a SLURM command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _answers(*command: str) -> bool:
    """Return True if a SLURM command succeeds and prints something."""
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0 and bool(done.stdout.strip())


def eventually(read, expected, seconds: float = 60.0) -> None:
    """Read a value that arrives through another process until it is the expected one, for `seconds` at most.

    Accounting lags behind the queue: sacct may know a job that has ended as running, or only a part of it.
    """
    seen = []

    def arrived() -> bool:
        seen[:] = [read()]
        return seen == [expected]

    wait_for(arrived, seconds, lambda: f"for {expected!r}, last seen: {seen[0]!r}")


class Sweep:
    """A sweep of tiny runs on the cluster, driven as a user drives it."""

    def __init__(self, root: Path, corpus: Path, cache: Path, name: str, *overrides: str) -> None:
        self.root, self.name, self.folder = root, name, root / name
        self.overrides = [
            f"root={root}", f"cache={cache}", "data=text", f"path={corpus}", "data.vocabulary_size=300",
            "data.validation_fraction=0.2", "model=looped_40k", "model.sequence_length=32",
            "training.batch_sequences=4", "training.threads=1", "training.log_every=1",
            "training.checkpoint_every_s=0.5", "evaluation.blocks=8", "evaluation.max_depth=4",
            "sweep.min_steps=5", "cluster=slurm", "cluster.signal_s=30", "confirm=false",
            f"sweep.name={name}", *overrides,
        ]  # fmt: skip

    def launch(self, *more: str):
        return loopscale.launch([*self.overrides, *more])

    def launch_process(self, *more: str, **environment: str) -> subprocess.Popen:
        """Launch from a terminal of its own."""
        command = [sys.executable, "-m", "loopscale", "launch", *self.overrides, *more]
        with (self.root.parent / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log)

    def status(self):
        return loopscale.status([f"root={self.root}", f"sweep={self.name}"]).set_index("run_id")

    def runs(self):
        return read_ledger(self.folder).runs(self.folder)

    def run(self, number: int = 0):
        return self.runs()[number]

    def wait_for_step(self, step: int, number: int = 0) -> None:
        wait_for(lambda: self.folder.exists() and len(read_metrics(self.run(number).metrics)) >= step)

    def wait_until_idle(self, seconds: float = 900.0) -> None:
        """Wait until SLURM has no job of this sweep any more."""
        wait_for(lambda: not self.queue(), seconds, lambda: f"for {self.name}: {self.queue()}")

    def queue(self) -> list[str]:
        lines = slurm("squeue", "-h", "-r", "-o", "%j|%i|%T %r").splitlines()
        stuck = "launch failed requeued held"  # for ever, so launch is asked to deal with it
        return [line for line in lines if line.startswith(f"{self.name}-") and stuck not in line]

    def element(self, number: int = 0) -> str:
        """Return the SLURM id of the array element that trains a run."""
        return str(self.status().loc[self.run(number).run_id, "job"]).partition(":")[2]

    def batches(self) -> list[Path]:
        return sorted(self.folder.glob("jobs/*/batch.json"))

    def finish(self, *, again: bool = True) -> None:
        """Wait for the end, launching again whenever SLURM has nothing left to do."""
        until = time.monotonic() + 600
        self.wait_until_idle()
        while again and not self.is_done():
            assert time.monotonic() < until, self.states()
            self.launch()
            time.sleep(1)
            self.wait_until_idle()
        wait_for(self.is_done, 60, lambda: f"for the ends of {self.states()}")

    def states(self) -> list[Status]:
        return [run.status() for run in self.runs()]

    def is_done(self) -> bool:
        return all(status.state == "done" for status in self.states())

    def losses(self) -> dict[str, list[float]]:
        """Return what was computed, by run: every training loss, the validation loss, the depth curve."""
        return {
            run.run_id: [line["train_loss_nats"] for line in read_metrics(run.metrics)]
            + [run.record()["val_loss_nats"]]
            + [row["val_loss_nats"] for row in json.loads(run.depth_curve.read_text())]
            for run in self.runs()
        }


EVENT = ["sweep.mean_recurrences=[2]", "sweep.control=none", "sweep.seeds=[0,1]", "sweep.tokens=[7680]"]


def fault(what: str) -> str:
    """Return the override that gives jobs a fault."""
    lines = f'["export PYTHONPATH={HERE / "faults"}","export LOOPSCALE_FAULT=\\"{what}\\""]'
    return f"cluster.setup={lines}"


@pytest.fixture(scope="session")
def data(corpus, cache):
    return corpus, cache


@pytest.fixture
def sweep(site, data, tmp_path):
    """Make a sweep of this test's own; what is left of it is cancelled."""
    made: list[Sweep] = []

    def make(name: str, *overrides: str) -> Sweep:
        made.append(Sweep(tmp_path / "runs", *data, name, *overrides))
        return made[-1]

    yield make
    for each in made:
        jobs = {line.split("|")[1].partition("_")[0] for line in each.queue()}
        if jobs:
            slurm("scancel", *jobs)


def undisturbed(root: Path, data: tuple[Path, Path], *overrides: str) -> dict[str, list[float]]:
    """Return the losses of a sweep that nothing disturbs: one run after the other in a worker here."""
    made = Sweep(root, *data, "undisturbed", *overrides, "cluster=local", "cluster.parallel_runs=1")
    made.launch()
    wait_for(made.is_done, 400)
    return made.losses()


@pytest.fixture(scope="session")
def calm(data, tmp_path_factory) -> dict[str, list[float]]:
    """The losses of the runs of EVENT in a sweep that nothing disturbs."""
    return undisturbed(tmp_path_factory.mktemp("calm"), data, *EVENT)
