"""What every element of a job array runs: its runs, each in a process of its own, until done or told to stop.

Run as `python -m sweeps.workers.array_task ARRAY_FOLDER [ELEMENT]`, by SLURM or by hand. Told to stop
(SIGUSR2 before the time limit or at preemption, SIGTERM), the runs save a checkpoint and the job queues
itself again where that is allowed; elsewhere the next launch continues it.
"""

from __future__ import annotations

import dataclasses
import json
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
from harness.run.trunk import origin
from sweeps.backends.job_array import JobArray, read_array, read_submitted
from sweeps.config.cluster import ClusterConfig, RetryConfig
from sweeps.state.dependencies import has_begun
from sweeps.state.ledger import Ledger, read_ledger
from sweeps.state.retry import is_open, prepare_attempt

POLL_S = 0.1
EARLY_S = 60.0  # SLURM may send the signal of the time limit this much earlier
LEAVE_S = 45.0  # a stopping job asks a controller that is away for this long to queue it again
STOPPED = os.EX_TEMPFAIL  # exit code: neither done nor failed


def main(arguments: list[str]) -> int:
    """Run one element; returns the exit code: 0 done, 1 a run failed, 75 stopped before the end."""
    began = time.monotonic()
    told = _listen()  # before torch is imported: a signal in these seconds must not kill the job
    folder = Path(arguments[0]).resolve()
    array, sweep = read_array(folder), folder.parents[1]
    index = int(arguments[1] if len(arguments) > 1 else os.environ["SLURM_ARRAY_TASK_ID"])
    submitted, own = read_submitted(folder), os.environ.get("SLURM_ARRAY_JOB_ID")
    if own and submitted and submitted.job_id and submitted.job_id != own:
        print(f"job {own} is a second submission of {array.name}, which is job {submitted.job_id}: leaving")
        return 0
    ledger = read_ledger(sweep)
    runs = [RunFolder(sweep / name) for name in array.elements[index]]
    if array.resources.world_size > 1:
        export_rendezvous()
    first = os.environ.get("RANK", "0") == "0"
    if first:
        _note_restart(runs, ledger.retry)
    started = work_through(runs, sweep / ledger.cache, array, ledger.retry, told)
    if not first:  # what became of the run is the first rank's to say
        return 0
    if told():
        _leave(runs, started, ledger, time.monotonic() - began, array)
    states = {run.status().state for run in runs}
    return 0 if states == {"done"} else 1 if "failed" in states else STOPPED


def work_through(
    runs: list[RunFolder], cache: Path, array: JobArray, retry: RetryConfig, told: Callable[[], bool]
) -> set[str]:
    """Train the open ones of `runs`, as many at once as the array says; ends early when told to.

    Returns the ids of those that were started.

    Runs that ran out of memory or whose process died are started again here, within their rules.
    """
    from sweeps.workers.run_process import end_child, record_kill, start_child

    alone = array.resources.world_size == 1
    waiting = [run for run in runs if is_open(run.status(), retry) and _may_start(run)]
    free = list(range(array.resources.parallel_runs))
    active: list[tuple[BaseProcess, RunFolder, int]] = []
    started: set[str] = set()
    memory = _out_of_memory_kills()
    while active or (waiting and not told()):
        while waiting and free and not told():
            run = waiting.pop(0)
            if not alone or prepare_attempt(run, run.status(), retry):
                slot = free.pop(0)
                gpu = _gpu(slot, array.resources.parallel_runs)
                if os.environ.get("RANK", "0") == "0":
                    _note_place(run, gpu)
                started.add(run.run_id)
                active.append((start_child(run, cache, asked=told, gpu=gpu), run, slot))
        time.sleep(POLL_S)
        for entry in active if told() else [entry for entry in active if not entry[0].is_alive()]:
            child, run, slot = entry
            if told():
                end_child(child)
            child.join()
            active = [other for other in active if other is not entry]
            free.append(slot)
            killed = child.exitcode is not None and child.exitcode < 0 and not told()
            if killed:
                now = _out_of_memory_kills()
                record_kill(run, child.exitcode or 0, out_of_memory=now > memory)
                memory = now
            status = run.status()
            if alone and status.state == "failed" and (killed or status.failure_class == "oom"):
                waiting += [run] if is_open(status, retry) else []
    return started


def _listen() -> Callable[[], bool]:
    heard = False

    def hear(_number: int, _frame: object) -> None:
        nonlocal heard
        heard = True

    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, hear)
    return lambda: heard


def _may_start(run: RunFolder) -> bool:
    """Say whether the segment that a run starts from is done; if not, the next launch comes back to it."""
    parent = origin(run).parent
    if not parent or has_begun(run) or RunFolder(run.path.with_name(parent)).status().state == "done":
        return True
    if os.environ.get("RANK", "0") == "0":
        message = f"stopped before it began: {parent} is not done"
        run.set_status(dataclasses.replace(run.status(), message=message))
    return False


def _note_restart(runs: list[RunFolder], retry: RetryConfig) -> None:
    """Count a death that only SLURM saw: it started this job again, and a run stands as running."""
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) == 0:
        return
    for run in runs:
        status = run.status()
        if status.state == "running" and not run.is_held():
            failed = status.failed("node_failure", f"its node was lost in attempt {status.attempts}")
            keep = is_open(failed, retry)
            run.set_status(
                dataclasses.replace(failed, state="submitted", failure_class="") if keep else failed
            )


def _note_place(run: RunFolder, gpu: str | None) -> None:
    """Add where the next attempt runs, and on which device where that is not every one, to the run's logs."""
    job = "_".join(os.environ.get(f"SLURM_ARRAY_{part}_ID", "") for part in ("JOB", "TASK")).strip("_")
    line = {
        "attempt": run.status().attempts + 1,
        "cluster": os.environ.get("SLURM_CLUSTER_NAME", ""),
        "job": job,
        "node": os.environ.get("SLURMD_NODENAME", platform.node()),
        "pid": os.getpid(),
        "started_s": time.time(),
        "gpus": gpu or os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }
    run.ensure_created()
    (run.path / "logs").mkdir(exist_ok=True)
    with (run.path / "logs" / "attempts.jsonl").open("a") as handle:
        handle.write(json.dumps(line) + "\n")


def _gpu(slot: int, slots: int) -> str | None:
    """Return the device of a slot where runs side by side share several, None where all see all."""
    devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return devices[slot % len(devices)] if len(devices) > 1 and slots > 1 else None


def _out_of_memory_kills() -> int:
    """Return how many processes of this job's control group the kernel has killed for memory."""
    total = 0
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        mount = Path("/sys/fs/cgroup")
        file = mount / path.lstrip("/") / "memory.events" if number == "0" else None
        if controllers == "memory":
            file = mount / "memory" / path.lstrip("/") / "memory.oom_control"
        if file is not None and file.exists():
            words = file.read_text().split()
            total += int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0
    return total


def _leave(runs: list[RunFolder], started: set[str], ledger: Ledger, ran_s: float, array: JobArray) -> None:
    """Say why the runs stopped, and queue the job again unless it was cancelled or may not."""
    limit_s = array.resources.time_min * 60 - ledger.cluster.signal_s - EARLY_S
    reason = "timeout" if ran_s >= limit_s else "preempted"
    stopped = [run for run in runs if run.run_id in started and run.status().state == "submitted"]
    answer = _requeue(ledger.cluster) if "SLURM_ARRAY_JOB_ID" in os.environ else "not under SLURM"
    for run in stopped:
        status = run.status()
        message = f"{status.message} ({reason}; {answer})"
        if answer == CANCELLED:
            run.set_status(dataclasses.replace(status, message=f"{status.message} ({answer})"))
            continue
        failed = status.failed(reason, message)
        keep = is_open(failed, ledger.retry)
        run.set_status(dataclasses.replace(failed, state="submitted", failure_class="") if keep else failed)
    for run in runs:
        if (status := run.status()).state == "planned":
            run.set_status(dataclasses.replace(status, message="stopped before it began"))


CANCELLED = "cancelled; launch continues it"


def _requeue(config: ClusterConfig) -> str:
    """Ask SLURM to queue this job again; returns how that went, in words."""
    from sweeps.backends.slurm import Slurm

    if config.requeue is False:
        return "requeue is off; launch continues it"
    slurm = Slurm(dataclasses.replace(config, patience_s=LEAVE_S))
    # Not SLURM_JOB_ID: the last element shares its with the whole array, which would all be queued again.
    job = "_".join(os.environ[f"SLURM_ARRAY_{part}_ID"] for part in ("JOB", "TASK"))
    try:
        state = slurm.call("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T").strip()
        if state in ("PENDING", "REQUEUED"):
            return "queued again by SLURM"
        if state != "RUNNING":
            return CANCELLED
        slurm.call("scontrol", "requeue", job)
    except (ValueError, OSError) as error:
        return f"not requeued, launch continues it: {error}"
    return "queued again"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
