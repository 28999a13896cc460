"""One run in a process of its own, so that its crash is its own and several can go side by side."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness.run.folder import RunFolder
from harness.storage.locks import drop_inherited
from harness.training.job import BUSY, run_job

END_S = 60.0  # a run that was told to stop gets this long to save its checkpoint
LEASE_S = 30.0  # an attempt that just lost its node may hold the lease this long
LEASE_POLL_S = 0.5


def start_child(
    run: RunFolder, cache: Path, *, asked: Callable[[], bool] = lambda: False, gpu: str | None = None
) -> BaseProcess:
    """Train `run` in a forked process, which starts in milliseconds because torch is imported already.

    `asked` says whether the parent had been told to stop before the child could listen itself. `gpu` is the
    one device that it shall see.
    """
    child = multiprocessing.get_context("fork").Process(target=_child, args=(run.path, cache, asked, gpu))
    child.start()
    return child


def end_child(child: BaseProcess) -> None:
    """Stop a child: SIGTERM, on which the run saves a checkpoint, and SIGKILL when that takes too long."""
    child.terminate()
    child.join(END_S)
    if child.is_alive():
        child.kill()
        child.join()


def record_kill(run: RunFolder, exitcode: int, *, out_of_memory: bool = False) -> None:
    """Write down that the process of a run was killed: it could not do so itself."""
    reason = f"killed by signal {-exitcode}" + ("" if out_of_memory else " (out of memory?)")
    status = run.status()
    if status.state != "done":
        run.set_status(status.failed("oom" if out_of_memory else "lost", reason))


def _child(path: Path, cache: Path, asked: Callable[[], bool], gpu: str | None) -> None:
    drop_inherited()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    RunFolder(path).ensure_created()
    (path / "logs").mkdir(exist_ok=True)
    log = (path / "logs" / "output.txt").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    parent = os.getppid()

    def stop() -> bool:
        return asked() or os.getppid() != parent

    until = time.monotonic() + LEASE_S
    while run_job(path, cache, stop=stop) == BUSY and time.monotonic() < until and not stop():
        time.sleep(LEASE_POLL_S)
