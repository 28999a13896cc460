"""From open runs to job arrays: the state of each run is reconciled, and what is missing is submitted."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.run.folder import RunFolder, Status
from harness.storage.files import exclusive
from model.config_validation import ConfigError
from sweeps.backends.base import Backend, JobElement, JobState, SchedulerError
from sweeps.backends.job_array import (
    JobArray,
    Submitted,
    array_folder,
    element_id,
    latest_elements,
    read_arrays,
    read_submitted,
    write_array,
    write_submitted,
)
from sweeps.launch.arrays import following_arrays, make_arrays, make_token, most_followed_first, share_cap
from sweeps.launch.code_snapshot import Snapshot, record_environment, take_snapshot
from sweeps.state.ledger import Ledger, is_open, unfinished_runs, waits_for
from sweeps.state.retry import prepare_attempt

SHOWN_MAX_ARRAY = 1001  # where job files are shown and the cluster does not answer


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """The runs to submit, the ids of those in the queue or at work already, and the nodes to avoid."""

    ready: list[RunFolder] = field(default_factory=list)
    live: set[str] = field(default_factory=set)
    exclude: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What one call of `submit_missing` did."""

    jobs: list[str]  # qualified array ids
    runs: int
    notes: list[str]


def submit_missing(folder: Path, ledger: Ledger, backend: Backend) -> Submission:
    """Submit every run of the sweep that is not finished, queued or given up, one array per shape.

    A lock admits one launch at a time. An array is written before it is submitted: if a launch dies at any
    point, the next one completes it.
    """
    with exclusive(folder / ".launch.lock", wait=True):
        recover_unconfirmed(folder, backend)
        arrays = read_arrays(folder)
        reconciled = reconcile(folder, ledger, arrays, backend)
        if not reconciled.ready:
            return Submission(jobs=[], runs=0, notes=[])
        snapshot = take_snapshot(folder)
        fresh = plan_arrays(ledger, reconciled, backend.max_array, snapshot, arrays)
        jobs = [_submit(folder, array, backend, snapshot) for array in fresh]
        notes = _notes(folder, arrays, backend.name)
        return Submission(jobs=jobs, runs=sum(len(array.runs) for array in fresh), notes=notes)


def plan_arrays(
    ledger: Ledger,
    reconciled: Reconciled,
    max_array: int,
    snapshot: Snapshot,
    earlier: list[JobArray],
) -> list[JobArray]:
    """Group runs into the arrays to submit now, each after the one that it waits for.

    A run that waits for a segment in the same launch or in the queue depends on that segment's job. A run
    whose segment is in neither is left out: the segment has failed for good.
    """
    seed = f"{ledger.nonce}{len(earlier)}"
    waits = {run.run_id: parent for run in reconciled.ready if (parent := waits_for(ledger, run))}
    first = [run.run_id for run in reconciled.ready if run.run_id not in waits]
    scales = {scale: ledger.cluster.resources_of(scale) for scale in set(ledger.scales.values())}
    arrays = make_arrays(
        ledger.name,
        [(name, scales[ledger.scales[name]]) for name in most_followed_first(first, waits)],
        max_array=max_array,
        array_parallelism=ledger.cluster.array_parallelism,
        snapshot=snapshot.path,
        exclude=sorted(reconciled.exclude),
        seed=seed,
    )
    count = itertools.count(len(arrays))

    def make(elements: list[list[str]], before: JobArray, index: int | None) -> JobArray:
        return dataclasses.replace(
            before,
            token=make_token(seed, next(count), elements),
            elements=elements,
            resources=scales[ledger.scales[elements[0][0]]],
            snapshot=snapshot.path,
            exclude=sorted(reconciled.exclude),
            after=before.token,
            after_index=index,
        )

    latest = latest_elements(earlier)
    live = {name: parent for name, parent in waits.items() if parent in reconciled.live}
    arrays += [make([[name]], *latest[parent]) for name, parent in live.items()]
    return share_cap([*arrays, *following_arrays(arrays, waits, make)], ledger.cluster.array_parallelism)


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
    elements = backend.states(_submitted_here(folder, list(asked.values()), backend.name))
    stuck = {element_id(each.job_id, index) for (_, index), each in elements.items() if each.is_stuck}
    if stuck:
        backend.cancel(sorted(stuck))
    reconciled, materialised = Reconciled(), False
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
            status = run.status()  # it may have ended while the scheduler was asked
        if status.state == "done":
            continue
        classified = classify_failure(status, element, backend.display_name, was_submitted=array is not None)
        if classified != status:
            # Not synced: after a power failure the next launch classifies it again.
            run.set_status(classified, sync=False)
        if is_open(classified, ledger.retry) and prepare_attempt(run, classified, ledger.retry):
            reconciled.ready.append(run)
            rule = ledger.retry.rule(classified.failure_class)
            if rule.action == "exclude_node" and element and element.node:
                reconciled.exclude.add(element.node)
    if materialised:
        os.sync()  # once for what may be thousands of folders
    return reconciled


def classify_failure(
    status: Status, element: JobElement | None, scheduler: str, *, was_submitted: bool
) -> Status:
    """Return the status of a run that no process works on any more, with the cause that `scheduler` reports.

    Parameters
    ----------
    element : the run's job, None if the scheduler does not know it.
    scheduler : its name in messages.
    was_submitted : the run was in a job at all.
    """
    if status.state == "running":
        if element is None:
            return status.failed("lost", "its process is gone and the scheduler does not remember it")
        if not element.failure_class:
            return dataclasses.replace(status, state="submitted", message="cancelled")
        where = f" on {element.node}" if element.node else ""
        return status.failed(element.failure_class, f"{scheduler} reports {element.shown_state}{where}")
    never_began = status.state in ("planned", "submitted") and was_submitted
    if never_began and element and element.failure_class:
        if element.state in (JobState.DONE, JobState.PREEMPTED):
            return status
        if status.message.startswith("stopped"):  # its job ended by itself
            return status
        ended = f"its job ended before it began: {scheduler} reports {element.shown_state}"
        return status.failed(element.failure_class, ended)
    return status


def show_job_files(folder: Path, ledger: Ledger, backend: Backend, show: Callable[[str], None]) -> None:
    """Show the job files that a launch would submit now for what is unfinished and not given up.

    Writes nothing and does not ask the queue: what waits or runs there already is shown as well.
    """
    snapshot = take_snapshot(folder, write=False)
    unfinished = unfinished_runs(ledger, folder, registered=False)
    reconciled = Reconciled(ready=[run for run, status in unfinished if is_open(status, ledger.retry)])
    try:
        max_array = backend.max_array
    except (ConfigError, SchedulerError):
        max_array = SHOWN_MAX_ARRAY
    for array in plan_arrays(ledger, reconciled, max_array, snapshot, read_arrays(folder)):
        path = array_folder(folder, array)
        show(f"# {path}: {len(array.runs)} runs in {len(array.elements)} jobs")
        show(backend.job_file(folder, array, snapshot.version))


def _submit(folder: Path, array: JobArray, backend: Backend, snapshot: Snapshot) -> str:
    write_array(folder, array)
    record_environment(array_folder(folder, array))
    job_id = backend.submit(folder, array, snapshot.version)
    submitted = Submitted(cluster=backend.name, job_id=job_id)
    write_submitted(folder, array, submitted)
    return f"{submitted.cluster}:{job_id}"


def _submitted_here(folder: Path, arrays: list[JobArray], cluster: str) -> list[JobArray]:
    """Return the arrays that this cluster has: another cluster's scheduler cannot be asked from here."""
    here = []
    for array in arrays:
        submitted = read_submitted(array_folder(folder, array))
        if submitted and submitted.job_id and submitted.cluster == cluster:
            here.append(array)
    return here


def _notes(folder: Path, arrays: list[JobArray], cluster: str) -> list[str]:
    others = set()
    for array in arrays:
        submitted = read_submitted(array_folder(folder, array))
        if submitted and submitted.job_id and submitted.cluster != cluster:
            others.add(f"{submitted.cluster}:{submitted.job_id}")
    if not others:
        return []
    return [
        f"submitted before on another cluster, cancel there what still waits: {', '.join(sorted(others))}"
    ]
