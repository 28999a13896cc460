"""One run in its own process: its crash ends nothing else, and several runs go on side by side."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness.run.folder import RunFolder
from harness.storage.files import drop_inherited
from harness.training.job import BUSY, run_job

END_S = 60.0  # a run that was asked to stop has this long to save its checkpoint
LEASE_S = 30.0  # an attempt that just lost its node may hold the lease this long
LEASE_POLL_S = 0.5


def start_child(
    run: RunFolder,
    cache: Path,
    *,
    stop_requested: Callable[[], bool] = lambda: False,
    gpu: str | None = None,
) -> BaseProcess:
    """Train `run` in a forked process, which starts in milliseconds because torch is imported already.

    Parameters
    ----------
    stop_requested : whether the parent was asked to stop before the child could listen for signals itself.
    gpu : the one device that the child is to see, None for all.
    """
    arguments = (run.path, cache, stop_requested, gpu)
    child = multiprocessing.get_context("fork").Process(target=_child, args=arguments)
    child.start()
    return child


def end_child(child: BaseProcess) -> None:
    """Stop a child: SIGTERM, on which the run saves a checkpoint, then SIGKILL if that takes too long."""
    child.terminate()
    child.join(END_S)
    if child.is_alive():
        child.kill()
        child.join()


def record_kill(run: RunFolder, exitcode: int, *, out_of_memory: bool = False, alone: bool = True) -> None:
    """Write to a run's status that its process was killed, which it could not do itself.

    One of several ranks that aborts has waited too long for another one, which may have said why: the
    watchdog of NCCL raises no error.
    """
    status = run.status()
    aborted = exitcode == -signal.SIGABRT and not alone and not out_of_memory
    if status.state == "done" or (aborted and status.state == "failed"):
        return
    if aborted:
        message = "aborted after a failed exchange with another rank; see logs/output.txt"
        run.set_status(status.failed("node_failure", message))
        return
    reason = f"killed by signal {-exitcode}" + ("" if out_of_memory else " (out of memory?)")
    run.set_status(status.failed("oom" if out_of_memory else "lost", reason))


def _child(path: Path, cache: Path, stop_requested: Callable[[], bool], gpu: str | None) -> None:
    drop_inherited()
    gc.freeze()  # what the parent imported stays; garbage is searched for among new objects alone
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    RunFolder(path).ensure_created()
    (path / "logs").mkdir(exist_ok=True)
    log = (path / "logs" / "output.txt").open("a", buffering=1, encoding="utf-8")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    parent = os.getppid()

    def stop() -> bool:
        return stop_requested() or os.getppid() != parent

    until = time.monotonic() + LEASE_S
    while run_job(path, cache, stop_requested=stop) == BUSY and time.monotonic() < until and not stop():
        time.sleep(LEASE_POLL_S)
