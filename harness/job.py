"""The function that every job executes: one run folder, from its lease to its final status."""

from __future__ import annotations

import dataclasses
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from harness.data_config import DataError
from harness.runfolder import RunFolder, Status
from harness.train import Diverged, Stopped, Watch, train
from model.checked import ConfigError

BUSY = "busy"  # another process trains this run
DISK_FULL = ("No space left on device", "Disk quota exceeded")  # safetensors raises no OSError
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


def run_job(
    path: Path,
    cache: Path,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch = lambda line: None,
) -> str:
    """Train the run in folder `path` unless it is done or another process has it; return how it stands.

    Returns the status as the runs table shows it, or "busy". The data set is looked up under `cache` by the
    digest that the run was planned with. SIGTERM, SIGUSR2, Ctrl-C and `stop`, asked once a step, save a
    checkpoint and end the attempt. An error that is not the user's is recorded as `code_error`, with its
    traceback under logs/, and raised again. `watch` is given each line of the metrics.
    """
    folder = RunFolder(path)
    with folder.lease() as free:
        if not free:
            return BUSY
        before = folder.status()
        if before.state == "done":
            return "done"
        status = dataclasses.replace(
            before, state="running", failure_class="", message="", attempts=before.attempts + 1
        )
        folder.set_status(status)
        try:
            status = _attempt(folder, status, cache, stop, watch)
        except BaseException as error:
            logs = path / "logs"
            logs.mkdir(exist_ok=True)
            (logs / f"error_{status.attempts}.txt").write_text("".join(traceback.format_exception(error)))
            full = any(text in str(error) for text in DISK_FULL)
            folder.set_status(_failed(status, "lost" if full else "code_error", error))
            raise
        folder.set_status(status)
        return str(status)


def _attempt(
    folder: RunFolder, status: Status, cache: Path, stop: Callable[[], bool], watch: Watch
) -> Status:
    try:
        dataset = folder.dataset(cache)
        with _or_signal(stop) as asked:
            train(folder, dataset, attempts=status.attempts, stop=asked, watch=watch)
    except Stopped as stopped:
        return dataclasses.replace(status, state="submitted", message=str(stopped))
    except Diverged as error:
        return _failed(status, "diverged", error)
    except (DataError, ConfigError) as error:
        return _failed(status, "bad_config", error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return _failed(status, "oom", error)
        raise
    return dataclasses.replace(status, state="done", step=status.steps)


def _failed(status: Status, failure_class: str, error: BaseException) -> Status:
    message = str(error).strip().splitlines()
    return status.failed(failure_class, message[0] if message else type(error).__name__)


@contextmanager
def _or_signal(stop: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Give a `stop` that also says yes after a signal; handlers are put back at the end."""
    requested = False

    def request(_number: int, _frame: object) -> None:
        nonlocal requested
        requested = True

    before = {number: signal.signal(number, request) for number in STOP_SIGNALS}
    try:
        yield lambda: requested or stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
