"""Jobs that ended before they began to train: why, where, and the last that they printed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from harness.run.folder import RunFolder, Status
from sweeps.backends.base import JobElement, JobOutput, JobState

ATTEMPTS = "logs/attempts.jsonl"  # in a run's folder
SHOWN_LINES, SHOWN_CHARACTERS = 3, 300  # of a job's log, in a message
# What the end of a job leaves open and its log may tell.
OPEN = (JobState.FAILED, JobState.CANCELLED, JobState.FORGOTTEN, JobState.UNKNOWN)


def attempts_of(run: RunFolder) -> list[dict[str, Any]]:
    """Return where each attempt of a run ran: job, node, process, start; without a line that was cut off."""
    path, attempts = run.path / ATTEMPTS, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            attempts.append(json.loads(line))
    return attempts


def add_attempt(run: RunFolder, attempt: Mapping[str, Any]) -> None:
    """Add where an attempt runs to the run's logs, on a line of its own even after one that was cut off."""
    path = run.path / ATTEMPTS
    path.parent.mkdir(exist_ok=True)
    with path.open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        begin = b"" if file.read() in (b"", b"\n") else b"\n"
        file.write(begin + json.dumps(attempt).encode() + b"\n")


def never_began(run: RunFolder, status: Status, element_id: str) -> bool:
    """Return True if no attempt of this element has come to mark the run, which is `status`, as running."""
    if status.state not in ("planned", "submitted") or status.message.startswith("stopped before it began"):
        return False
    own = [attempt for attempt in attempts_of(run) if attempt["job"] == element_id]
    return all(attempt["attempt"] > status.attempts for attempt in own)


def ended_as(element: JobElement | None, output: JobOutput | None) -> JobElement | None:
    """Return a job that has ended with the cause and node that its output names, if it does."""
    if output is None or (element is not None and element.state not in OPEN):
        return element
    element = element or JobElement(state=JobState.FORGOTTEN)
    node = element.node or output.node
    if output.cause is None:
        return dataclasses.replace(element, node=node)
    return JobElement(state=output.cause, node=node, job_id=element.job_id)


def describe(element: JobElement, output: JobOutput | None, scheduler: str) -> str:
    """Return what is known of a job that ended before it began, in one line."""
    where = f" on {element.node}" if element.node else ""
    text = f"its job ended before it began{where}: {scheduler} reports {element.shown_state}"
    lines = " | ".join(output.lines[-SHOWN_LINES:]) if output else ""
    return f"{text}: {lines[-SHOWN_CHARACTERS:]}" if lines else text
