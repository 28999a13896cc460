"""How a sweep stands: its run folders first, the scheduler second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.run.folder import RunFolder, Status
from harness.run.metrics import last_metrics
from model.config_validation import ConfigError
from sweeps.backends.base import Backend, Elements, JobElement, JobState
from sweeps.backends.job_array import (
    JobArray,
    Submitted,
    array_folder,
    latest_elements,
    read_arrays,
    read_submitted,
)
from sweeps.backends.registry import open_backend
from sweeps.state.ended_jobs import describe, ended_as, never_began
from sweeps.state.eta import (
    LOST,
    STALLED,
    SUSPENDED,
    UNNEEDED,
    forecast,
)
from sweeps.state.ledger import (
    UNREADABLE,
    Ledger,
    held_back_by,
    read_ledger,
    required_segments,
    state_of,
    waits_for,
)
from sweeps.state.sweep_status import SweepStatus

if TYPE_CHECKING:
    pass

RECORD_COLUMNS = ("scale", "kind", "mean_recurrence", "target_flops", "nominal_flops", "seed")
# Of these a sweep shows the ones in which its runs differ.
AXES = (
    "injection",
    "dataset",
    "data_digest",
    "optimizer",
    "adamw_learning_rate",
    "muon_learning_rate",
    "lr_scaling",
    "cooldown_fraction",
    "batch_tokens",
    "recipe",
)

NAMED = 3  # damaged runs in the remarks
STALLED_S = 600.0  # without a line of metrics, and
STALLED_LINES = 20  # as long as so many lines took: no run that goes on is silent for both


def status(folder: Path) -> SweepStatus:
    """Return how the sweep in `folder` stands; imports no pandas and writes nothing.

    Raises ConfigError if nothing was launched there.
    """
    ledger = read_ledger(folder)
    states = {run.run_id: (run, state_of(run)) for run in ledger.nodes(folder)}
    arrays = read_arrays(folder)
    latest = latest_elements(arrays)
    unfinished = [run for run, state in states.values() if state.state not in ("done", "failed")]
    asked = {latest[run.run_id][0].token: latest[run.run_id][0] for run in unfinished if run.run_id in latest}
    jobs = {array.token: read_submitted(array_folder(folder, array)) for array in arrays}
    backend = open_backend(replace(ledger.cluster, patience_s=0.0))
    elements, notes = _ask(backend, list(asked.values()), jobs)
    worked_on = backend.is_working(folder)
    idle = backend.pulls_runs and not worked_on
    if asked:  # the scheduler may have taken seconds to answer, and runs go on meanwhile
        states |= {run.run_id: (run, state_of(run)) for run in unfinished}
    needed = required_segments(ledger, folder, {name: state for name, (_, state) in states.items()})
    rows = []
    for run_id, (run, state) in states.items():
        array, index = latest.get(run_id, (None, 0))
        element = elements.get((array.name, index)) if array else None
        job = jobs[array.token] if array else None
        where = job.element(index) if job and job.job_id else ""
        row = _row(run, state, element, where, ledger, idle=idle)
        if array and row["status"] == "planned" and never_began(run, state, where.partition(":")[2]):
            row |= _end_of_job(folder, array, index, element, backend)
        if run_id in ledger.segments and run_id not in needed and row["status"] in ("planned", LOST):
            row |= {"status": UNNEEDED, "message": ""}
        rows.append(row)
    notes += [row["message"] for row in rows if row["status"] == f"failed:{UNREADABLE}"][:NAMED]
    segments = len(rows) - len(ledger.run_ids)
    axes = [name for name in AXES if len({row[name] for row in rows[segments:]}) > 1]
    hidden = set(AXES) - set(axes)
    shown = [{name: value for name, value in row.items() if name not in hidden} for row in rows]
    return SweepStatus(
        sweep=folder.name,
        rows=shown[segments:],
        trunks=shown[:segments],
        axes=axes,
        notes=notes,
        forecast=forecast(rows),
        worked_on=worked_on,
        launched=ledger.overrides,
    )


def is_worked_on(folder: Path) -> bool:
    """Return True if a worker process is at the sweep in `folder` now."""
    return open_backend(read_ledger(folder).cluster).is_working(folder)


def shown_status(run: RunFolder, state: Status, element: JobElement | None, *, idle: bool = False) -> str:
    """Return the status of a run as it is shown: its folder's, or its job's where the folder cannot know.

    `idle`: its cluster has no queue, and no worker is at the sweep.
    """
    if element and element.state is JobState.UNKNOWN:
        element = None
    if state.state == "running" and not run.is_held():
        state = run.status()  # it may have ended since it was read
        if state.state == "running":
            return "submitted" if element and element.is_live else LOST
    if state.state == "running" and element and element.state is JobState.SUSPENDED:
        return SUSPENDED
    if state.state in ("planned", "submitted") and (element or idle):
        return "submitted" if element and element.is_live else "planned"
    return str(state)


def _ask(
    backend: Backend, arrays: list[JobArray], jobs: Mapping[str, Submitted | None]
) -> tuple[Elements, list[str]]:
    """Ask the scheduler once about the arrays of unfinished runs; no answer is a remark, not an error.

    What it does not list although it has answered is FORGOTTEN, unless another cluster has the array or
    somebody is submitting it now.
    """
    if not arrays:
        return {}, []
    try:
        elements = dict(backend.states(arrays, patient=False))
        for array in arrays:
            absent = [i for i in range(len(array.elements)) if (array.name, i) not in elements]
            job = jobs[array.token] if absent else None
            if job and (not job.job_id or job.cluster == backend.name):
                elements |= {(array.name, i): JobElement(state=JobState.FORGOTTEN) for i in absent}
    except (OSError, ValueError) as error:
        return {}, [f"the scheduler was not asked, so a queued run may be shown as planned: {error}"]
    unknown = {element.reason for element in elements.values() if element.state is JobState.UNKNOWN}
    return elements, [f"what is no longer queued may be shown as submitted: {why}" for why in sorted(unknown)]


def _end_of_job(
    folder: Path, array: JobArray, index: int, element: JobElement | None, backend: Backend
) -> dict[str, str]:
    """Return node and message of a run whose job ended before it began, {} if the run is only to start."""
    output = backend.job_output(array_folder(folder, array), index)
    ended = ended_as(element, output)
    if ended is None or not ended.failure_class or (ended.state is JobState.FORGOTTEN and output is None):
        return {}
    return {"node": ended.node, "message": describe(ended, output, backend.display_name)}


def _silence(run: RunFolder, state: Status, newest: Mapping[str, Any], record: Mapping[str, Any]) -> float:
    """Return for how many seconds a run has measured nothing, 0 if that is no longer than usual."""
    if not newest or newest["step"] >= record["steps"]:  # it prepares, or evaluates
        return 0.0
    silent_s = time.time() - max(run.metrics.stat().st_mtime, state.updated_s)
    if silent_s < STALLED_S:
        return 0.0
    rate = newest.get("tokens_per_s")
    usual_s = run.config().training.log_every * record["batch_tokens"] / rate if rate else 0.0
    return silent_s if silent_s > STALLED_LINES * usual_s else 0.0


def _row(
    run: RunFolder, state: Status, element: JobElement | None, job: str, ledger: Ledger, *, idle: bool
) -> dict[str, Any]:
    try:
        record = run.record()
    except ConfigError as error:
        return _unreadable(run, str(error))
    newest = {} if state.state in ("planned", "done") else last_metrics(run.metrics)
    shown = shown_status(run, state, element, idle=idle)
    step = state.steps if state.state == "done" else newest.get("step", 0)
    rate = record.get("tokens_per_s") or newest.get("tokens_per_s")
    message = state.message
    trunk_id, first_step, waits = _lineage(run, record, ledger, state)
    if waits and state.state != "running":
        message = waits
    elif element is not None and element.state is JobState.QUEUED:
        message = "; ".join(filter(None, (message, f"waits: {element.reason}")))
    if shown == "running" and (silent_s := _silence(run, state, newest, record)):
        shown, message = STALLED, f"no step for {silent_s / 60:.0f} min"
    return {
        "run_id": run.run_id,
        "trunk_id": trunk_id,
        **{name: record.get(name) for name in (*RECORD_COLUMNS, *AXES)},
        "tokens": record["tokens"],
        "status": shown,
        "attempts": state.attempts,
        "first_step": first_step,
        "step": step,
        "steps": record["steps"],
        "train_loss_nats": newest.get("train_loss_nats"),
        "val_loss_nats": record.get("val_loss_nats"),
        "tokens_per_s": rate,
        "eta_s": (record["steps"] - step) * record["batch_tokens"] / rate
        if shown == "running" and rate
        else None,
        "job": job,
        "node": element.node if element else "",
        "message": message,
    }


def _unreadable(run: RunFolder, message: str) -> dict[str, Any]:
    """Return the row of a run without a record."""
    unknown = (*RECORD_COLUMNS, *AXES, "train_loss_nats", "val_loss_nats", "tokens_per_s", "eta_s")
    return {
        "run_id": run.run_id,
        "trunk_id": "",
        **dict.fromkeys(unknown),
        **dict.fromkeys(("nominal_flops", "tokens", "attempts", "first_step", "step", "steps"), 0),
        "status": f"failed:{UNREADABLE}",
        "job": "",
        "node": "",
        "message": message,
    }


def _lineage(run: RunFolder, record: dict[str, Any], ledger: Ledger, state: Status) -> tuple[str, int, str]:
    """Return a row's trunk, the step at which it takes over from it, and what it waits for, in words."""
    if own := ledger.segments.get(run.run_id):
        trunk, first_step = own.trunk_id, own.start
    elif parent := ledger.segments.get(ledger.parent_of(run.run_id)):
        trunk, first_step = parent.trunk_id, record.get("trunk_steps") or parent.start_for(record["steps"])
    else:
        return "", 0, ""
    if state.state not in ("planned", "submitted"):
        return trunk, first_step, ""
    waits = waits_for(ledger, run)
    if not waits:
        return trunk, first_step, ""
    failed = held_back_by(ledger, run)
    return trunk, first_step, f"held back: {failed} has failed" if failed else f"waits for {waits}"
