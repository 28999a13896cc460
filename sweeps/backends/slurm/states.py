"""What squeue and sacct print, as neutral job states."""

from __future__ import annotations

import re
import warnings

from sweeps.backends.base import Elements, JobElement, JobOutput, JobState

QUEUE_FORMAT = "%j|%K|%T|%r|%N|%L|%F"  # of squeue, as `parse_queue` reads it
ACCOUNTING_FORMAT = "JobID,JobName,State,NodeList"  # of sacct, as `parse_accounting` reads it

QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("CONFIGURING", "POWER_UP_NODE", "RUNNING", "EXPEDITING", "COMPLETING")
CHANGING = ("RESIZING", "SIGNALING", "STAGE_OUT", "UPDATE_DB")
STATES = {
    **dict.fromkeys(QUEUED, JobState.QUEUED),
    **dict.fromkeys((*RUNNING, *CHANGING), JobState.RUNNING),
    **dict.fromkeys(("SUSPENDED", "STOPPED"), JobState.SUSPENDED),
    "COMPLETED": JobState.DONE,
    "CANCELLED": JobState.CANCELLED,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
    "TIMEOUT": JobState.TIMEOUT,
    "DEADLINE": JobState.TIMEOUT,
    "PREEMPTED": JobState.PREEMPTED,
    "NODE_FAIL": JobState.NODE_FAILURE,
    "BOOT_FAIL": JobState.NODE_FAILURE,
    **dict.fromkeys(("FAILED", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"), JobState.FAILED),
}

# What a job's log says about its end, by slurmstepd.
ENDINGS = {
    r"exceeded (job |step )?memory limit|oom[-_ ]kill": JobState.OUT_OF_MEMORY,
    r"CANCELLED AT .* DUE TO PREEMPTION": JobState.PREEMPTED,
    r"CANCELLED AT .* DUE TO TIME LIMIT": JobState.TIMEOUT,
    r"CANCELLED AT .* DUE TO NODE FAILURE": JobState.NODE_FAILURE,
    r"JOB \S+ ON \S+ CANCELLED AT \S+ \*\*\*": JobState.CANCELLED,
}
STARTED = "loopscale: started on "  # and the node: what a job file prints first


def job_state(native: str, reason: str = "") -> JobState:
    """Return the neutral state of a job in the state `native`, which waits for `reason`."""
    if native == "PENDING":
        words = reason.replace("_", " ").lower()
        if words.replace(" ", "").startswith("dependencyneversatisfied"):
            return JobState.ORPHANED
        if words.startswith("launch failed"):
            return JobState.UNSTARTABLE
    return STATES.get(native, JobState.FAILED)


def parse_queue(text: str) -> Elements:
    """Return the elements in the lines of `squeue --array`, in `QUEUE_FORMAT`.

    The record of an array whose waiting elements were cancelled has no index (N/A) and is no element. Any
    other line that cannot be read is passed over with a warning. An unknown state counts as running, with a
    warning.
    """
    elements = {}
    for line in text.splitlines():
        try:
            name, index, native, reason, node, left, job = line.split("|")
        except ValueError:
            _pass_over("squeue", line)
            continue
        if not index.isdigit():
            if index != "N/A":
                _pass_over("squeue", line)
            continue
        state = job_state(native, reason)
        if native not in STATES:  # of a later version; as it may be running, nothing is started beside it
            warnings.warn(
                f"squeue printed the unknown state {native!r}, taken for running: {line}", stacklevel=2
            )
            state = JobState.RUNNING
        elements[name, int(index)] = JobElement(
            state=state,
            native_state=native,
            reason=reason,
            node=node,
            time_left_s=parse_duration(left),
            job_id=job,
        )
    return elements


def parse_accounting(text: str) -> Elements:
    """Return the elements in the lines of sacct, in `ACCOUNTING_FORMAT`.

    Elements that never ran are one line, with ranges of indices; while they wait, the queue knows them. A
    step that ran out of memory decides for its job, whose own line says only that it failed. A line that
    cannot be read is passed over with a warning.
    """
    elements: Elements = {}
    places: dict[str, tuple[str, int]] = {}
    for line in text.splitlines():
        try:
            job, name, state, node = line.split("|")
        except ValueError:
            _pass_over("sacct", line)
            continue
        element, _, step = job.partition(".")
        native = state.split()[0] if state else ""
        job_id, _, index = element.partition("_")
        if index.startswith("[") and native in QUEUED:
            continue
        if step:
            if native != "OUT_OF_MEMORY" or element not in places:
                continue
            node = elements[places[element]].node
        else:
            places |= {f"{job_id}_{number}": (name, number) for number in indices(index)}
        owner = places[element][0] if step else name
        for number in indices(index):
            elements[owner, number] = JobElement(
                state=job_state(native), native_state=native, node=node, job_id=job_id
            )
    return elements


def parse_log(text: str, *, start: int = -1) -> JobOutput:
    """Return what a job printed after one of its starts, by default the last one."""
    starts = text.split(STARTED)
    node, _, printed = starts[start].partition("\n") if len(starts) > 1 else ("", "", text)
    causes = [state for words, state in ENDINGS.items() if re.search(words, printed, re.IGNORECASE)]
    lines = [line for line in printed.splitlines() if line.strip()]
    return JobOutput(lines=lines, node=node.strip(), cause=causes[0] if causes else None)


def indices(text: str) -> list[int]:
    """Return the indices in an element's id: "7", or "[0-3,8-12:2%4]" of elements that wait.

    SLURM may cut a long list and end it with "..."; what it names is returned. A job without an index has
    none.
    """
    numbers: list[int] = []
    for part in text.strip("[]").partition("%")[0].split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, step = (int(value) if value else None for value in match.groups())
            assert first is not None
            numbers += range(first, (first if last is None else last) + 1, step or 1)
    return numbers


def _pass_over(command: str, line: str) -> None:
    warnings.warn(f"{command} printed a line that is not understood and passed over: {line}", stacklevel=3)


def parse_duration(text: str) -> float | None:
    """Return the seconds in "days-hours:minutes:seconds" or its end, None for UNLIMITED and the like."""
    days, _, clock = text.rpartition("-")
    parts = [days or "0", *clock.split(":")]
    if not all(part.isdigit() for part in parts):
        return None
    seconds = 0
    for part in parts[1:]:
        seconds = seconds * 60 + int(part)
    return float(int(parts[0]) * 86400 + seconds)
