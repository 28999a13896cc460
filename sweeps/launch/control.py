"""Changing a launched sweep: cancel what is queued or running, open failed runs again."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

from harness.run.folder import RunFolder
from harness.storage.locks import exclusive
from model.config_validation import ConfigError, closest
from sweeps.backends.job_array import array_folder, latest_elements, read_arrays, read_submitted
from sweeps.config.commands import ChangeConfig
from sweeps.launch.launch import start_missing
from sweeps.state.ledger import Ledger, read_ledger, worker_pids
from sweeps.state.retry import reopen


def find_run(folder: Path, ledger: Ledger, name: str) -> RunFolder:
    """Return the run that `name` means: its id, the end of it, or its folder in the sweep.

    Raises ConfigError for none or several.
    """
    name = Path(name).name if Path(name).parent == folder else name
    known = [run.run_id for run in ledger.nodes(folder)]
    found = [run_id for run_id in known if run_id == name or run_id.endswith(name)]
    if len(found) == 1:
        return RunFolder(folder / found[0])
    if found:
        raise ConfigError(
            f"run={name} means {len(found)} runs ({', '.join(found[:3])}, ...): give all of its id"
        )
    raise ConfigError(f"run={name} is not in sweep {ledger.name}{closest(name, known)}")


def cancel(settings: ChangeConfig) -> list[str]:
    """Stop the sweep, or one run of it; returns what was cancelled, in words.

    Jobs leave the queue, running ones save a checkpoint first. Nothing is lost: launch continues them.
    """
    folder = settings.folder
    ledger = read_ledger(folder)
    chosen = {run.run_id for run in ledger.nodes(folder)}
    if settings.run is not None:
        chosen = {find_run(folder, ledger, settings.run).run_id}
    if ledger.cluster.kind != "slurm":
        return _cancel_local(folder, settings.run)
    return _cancel_jobs(folder, ledger, chosen)


def retry(settings: ChangeConfig) -> tuple[list[str], list[str]]:
    """Open failed runs again, all (`failed=true`) or one (`run=ID`), and start them.

    Returns their ids, and remarks.
    """
    folder = settings.folder
    ledger = read_ledger(folder)
    if settings.failed == (settings.run is not None):
        raise ConfigError("retry what? failed=true for all failed runs, or run=ID for one")
    chosen = [find_run(folder, ledger, settings.run)] if settings.run else ledger.nodes(folder)
    failed = [run for run in chosen if run.status().state == "failed"]
    if settings.run and not failed:
        raise ConfigError(f"run={settings.run} has not failed: it is {chosen[0].status()}")
    with exclusive(folder / ".launch.lock", wait=True):
        for run in failed:
            reopen(run)
    notes = start_missing(folder) if failed else []
    return [run.run_id for run in failed], notes


def _cancel_jobs(folder: Path, ledger: Ledger, chosen: set[str]) -> list[str]:
    from sweeps.backends.slurm import Slurm

    slurm = Slurm(ledger.cluster)
    with exclusive(folder / ".launch.lock", wait=True):
        arrays = read_arrays(folder)
        elements = slurm.states(arrays)
        places = latest_elements(arrays)
        jobs: dict[str, list[str]] = {}
        for run_id in sorted(chosen & places.keys()):
            array, index = places[run_id]
            element = elements.get((array.name, index))
            submitted = read_submitted(array_folder(folder, array))
            if (
                element
                and element.is_live
                and submitted
                and RunFolder(folder / run_id).status().state != "done"
            ):
                jobs.setdefault(f"{submitted.job_id}_{index}", []).append(run_id)
        slurm.cancel(jobs)
        for run_id in (run_id for runs in jobs.values() for run_id in runs):
            run = RunFolder(folder / run_id)
            run.ensure_created(
                sync=False
            )  # before its status is read, which may be younger than a cached look
            if (status := run.status()).state == "planned":
                run.set_status(dataclasses.replace(status, message="cancelled"), sync=False)
        os.sync()  # once for what may be thousands of folders
    return [f"{slurm.name}:{job} ({', '.join(runs)})" for job, runs in jobs.items()]


def _cancel_local(folder: Path, run: str | None) -> list[str]:
    if run is not None:
        raise ConfigError("the local pool is cancelled as a whole: leave run=... out")
    pids = worker_pids(folder)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    return [f"worker process {pid}" for pid in pids]
