"""A worker of the local pool: takes the sweep's open runs one after the other, each in a process of its own.

Run as `python -m sweeps.worker FOLDER SLOT [OWNER_PID]`. A slot is held by one worker at a time, so starting
the pool twice starts nothing twice; a run is held by its lease, so no run is trained twice. With an owner,
the worker stops (with a checkpoint) when that process is gone.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness.job import run_job
from harness.locks import drop_inherited, exclusive
from harness.runfolder import RunFolder, Status
from sweeps.ledger import read_ledger, slot

POLL_S = 0.2


def is_open(status: Status, max_attempts: int) -> bool:
    """Say whether a run that nobody holds should be started: unfinished, or died too seldom to give up."""
    if status.state == "failed":
        return status.failure_class == "lost" and status.attempts < max_attempts
    return status.state != "done"


def work(folder: Path, stop: Callable[[], bool]) -> None:
    """Train the open runs of the sweep in `folder` until none is open.

    Waits while others hold the last ones, and takes those over whose process dies.
    """
    crashes: Counter[str] = Counter()  # counted here too, for a crash that could not be written down
    while not stop():
        ledger = read_ledger(folder)
        limit = ledger.max_attempts
        runs = [
            run for run in ledger.runs(folder) if is_open(run.status(), limit) and crashes[run.run_id] < limit
        ]
        if not runs:
            return
        free = next((run for run in runs if not run.is_held()), None)
        if free is None:
            time.sleep(POLL_S)
        elif _train_in_child(free, folder / ledger.cache, stop) != 0:
            crashes[free.run_id] += 1


def _train_in_child(run: RunFolder, cache: Path, stop: Callable[[], bool]) -> int | None:
    # Forked after torch is imported: a run starts in milliseconds, and its crash is its own.
    child = multiprocessing.get_context("fork").Process(target=_child, args=(run.path, cache))
    child.start()
    while child.is_alive():
        child.join(POLL_S)
        if stop():
            _end(child)
    if child.exitcode and child.exitcode < 0 and not stop():
        status = run.status()
        reason = f"killed by signal {-child.exitcode} (out of memory?)"
        run.set_status(dataclasses.replace(status, state="failed", failure_class="lost", message=reason))
    return child.exitcode


def _end(child: BaseProcess) -> None:
    child.terminate()  # SIGTERM: the run saves a checkpoint
    child.join(60)
    if child.is_alive():
        child.kill()
        child.join()


def _child(path: Path, cache: Path) -> None:
    drop_inherited()
    (path / "logs").mkdir(exist_ok=True)
    log = (path / "logs" / "output.txt").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    parent = os.getppid()
    run_job(path, cache, stop=lambda: os.getppid() != parent)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main(arguments: list[str]) -> None:
    """Hold the slot named on the command line and work until nothing is open."""
    folder, number = Path(arguments[0]), int(arguments[1])
    owner = int(arguments[2]) if len(arguments) > 2 else None
    ended = False

    def end(_number: int, _frame: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with exclusive(slot(folder, number), wait=False) as free:
        if free:
            work(folder, lambda: ended or (owner is not None and not _alive(owner)))


if __name__ == "__main__":
    main(sys.argv[1:])
