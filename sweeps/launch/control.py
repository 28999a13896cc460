"""Changes to a launched sweep: cancel what is queued or running, start failed runs again."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path

from harness.run.folder import RunFolder
from harness.storage.files import exclusive
from model.config_validation import ConfigError, closest
from sweeps.backends.base import Backend
from sweeps.backends.job_array import array_folder, element_id, latest_elements, read_arrays, read_submitted
from sweeps.backends.registry import open_backend
from sweeps.config.commands import ChangeConfig
from sweeps.launch.bad_nodes import forget
from sweeps.launch.launch import start_missing
from sweeps.state.ledger import UNREADABLE, Ledger, read_ledger, state_of
from sweeps.state.retry import reopen


def find_run(folder: Path, ledger: Ledger, name: str) -> RunFolder:
    """Return the run that `name` means: its id, the end of it, or its folder in the sweep.

    Raises ConfigError for none or several.
    """
    name = Path(name).name if Path(name).parent == folder else name
    known = [run.run_id for run in ledger.nodes(folder)]
    matches = [run_id for run_id in known if run_id == name or run_id.endswith(name)]
    if len(matches) == 1:
        return RunFolder(folder / matches[0])
    if matches:
        raise ConfigError(
            f"run={name} means {len(matches)} runs ({', '.join(matches[:3])}, ...): give all of its id"
        )
    raise ConfigError(f"run={name} is not in sweep {ledger.name}{closest(name, known)}")


def cancel(settings: ChangeConfig) -> list[str]:
    """Stop the sweep, or one run of it; return what was cancelled, one line for each job or process.

    It is stopped on every kind of cluster where it was launched.
    Jobs leave the queue; running ones save a checkpoint first. Nothing is lost: launch continues them.
    """
    folder = settings.folder
    ledger = read_ledger(folder)
    chosen = {run.run_id for run in ledger.nodes(folder)}
    if settings.run is not None:
        chosen = {find_run(folder, ledger, settings.run).run_id}
    cancelled = []
    for cluster in ledger.clusters:
        backend = open_backend(cluster)
        if not backend.pulls_runs:
            cancelled += _cancel_jobs(folder, backend, chosen, is_earlier=cluster is not ledger.cluster)
            continue
        workers = backend.workers(folder)
        if settings.run is not None and (workers or cluster is ledger.cluster):
            raise ConfigError(f"{backend.display_name} is cancelled as a whole: leave run=... out")
        backend.cancel(workers)
        cancelled += [f"worker process {worker}" for worker in workers]
    return cancelled


def retry(settings: ChangeConfig) -> tuple[list[str], list[str]]:
    """Open failed runs again, all (`failed=true`) or one (`run=ID`), and start them.

    Returns their ids, and remarks.
    """
    folder = settings.folder
    ledger = read_ledger(folder)
    if settings.failed == (settings.run is not None):
        raise ConfigError("retry what? failed=true for all failed runs, or run=ID for one")
    chosen = [find_run(folder, ledger, settings.run)] if settings.run else ledger.nodes(folder)
    states = {run: state_of(run) for run in chosen}
    failed = [
        run for run, state in states.items() if state.state == "failed" and state.failure_class != UNREADABLE
    ]
    if settings.run and not failed:
        raise ConfigError(f"run={settings.run} has not failed: it is {chosen[0].status()}")
    with exclusive(folder / ".launch.lock", wait=True):
        forget(folder)
        for run in failed:
            reopen(run)
    notes = start_missing(folder).notes if failed else []
    return [run.run_id for run in failed], notes


def _cancel_jobs(folder: Path, backend: Backend, chosen: set[str], *, is_earlier: bool) -> list[str]:
    with exclusive(folder / ".launch.lock", wait=True):
        arrays = read_arrays(folder)
        try:
            elements = backend.states(arrays)
        except ConfigError as error:
            if not is_earlier:
                raise
            warnings.warn(f"jobs on {backend.display_name}, if any, are not cancelled: {error}", stacklevel=3)
            return []
        latest = latest_elements(arrays)
        jobs: dict[str, list[str]] = {}
        for run_id in sorted(chosen & latest.keys()):
            array, index = latest[run_id]
            element = elements.get((array.name, index))
            submitted = read_submitted(array_folder(folder, array))
            if not (element and element.is_live and submitted):
                continue
            if state_of(RunFolder(folder / run_id)).state != "done":
                jobs.setdefault(element_id(submitted.job_id, index), []).append(run_id)
        backend.cancel(jobs)
        for run_id in (run_id for runs in jobs.values() for run_id in runs):
            run = RunFolder(folder / run_id)
            run.ensure_created(sync=False)  # first: a network file system may still show an older status
            if (status := state_of(run)).state == "planned":
                run.set_status(dataclasses.replace(status, message="cancelled"), sync=False)
        os.sync()  # once for what may be thousands of folders
    return [f"{backend.name}:{job} ({', '.join(runs)})" for job, runs in jobs.items()]
