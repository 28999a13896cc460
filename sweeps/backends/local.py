"""The local pool: worker processes on this machine that take a sweep's open runs by themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from harness.data.encoding import available_cores
from harness.storage.files import is_held, locked_for_child
from model.config_validation import ConfigError
from sweeps.backends.base import Backend, Elements
from sweeps.backends.job_array import JobArray
from sweeps.backends.registry import environment_outside_jobs
from sweeps.config.gpus import gpu_of, visible_gpus

WORKER = "sweeps.workers.local_pool"  # the module that every worker process runs
ROOT = Path(__file__).resolve().parents[2]
_DETACHED: list[subprocess.Popen[bytes]] = []  # workers that outlive this process, which never waits for them


class LocalPool(Backend):
    """Worker processes on this machine, each of which trains one run at a time."""

    display_name = "the local pool"
    pulls_runs = True
    has_job_files = False
    max_array = 0

    @property
    def name(self) -> str:
        return self.config.name or "local"

    @property
    def size(self) -> int:
        """Return the number of workers: by default one per GPU, or as many runs as the CPU cores hold."""
        fitting = len(visible_gpus()) or max(1, available_cores() // self.config.threads_per_run)
        return self.config.parallel_runs or fitting

    def submit(self, sweep: Path, array: JobArray, version: str) -> str:
        raise ConfigError("the local pool takes no job arrays: its workers find the open runs by themselves")

    def find(self, name: str) -> str | None:
        return None

    def states(self, arrays: Iterable[JobArray], *, patient: bool = True) -> Elements:
        return {}

    def cancel(self, jobs: Iterable[str]) -> None:
        """Stop worker processes; the run of each saves a checkpoint first."""
        for pid in jobs:
            os.kill(int(pid), signal.SIGTERM)

    def concurrency(self, scales: Iterable[str]) -> list[tuple[set[str], int]]:
        return [(set(scales), self.size)]

    def start_workers(self, sweep: Path, *, owner: int | None = None) -> list[subprocess.Popen[bytes]]:
        folder = sweep.resolve()
        environment = environment_outside_jobs() | {"OMP_NUM_THREADS": str(self.config.threads_per_run)}
        workers = []
        for number in range(self.size):
            gpu, at = gpu_of(number, self.size), slot(folder, number)
            own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
            # Its slot is held from now on: a worker takes seconds to import torch.
            with (folder / f"worker_{number}.log").open("ab") as log, locked_for_child(at) as lock:
                arguments = (folder, number, owner or 0, lock or 0)
                worker = subprocess.Popen(
                    [sys.executable, "-m", WORKER, *map(str, arguments)],
                    cwd=ROOT,
                    env=environment | own,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=() if lock is None else (lock,),
                )
                if lock is not None:
                    at.with_suffix(".pid").write_text(str(worker.pid))
                workers.append(worker)
        if owner is None:
            _DETACHED.extend(workers)
        return workers

    def workers(self, sweep: Path) -> list[str]:
        return [
            pid
            for path in sweep.glob(".worker_*.pid")
            if is_held(path.with_suffix(".lock")) and is_alive(int(pid := path.read_text(encoding="utf-8")))
        ]

    def is_working(self, sweep: Path) -> bool:
        return any(is_held(path) for path in sweep.glob(".worker_*.lock"))


def is_alive(pid: int) -> bool:
    """Return True if a process of this machine has the pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def slot(folder: Path, number: int) -> Path:
    """Return the lock file that the worker of this number holds while it works on the sweep in `folder`."""
    return folder / f".worker_{number}.lock"
