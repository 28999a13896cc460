"""From open runs to job arrays: what died is settled, what is missing is submitted, nothing twice."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.run.folder import RunFolder, Status
from harness.storage.locks import exclusive
from sweeps.backends.base import JobElement, Scheduler
from sweeps.backends.job_array import (
    JobArray,
    Submitted,
    array_folder,
    latest_elements,
    make_arrays,
    make_token,
    read_arrays,
    read_submitted,
    write_array,
    write_submitted,
)
from sweeps.launch.array_dependencies import by_followers, follow, shared_out
from sweeps.launch.code_snapshot import Snapshot, record_environment, take_snapshot
from sweeps.state.dependencies import unfinished_runs, waits_for
from sweeps.state.ledger import Ledger
from sweeps.state.retry import is_open, prepare_attempt

Places = dict[str, tuple[JobArray, int]]


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """What is to be submitted, what waits or works in the queue already (run ids), and nodes to avoid."""

    ready: list[RunFolder] = field(default_factory=list)
    live: set[str] = field(default_factory=set)
    exclude: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What one call of `submit_missing` did."""

    jobs: list[str]  # qualified array ids
    runs: int
    notes: list[str]


def submit_missing(folder: Path, ledger: Ledger, scheduler: Scheduler) -> Submission:
    """Submit every run of the sweep that is neither finished nor queued nor given up, one array per shape.

    Only one launch at a time gets past the lock. A array is written down before it is submitted, so that a
    launch that dies anywhere is completed by the next one.
    """
    with exclusive(folder / ".launch.lock", wait=True):
        recover_unconfirmed(folder, scheduler)
        arrays = read_arrays(folder)
        settled = reconcile(folder, ledger, arrays, scheduler)
        if not settled.ready:
            return Submission(jobs=[], runs=0, notes=[])
        snapshot = take_snapshot(folder)
        fresh = plan_arrays(ledger, settled, scheduler, snapshot, arrays)
        jobs = [_submit(folder, array, scheduler, snapshot) for array in fresh]
        notes = _notes(folder, ledger, arrays, scheduler.name)
        return Submission(jobs=jobs, runs=sum(len(array.runs) for array in fresh), notes=notes)


def plan_arrays(
    ledger: Ledger,
    settled: Reconciled,
    scheduler: Scheduler,
    snapshot: Snapshot,
    earlier: list[JobArray],
) -> list[JobArray]:
    """Group runs into the arrays that would be submitted now, each after the one that it waits for.

    What waits for a segment that is submitted with it, or stands in the queue, depends on that one's job.
    What waits for a segment that is neither is left out: that one has failed for good.
    """
    seed = f"{ledger.nonce}{len(earlier)}"
    waits = {run.run_id: parent for run in settled.ready if (parent := waits_for(ledger, run))}
    first = [run.run_id for run in settled.ready if run.run_id not in waits]
    scales = {scale: ledger.cluster.resources_of(scale) for scale in set(ledger.scales.values())}
    arrays = make_arrays(
        ledger.name,
        [(name, scales[ledger.scales[name]]) for name in by_followers(first, waits)],
        max_array=scheduler.max_array,
        array_parallelism=ledger.cluster.array_parallelism,
        snapshot=snapshot.path,
        exclude=sorted(settled.exclude),
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
            exclude=sorted(settled.exclude),
            after=before.token,
            after_index=index,
        )

    places = latest_elements(earlier)
    arrays += [make([[name]], *places[parent]) for name, parent in waits.items() if parent in settled.live]
    return shared_out([*arrays, *follow(arrays, waits, make)], ledger.cluster.array_parallelism)


def recover_unconfirmed(folder: Path, scheduler: Scheduler) -> None:
    """Find out what became of arrays whose launch died before it wrote down the scheduler's answer."""
    for array in read_arrays(folder):
        if read_submitted(array_folder(folder, array)) is None:
            job_id = scheduler.find(array.name) or ""
            write_submitted(folder, array, Submitted(cluster=scheduler.name, job_id=job_id))


def reconcile(folder: Path, ledger: Ledger, arrays: list[JobArray], scheduler: Scheduler) -> Reconciled:
    """Return the runs to submit, made ready for it, those that are queued or running, and nodes to avoid.

    A run that stands as running while nobody holds it is given the failure class that the scheduler names.
    """
    unfinished = unfinished_runs(ledger, folder)
    places = latest_elements(arrays)
    asked = {
        places[run.run_id][0].token: places[run.run_id][0] for run, _ in unfinished if run.run_id in places
    }
    elements = scheduler.states(_here(folder, list(asked.values()), scheduler.name))
    stuck = {f"{element.job_id}_{index}" for (_, index), element in elements.items() if element.is_stuck}
    if stuck:
        scheduler.cancel(sorted(stuck))
    settled, made = Reconciled(), False
    for run, status in unfinished:
        array, index = places.get(run.run_id, (None, 0))
        element = elements.get((array.name, index)) if array else None
        if element and element.is_live:
            settled.live.add(run.run_id)
            continue
        if array or status.state == "running":
            if run.is_held():
                continue
            made |= run.ensure_created(
                sync=False
            )  # where a node did so, a look from here may still be a cached one
            status = run.status()  # it may have ended while the scheduler was asked
        if status.state == "done":
            continue
        judged = classify_failure(status, element, was_submitted=array is not None)
        if judged != status:
            # Not synced: what a power cut takes away, the next launch finds out again.
            run.set_status(judged, sync=False)
        if is_open(judged, ledger.retry) and prepare_attempt(run, judged, ledger.retry):
            settled.ready.append(run)
            rule = ledger.retry.rule(judged.failure_class)
            if rule.action == "exclude_node" and element and element.node:
                settled.exclude.add(element.node)
    if made:
        os.sync()  # once for what may be thousands of folders
    return settled


def classify_failure(status: Status, element: JobElement | None, *, was_submitted: bool) -> Status:
    """Return the status of a run that nobody works on any more, with the cause that the scheduler gives."""
    if status.state == "running":
        if element is None:
            return status.failed("lost", "its process is gone and the scheduler does not remember it")
        if not element.death:
            return dataclasses.replace(status, state="submitted", message="cancelled")
        where = f" on {element.node}" if element.node else ""
        return status.failed(element.death, f"SLURM says {element.state}{where}")
    never_began = status.state in ("planned", "submitted") and was_submitted
    if never_began and element and element.death and element.state not in ("COMPLETED", "PREEMPTED"):
        if status.message.startswith("stopped"):  # its job left by itself
            return status
        return status.failed(element.death, f"its job ended before it began: SLURM says {element.state}")
    return status


def _submit(folder: Path, array: JobArray, scheduler: Scheduler, snapshot: Snapshot) -> str:
    write_array(folder, array)
    record_environment(array_folder(folder, array))
    job_id = scheduler.submit(folder, array, snapshot.version)
    submitted = Submitted(cluster=scheduler.name, job_id=job_id)
    write_submitted(folder, array, submitted)
    return f"{submitted.cluster}:{job_id}"


def _here(folder: Path, arrays: list[JobArray], cluster: str) -> list[JobArray]:
    """Leave out what went to another cluster: its scheduler cannot be asked from here."""
    kept = []
    for array in arrays:
        submitted = read_submitted(array_folder(folder, array))
        if submitted and submitted.job_id and submitted.cluster == cluster:
            kept.append(array)
    return kept


def _notes(folder: Path, ledger: Ledger, arrays: list[JobArray], cluster: str) -> list[str]:
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


def show_job_files(folder: Path, ledger: Ledger, scheduler: Scheduler, show: Callable[[str], None]) -> None:
    """Show the job files that a launch would submit now for what is left and not given up.

    Writes nothing and does not ask the queue: what waits or runs there already is shown as well.
    """
    snapshot = take_snapshot(folder, write=False)
    unfinished = unfinished_runs(ledger, folder, entered=False)
    settled = Reconciled(ready=[run for run, status in unfinished if is_open(status, ledger.retry)])
    for array in plan_arrays(ledger, settled, scheduler, snapshot, read_arrays(folder)):
        path = array_folder(folder, array)
        show(f"# {path}: {len(array.runs)} runs in {len(array.elements)} jobs")
        show(scheduler.job_file(folder, array, snapshot.version))
