"""The function that every job executes: trains one run folder, from its lease to its final status."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from harness.data.dataset import DataError
from harness.distributed.process_group import PEER_TIMEOUT_S, Ranks, connected, is_peer_loss
from harness.run.folder import RunFolder, Status
from harness.run.metrics import write_offline_history
from harness.training.branch import start_from_trunk
from harness.training.device import DeviceError, is_out_of_memory
from harness.training.diagnostics import Diverged
from harness.training.session import Stopped
from harness.training.train import Watch, train
from model.config_validation import ConfigError

JOB_END = "LOOPSCALE_JOB_END_S"  # set in a job: when its time limit ends it, in seconds since the epoch
BUSY = "busy"  # another process trains this run
DISK_FULL = ("No space left on device", "Disk quota exceeded")  # safetensors does not raise OSError
BROKEN_STORAGE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
_LIMIT_NEAR_S = 900.0  # SIGUSR2 within this time of a job's end means its time limit, earlier preemption
_CAUSE_FIRST_S = 2.0  # how long a process that lost its peer waits for the peer to report the cause


def run_job(
    path: Path,
    cache: Path,
    stop_requested: Callable[[], bool] = lambda: False,
    watch: Watch = lambda line: None,
) -> str:
    """Train the run in folder `path`, unless it is done or another process trains it.

    Parameters
    ----------
    cache : folder of the data sets, where the run's is looked up by its digest.
    stop_requested : called once per step.
    watch : called with each line of the metrics and with the progress of the evaluation, see `train`.

    Returns
    -------
    The status as the runs table shows it, or "busy".

    Notes
    -----
    Started by torchrun or as several tasks of a submitit job, all processes train the run together. The first
    one holds the lease. SIGTERM, SIGUSR2, Ctrl-C and `stop_requested` save a checkpoint and leave the run
    `submitted`, with the failure class preempted or timeout if a signal implies it. Unexpected errors are
    recorded as `code_error`, with the traceback under logs/, and raised again.
    """
    folder = RunFolder(path)
    with (
        connected(_peer_timeout_s(folder)) as ranks,
        folder.lease() if ranks.first else nullcontext(True) as free,
    ):
        begun = ranks.once(lambda: _begin(folder) if free else BUSY)
        if isinstance(begun, str):
            return begun
        try:
            status = _attempt(folder, begun, cache, ranks, stop_requested, watch)
        except BaseException as error:
            if not folder.path.exists():
                raise ConfigError(
                    f"{path} is gone, it was renamed or deleted while its run was trained: it stops here, "
                    "and launch continues it where its folder is now"
                ) from error
            _log_error(folder, begun, ranks, error)
            failure_class = "lost" if _is_storage_failure(error) else "code_error"
            _report(folder, ranks, _failed(folder, begun, failure_class, error))
            raise
        ended = str(_report(folder, ranks, status))
        if ranks.first:
            write_offline_history(folder)
        return ended


def _peer_timeout_s(folder: RunFolder) -> float:
    try:
        return folder.config().guardrails.peer_timeout_s
    except (ConfigError, OSError):
        return PEER_TIMEOUT_S  # `train` says what is wrong with the configuration


def _begin(folder: RunFolder) -> Status | str:
    """Mark the run as running and return its status, or "done" if it has finished."""
    before = folder.status()
    if before.state == "done":
        return "done"
    # A run that is running while its lease is free was left by a process that was killed.
    ended = "lost" if before.state == "running" else before.failure_class
    status = dataclasses.replace(
        before,
        state="running",
        failure_class="",
        message="",
        attempts=before.attempts + 1,
        ended_before=ended,
    )
    folder.set_status(status)
    return status


def _attempt(
    folder: RunFolder,
    status: Status,
    cache: Path,
    ranks: Ranks,
    stop_requested: Callable[[], bool],
    watch: Watch,
) -> Status:
    with _signals() as received:

        def stop() -> bool:
            return bool(received) or stop_requested()

        try:
            dataset = folder.dataset(cache)
            ranks.once(lambda: start_from_trunk(folder))
            train(folder, dataset, attempts=status.attempts, ranks=ranks, stop_requested=stop, watch=watch)
        except Stopped as stopped:
            reasons = [reason for reason in ranks.all_gather(_reason(received)) if reason]
            failure_class = reasons[0] if reasons else ""
            return dataclasses.replace(
                status, state="submitted", failure_class=failure_class, message=str(stopped)
            )
        except Diverged as error:
            return _failed(folder, status, "diverged", error)
        except DeviceError as error:
            return _failed(folder, status, "node_failure", error)
        except (DataError, ConfigError) as error:
            return _failed(folder, status, "bad_config", error)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                return _failed(folder, status, "oom", error)
            if ranks.world > 1 and is_peer_loss(error):
                return _failed(folder, status, "node_failure", error)
            raise
    return dataclasses.replace(status, state="done", step=status.steps)


def _is_storage_failure(error: BaseException) -> bool:
    """Return True for a full disk and for errors of the file system, which another attempt may not meet."""
    broken = isinstance(error, OSError) and error.errno in BROKEN_STORAGE
    return broken or any(text in str(error) for text in DISK_FULL)


def _failed(folder: RunFolder, status: Status, failure_class: str, error: BaseException) -> Status:
    message = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if any(text in message for text in DISK_FULL) and str(folder.path) not in message:
        message += f": while writing to {folder.path}"
    return status.failed(failure_class, message)


def _report(folder: RunFolder, ranks: Ranks, status: Status) -> Status:
    """Write how the attempt ended; among several processes, the one that knows the cause does."""
    if status.failure_class == "node_failure":
        time.sleep(_CAUSE_FIRST_S)
    elif ranks.first:
        folder.set_status(status)
        return status
    elif status.state != "failed":
        return status
    if folder.status().state == "running":
        folder.set_status(status)
    return folder.status()


def _log_error(folder: RunFolder, status: Status, ranks: Ranks, error: BaseException) -> None:
    logs = folder.path / "logs"
    logs.mkdir(exist_ok=True)
    process = "" if ranks.first else f"_process_{ranks.rank}"
    text = "".join(traceback.format_exception(error))
    (logs / f"error_{status.attempts}{process}.txt").write_text(text, encoding="utf-8")


def _reason(received: list[int]) -> str:
    """Return the failure class that the first received signal implies: preempted, timeout or ""."""
    if not received or received[0] == signal.SIGINT:
        return ""
    left_s = float(os.environ.get(JOB_END, 0)) - time.time()
    return "timeout" if received[0] == signal.SIGUSR2 and left_s < _LIMIT_NEAR_S else "preempted"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask the run to stop; restore the handlers at the end."""
    received: list[int] = []
    before = {n: signal.signal(n, lambda number, _frame: received.append(number)) for n in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
