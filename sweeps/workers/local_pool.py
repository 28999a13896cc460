"""A worker of the local pool: trains the sweep's open runs one after the other, each in its own process.

Started as `python -m sweeps.workers.local_pool FOLDER SLOT [OWNER_PID LOCK]`, 0 for neither. A slot is held
by one worker at a time, and a run by its lease: starting the pool twice trains nothing twice. With an owner,
the worker saves a checkpoint and stops when that process is gone. LOCK is the descriptor of the slot's lock,
if the process that starts the worker has taken it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from harness.run.folder import RunFolder
from harness.storage.files import exclusive, keep_inherited
from sweeps.backends.local import is_alive, slot
from sweeps.state.ledger import is_open, read_ledger, unfinished_runs, waits_for
from sweeps.state.retry import prepare_attempt
from sweeps.workers.run_process import end_child, record_kill, start_child

POLL_S = 0.2


def work(folder: Path, stop: Callable[[], bool]) -> None:
    """Train the open runs and trunk segments of the sweep in `folder` until none is open.

    Waits while other workers hold the last ones, and takes over those whose process dies. What starts from a
    segment that has failed for good is not trained.
    """
    crashes: Counter[str] = Counter()  # counted here too: a crash may leave no trace in the status
    while not stop():
        ledger = read_ledger(folder)
        limit = ledger.retry.lost.retries
        runs = [
            run
            for run, status in unfinished_runs(ledger, folder)
            if is_open(status, ledger.retry) and crashes[run.run_id] <= limit
        ]
        waits = {run.run_id: waits_for(ledger, run) for run in runs}
        if not any(_may_come(name, waits) for name in waits):
            return
        free = next((run for run in runs if not waits[run.run_id] and not run.is_held()), None)
        if free is None:
            time.sleep(POLL_S)
        elif prepare_attempt(free, free.status(), ledger.retry):
            crashes[free.run_id] += _train(free, folder / ledger.cache, stop) != 0


def _may_come(name: str, waits: dict[str, str]) -> bool:
    """Return True if an open run can start at some time: the segments that it waits for are open too."""
    while parent := waits.get(name):
        name = parent
    return name in waits


def _train(run: RunFolder, cache: Path, stop: Callable[[], bool]) -> int | None:
    child = start_child(run, cache)
    while child.is_alive():
        child.join(POLL_S)
        if stop():
            end_child(child)
    if child.exitcode and child.exitcode < 0 and not stop():
        record_kill(run, child.exitcode)
    return child.exitcode


def main(arguments: list[str]) -> None:
    """Hold the slot named on the command line and work until nothing is open."""
    folder, number = Path(arguments[0]), int(arguments[1])
    owner, lock = (int(text) for text in arguments[2:] or ("0", "0"))
    ended = False

    def end(_number: int, _frame: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if lock:
        keep_inherited(lock)
    with nullcontext(True) if lock else exclusive(slot(folder, number), wait=False) as free:
        if free:
            slot(folder, number).with_suffix(".pid").write_text(str(os.getpid()))
            work(folder, lambda: ended or (owner > 0 and not is_alive(owner)))


if __name__ == "__main__":
    main(sys.argv[1:])
