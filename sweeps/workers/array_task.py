"""What every element of a job array runs: its runs, each in its own process, until done or asked to stop.

Started as `python -m sweeps.workers.array_task ARRAY_FOLDER [ELEMENT]`, by a scheduler or by hand. Asked to
stop (SIGUSR2 before the time limit or at preemption, SIGTERM), the runs save a checkpoint and the job queues
itself again if the cluster allows it; if not, the next launch continues it.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness.distributed.rendezvous import export_rendezvous
from harness.run.folder import RunFolder
from harness.run.length import origin
from model.config_validation import ConfigError
from sweeps.backends.base import Backend, CurrentJob, JobElement, JobState, Requeue
from sweeps.backends.job_array import JobArray, read_array, read_submitted
from sweeps.backends.registry import backend_of_job
from sweeps.config.cluster import RetryConfig
from sweeps.config.gpus import gpu_of, visible_gpus
from sweeps.state.ended_jobs import add_attempt
from sweeps.state.ledger import Ledger, has_begun, is_open, read_ledger, state_of
from sweeps.state.retry import prepare_attempt

POLL_S = 0.1
REQUEUE_PATIENCE_S = 45.0  # how long a stopping job waits for a scheduler that does not answer
STOPPED = os.EX_TEMPFAIL  # exit code: neither done nor failed


def main(arguments: list[str]) -> int:
    """Run one element; return the exit code: 0 done, 1 a run failed, 75 stopped before the end."""
    began = time.monotonic()
    stop_requested = _listen()  # before torch is imported: a signal in these seconds must not kill the job
    folder = Path(arguments[0]).resolve()
    array, sweep = read_array(folder), folder.parents[1]
    ledger = read_ledger(sweep)
    backend = backend_of_job(dataclasses.replace(ledger.cluster, patience_s=REQUEUE_PATIENCE_S))
    job = backend.current_job() or CurrentJob()
    index = int(arguments[1]) if len(arguments) > 1 else job.index
    if index is None:
        raise ConfigError(f"{array.name} has {len(array.elements)} elements: add the index of one of them")
    submitted = read_submitted(folder)
    if job.job_id and submitted and submitted.job_id and submitted.job_id != job.job_id:
        print(
            f"job {job.job_id} is a second submission of {array.name}, which is job {submitted.job_id}: "
            "nothing is trained here"
        )
        return 0
    runs = [RunFolder(sweep / name) for name in array.elements[index]]
    if array.resources.world_size > 1:
        export_rendezvous()
    if _is_first_rank() and job.restarts:
        _record_restart(runs, ledger.retry, backend.restart_cause(folder, job))
    started = work_through(runs, sweep / ledger.cache, array, ledger.retry, stop_requested, job)
    if not folder.exists():
        print(f"{sweep} is gone, it was renamed or deleted: this job ends, launch continues its runs")
        return STOPPED
    if not _is_first_rank():  # the first rank reports how the runs ended
        return 0
    if stop_requested():
        _report_stop(runs, started, ledger, backend, job, time.monotonic() - began, array)
    states = {state_of(run).state for run in runs}
    return 0 if states == {"done"} else 1 if "failed" in states else STOPPED


def work_through(
    runs: list[RunFolder],
    cache: Path,
    array: JobArray,
    retry: RetryConfig,
    stop_requested: Callable[[], bool],
    job: CurrentJob,
) -> set[str]:
    """Train the open ones of `runs`, as many at once as the array allows; return the ids of those started.

    Ends early when `stop_requested` returns True. A run that ran out of memory or whose process was killed is
    started again here, within its retry rule; where it has several ranks, this one exits instead.
    """
    from harness.training.job import JOB_END
    from sweeps.workers.run_process import end_child, record_kill, start_child

    if job.ends_s is not None:
        os.environ[JOB_END] = str(job.ends_s)
    alone = array.resources.world_size == 1
    waiting = [run for run in runs if is_open(state_of(run), retry) and _may_start(run)]
    free = list(range(array.resources.parallel_runs))
    active: list[tuple[BaseProcess, RunFolder, int]] = []
    started: set[str] = set()
    memory = _out_of_memory_kills()

    def may_start() -> bool:
        return not stop_requested() and all(run.path.parent.exists() for run in waiting[:1])

    while active or (waiting and may_start()):
        while waiting and free and may_start():
            run = waiting.pop(0)
            if not alone or prepare_attempt(run, run.status(), retry):
                slot = free.pop(0)
                gpu = gpu_of(slot, array.resources.parallel_runs)
                if _is_first_rank():
                    _record_attempt(run, job, gpu)
                started.add(run.run_id)
                active.append((start_child(run, cache, stop_requested=stop_requested, gpu=gpu), run, slot))
        time.sleep(POLL_S)
        for entry in active if stop_requested() else [entry for entry in active if not entry[0].is_alive()]:
            child, run, slot = entry
            if stop_requested():
                end_child(child)
            child.join()
            active = [other for other in active if other is not entry]
            free.append(slot)
            killed = child.exitcode is not None and child.exitcode < 0 and not stop_requested()
            if killed and run.path.exists():
                now = _out_of_memory_kills()
                record_kill(run, child.exitcode or 0, out_of_memory=now > memory, alone=alone)
                memory = now
                if not alone:
                    sys.exit(1)  # the other ranks wait for this one: what started them ends them
            status = run.status()
            if alone and status.state == "failed" and (killed or status.failure_class == "oom"):
                waiting += [run] if is_open(status, retry) else []
    return started


def _listen() -> Callable[[], bool]:
    received = False

    def receive(_number: int, _frame: object) -> None:
        nonlocal received
        received = True

    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, receive)
    return lambda: received


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _may_start(run: RunFolder) -> bool:
    """Return True if the segment that a run starts from is done; if not, the next launch submits the run."""
    parent = origin(run).parent
    if not parent or has_begun(run) or RunFolder(run.path.with_name(parent)).status().state == "done":
        return True
    if _is_first_rank():
        message = f"stopped before it began: {parent} is not done"
        run.set_status(dataclasses.replace(run.status(), message=message))
    return False


def _record_restart(runs: list[RunFolder], retry: RetryConfig, cause: JobState | None) -> None:
    """Count a failure for runs of an earlier start of this job that have none counted for its end.

    A `cause` that is not known has a class of its own.
    """
    known = JobElement(state=cause).failure_class if cause else ""
    restarted = "restarted" if known in ("", "lost") else known
    why = cause.value if cause else "for an unknown reason"
    for run in runs:
        status = run.status()
        uncounted = status.failure_class if status.state == "submitted" else ""  # of a stop cut short
        if (status.state == "running" or uncounted) and not run.is_held():
            message = f"its job was started again in attempt {status.attempts}: {why}"
            failed = status.failed(uncounted or restarted, message)
            keep = is_open(failed, retry)
            run.set_status(
                dataclasses.replace(failed, state="submitted", failure_class="") if keep else failed
            )


def _record_attempt(run: RunFolder, job: CurrentJob, gpu: str | None) -> None:
    """Add where the next attempt runs to the run's logs; `gpu` is its device if that is not all of them."""
    line = {
        "attempt": run.status().attempts + 1,
        "cluster": job.cluster,
        "job": job.element_id,
        "node": job.node or platform.node(),
        "pid": os.getpid(),
        "started_s": time.time(),
        "gpus": gpu or ",".join(visible_gpus()),
    }
    run.ensure_created()
    add_attempt(run, line)


def _out_of_memory_kills() -> int:
    """Return how many processes of this job's control group the kernel has killed for memory."""
    total = 0
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        number, controllers, path = line.split(":", 2)
        mount = Path("/sys/fs/cgroup")
        file = mount / path.lstrip("/") / "memory.events" if number == "0" else None
        if controllers == "memory":
            file = mount / "memory" / path.lstrip("/") / "memory.oom_control"
        if file is not None and file.exists():
            words = file.read_text(encoding="utf-8").split()
            total += int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0
    return total


def _report_stop(
    runs: list[RunFolder],
    started: set[str],
    ledger: Ledger,
    backend: Backend,
    job: CurrentJob,
    ran_s: float,
    array: JobArray,
) -> None:
    """Write why the runs stopped, and queue the job again unless it was cancelled or must not be."""
    limit_s = array.resources.time_min * 60 - ledger.cluster.signal_s - backend.signal_lead_s
    reason = "timeout" if ran_s >= limit_s else "preempted"
    stopped = [run for run in runs if run.run_id in started and run.status().state == "submitted"]
    requeue = _requeue(ledger, backend, job)
    for run in stopped:
        status = run.status()
        if requeue.cancelled:
            run.set_status(dataclasses.replace(status, message=f"{status.message} ({requeue.message})"))
            continue
        failed = status.failed(reason, f"{status.message} ({reason}; {requeue.message})")
        keep = is_open(failed, ledger.retry)
        run.set_status(dataclasses.replace(failed, state="submitted", failure_class="") if keep else failed)
    for run in runs:
        if (status := state_of(run)).state == "planned":
            run.set_status(dataclasses.replace(status, message="stopped before it began"))


def _requeue(ledger: Ledger, backend: Backend, job: CurrentJob) -> Requeue:
    if not job.element_id:
        return Requeue(message="not in a job; launch continues it")
    if ledger.cluster.requeue is False:
        return Requeue(message="requeue is off; launch continues it")
    return backend.requeue(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
