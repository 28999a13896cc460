"""The folders of unfinished runs brought up to date with the scheduler: what failed, why, what may start."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from harness.run.folder import RunFolder, Status
from sweeps.backends.base import Backend, Elements, JobElement, JobOutput, JobState
from sweeps.backends.job_array import (
    JobArray,
    Submitted,
    array_folder,
    element_id,
    latest_elements,
    read_arrays,
    read_submitted,
    write_submitted,
)
from sweeps.launch.bad_nodes import count_ends
from sweeps.state.ended_jobs import attempts_of, describe, ended_as, never_began
from sweeps.state.ledger import Ledger, is_open, state_of, unfinished_runs
from sweeps.state.retry import prepare_attempt


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """The runs to submit, the ids of those in the queue or at work already, and the nodes to avoid."""

    ready: list[RunFolder] = field(default_factory=list)
    live: set[str] = field(default_factory=set)
    exclude: set[str] = field(default_factory=set)
    elements: Elements = field(default_factory=dict)  # as the scheduler sees them


def recover_unconfirmed(folder: Path, backend: Backend) -> None:
    """Ask the scheduler about arrays whose launch died before it wrote the answer to the submission."""
    for array in read_arrays(folder):
        if read_submitted(array_folder(folder, array)) is None:
            job_id = backend.find(array.name) or ""
            write_submitted(folder, array, Submitted(cluster=backend.name, job_id=job_id))


def reconcile(folder: Path, ledger: Ledger, arrays: list[JobArray], backend: Backend) -> Reconciled:
    """Bring the folders of unfinished runs up to date with the scheduler, and make them ready to submit.

    A run that is marked running while no process holds it gets the failure class that the scheduler reports.
    """
    unfinished = unfinished_runs(ledger, folder)
    latest = latest_elements(arrays)
    asked = {
        latest[run.run_id][0].token: latest[run.run_id][0] for run, _ in unfinished if run.run_id in latest
    }
    elements = backend.states(submitted_here(folder, list(asked.values()), backend.name))
    stuck = {element_id(each.job_id, index) for (_, index), each in elements.items() if each.is_stuck}
    if stuck:
        backend.cancel(sorted(stuck))
    reconciled, materialised = Reconciled(elements=elements), False
    ends: dict[tuple[str, int], str] = {}  # nodes of elements that ended before they began
    for run, status in unfinished:
        array, index = latest.get(run.run_id, (None, 0))
        element = elements.get((array.name, index)) if array else None
        if element and element.is_live:
            reconciled.live.add(run.run_id)
            continue
        if array or status.state == "running":
            if run.is_held():
                continue
            # A network file system may still show the folder as it was before its node wrote it.
            materialised |= run.ensure_created(sync=False)
            status = state_of(run)  # it may have ended while the scheduler was asked
        if status.state == "done":
            continue
        began, output = True, None
        if array:
            began = not never_began(run, status, _element_of(folder, array, index))
            if status.state == "running" or not began:
                output = backend.job_output(array_folder(folder, array), index)
                element = ended_as(element, output)
        classified = classify_failure(status, element, backend.display_name, began=began, output=output)
        if array and element and not began and classified.state == "failed":
            ends[array.name, index] = "" if _has_begun(folder, array, index) else element.node
        if classified != status:
            # Not synced: after a power failure the next launch classifies it again.
            run.set_status(classified, sync=False)
        if is_open(classified, ledger.retry) and prepare_attempt(run, classified, ledger.retry):
            reconciled.ready.append(run)
            rule = ledger.retry.rule(classified.failure_class)
            if rule.action == "exclude_node" and element and element.node:
                reconciled.exclude.add(element.node)
    count_ends(folder, ends.values())
    if materialised:
        os.sync()  # once for what may be thousands of folders
    return reconciled


def classify_failure(
    status: Status,
    element: JobElement | None,
    scheduler: str,
    *,
    began: bool,
    output: JobOutput | None = None,
) -> Status:
    """Return the status of a run that no process works on any more, with the cause that `scheduler` reports.

    Parameters
    ----------
    element : the run's job, None if the scheduler does not know it.
    scheduler : its name in messages.
    began : whether the job, if there was one, ever reached the run.
    output : what the job has printed.
    """
    if status.state == "running":
        if element is None or element.state is JobState.FORGOTTEN:
            return status.failed("lost", "its process is gone and the scheduler does not remember it")
        if not element.failure_class:
            return dataclasses.replace(status, state="submitted", message="cancelled")
        where = f" on {element.node}" if element.node else ""
        return status.failed(element.failure_class, f"{scheduler} reports {element.shown_state}{where}")
    if began or element is None or not element.failure_class:
        return status
    if element.state in (JobState.DONE, JobState.PREEMPTED):
        return status
    if element.state in (JobState.FORGOTTEN, JobState.UNKNOWN) and output is None:  # it may not have started
        return status
    own = element.failure_class
    failure_class = "not_started" if own == "lost" else own
    return status.failed(failure_class, describe(element, output, scheduler))


def _element_of(folder: Path, array: JobArray, index: int) -> str:
    """Return the id of an element, "" if its array was never submitted."""
    submitted = read_submitted(array_folder(folder, array))
    return element_id(submitted.job_id, index) if submitted and submitted.job_id else ""


def _has_begun(folder: Path, array: JobArray, index: int) -> bool:
    """Return True if an element has reached one of its runs."""
    job = _element_of(folder, array, index)
    runs = (RunFolder(folder / name) for name in array.elements[index])
    return any(attempt["job"] == job for run in runs for attempt in attempts_of(run))


def submitted_here(folder: Path, arrays: list[JobArray], cluster: str) -> list[JobArray]:
    """Return the arrays that this cluster has: another cluster's scheduler cannot be asked from here."""
    here = []
    for array in arrays:
        submitted = read_submitted(array_folder(folder, array))
        if submitted and submitted.job_id and submitted.cluster == cluster:
            here.append(array)
    return here
