"""From open runs to job arrays: the state of each run is reconciled, and what is missing is submitted."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from analysis.format import plural
from harness.storage.files import exclusive
from model.config_validation import ConfigError
from sweeps.backends.base import (
    Backend,
    JobState,
    SchedulerError,
)
from sweeps.backends.job_array import (
    JobArray,
    array_folder,
    latest_elements,
    read_arrays,
    read_submitted,
)
from sweeps.launch.arrays import following_arrays, make_arrays, make_token, most_followed_first, share_cap
from sweeps.launch.bad_nodes import avoid, bad_nodes
from sweeps.launch.code_snapshot import Snapshot, take_snapshot
from sweeps.launch.outdated import outdated_jobs, remark
from sweeps.launch.reconcile import Reconciled, reconcile, recover_unconfirmed
from sweeps.launch.send import job_of, submit_arrays, submit_follow_up
from sweeps.state.ledger import Ledger, is_open, unfinished_runs, waits_for

SHOWN_MAX_ARRAY = 1001  # where job files are shown and the cluster does not answer


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What one call of `submit_missing` did."""

    jobs: list[str]  # qualified array ids, or worker processes
    runs: int = 0
    notes: list[str]

    def __str__(self) -> str:
        if not self.jobs:
            return "nothing to start"
        return (
            f"submitted {plural(self.runs, 'run')}: {', '.join(self.jobs)}"
            if self.runs
            else ", ".join(self.jobs)
        )


def submit_missing(folder: Path, ledger: Ledger, backend: Backend, *, resubmit: bool = False) -> Submission:
    """Submit every run of the sweep that is not finished, queued or given up, one array per shape.

    A lock admits one launch at a time. An array is written before it is submitted: if a launch dies at any
    point, the next one completes it. What finds no room in the queue waits for the next launch. With
    `resubmit`, queued jobs that ask for what the profile said before are replaced.
    """
    with exclusive(folder / ".launch.lock", wait=True):
        recover_unconfirmed(folder, backend)
        arrays = read_arrays(folder)
        reconciled, notes = _reconcile(folder, ledger, arrays, backend, resubmit=resubmit)
        if not reconciled.ready:
            return Submission(jobs=[], notes=notes)
        bad = bad_nodes(folder, ledger.cluster.bad_node_after)
        reconciled.exclude.update(bad)
        snapshot = take_snapshot(folder)

        def first(count: int) -> list[JobArray]:
            part = dataclasses.replace(reconciled, ready=reconciled.ready[:count])
            return plan_arrays(ledger, part, backend.max_array, snapshot, arrays)

        wanted = first(len(reconciled.ready))
        follows = ledger.cluster.keep_submitting
        fitting = _fitting(first, wanted, len(reconciled.ready), backend.room(), follows=follows)
        fitting, named = avoid(backend, fitting, bad)
        sent, full = submit_arrays(folder, fitting, backend, snapshot)
        jobs, runs = [job_of(folder, array) for array in sent], _runs(sent)
        if waiting := _runs(wanted) - runs:
            why = full or "the queue holds as many of your jobs as it may"
            who = "launch again submits them"
            if follows:
                who = submit_follow_up(folder, ledger, backend, snapshot, [*arrays, *sent]) or who
            named.append(
                f"{plural(waiting, 'run')} {'is' if waiting == 1 else 'are'} not submitted yet, {who}: {why}"
            )
        return Submission(jobs=jobs, runs=runs, notes=[*named, *notes])


def _runs(arrays: list[JobArray]) -> int:
    return sum(len(array.runs) for array in arrays)


def _reconcile(
    folder: Path, ledger: Ledger, arrays: list[JobArray], backend: Backend, *, resubmit: bool
) -> tuple[Reconciled, list[str]]:
    """Reconcile the runs; name queued jobs that ask for what the profile said before, or cancel them."""
    reconciled = reconcile(folder, ledger, arrays, backend)
    notes = _notes(folder, arrays, backend.name)
    outdated = outdated_jobs(ledger, latest_elements(arrays), reconciled.elements)
    if outdated and resubmit:
        backend.cancel(sorted(outdated))
        reconciled = reconcile(folder, ledger, arrays, backend)  # some may have started meanwhile
    elif outdated:
        notes.append(remark(outdated, backend.name))
    unknown = {each.reason for each in reconciled.elements.values() if each.state is JobState.UNKNOWN}
    return reconciled, [*notes, *sorted(unknown)]


def _fitting(
    first: Callable[[int], list[JobArray]],
    wanted: list[JobArray],
    count: int,
    room: int | None,
    *,
    follows: bool,
) -> list[JobArray]:
    """Return the arrays of as many of the `count` runs, the first ones, as there is room for in the queue.

    A job that `follows` needs room too.
    """

    def size(arrays: list[JobArray]) -> int:
        return sum(len(array.elements) for array in arrays)

    if room is None or size(wanted) <= room:
        return wanted
    room -= follows and room > 1
    return first(bisect.bisect_right(range(count + 1), room, key=lambda runs: size(first(runs))) - 1)


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
        show(f"# {path}: {plural(len(array.runs), 'run')} in {plural(len(array.elements), 'job')}")
        show(backend.job_file(folder, array, snapshot.version))


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
