"""How a sweep stands: its run folders first, the scheduler second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.run.folder import RunFolder, Status
from harness.run.metrics import last_metrics
from sweeps.backends.job_array import JobArray, array_folder, latest_elements, read_arrays, read_submitted
from sweeps.state.dependencies import held_back_by, required_segments, waits_for
from sweeps.state.eta import LOST, UNNEEDED, forecast
from sweeps.state.ledger import Ledger, read_ledger

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.backends.base import Elements, JobElement

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


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The rows of runs, and beside them those of trunks, remarks and the forecast, as `status` names them."""

    rows: list[dict[str, Any]]
    attrs: Mapping[Any, Any]


def status(folder: Path) -> pd.DataFrame:
    """Return one row per run of the sweep in `folder`.

    Columns: run_id, trunk_id, scale, kind, mean_recurrence, target_flops, nominal_flops, seed, status,
    attempts, first_step (where it takes over from a trunk), step, steps, train_loss_nats, val_loss_nats,
    tokens_per_s, eta_s, job, node, message, and, named in `frame.attrs["axes"]`, those of the learning rates,
    injection, data and other settings in which the runs differ. A run that is marked running while no process
    holds it and no job is at it is shown as `lost`. `frame.attrs["trunks"]` has a row like these for each
    segment of a trunk, where `unneeded` is one from which nothing open has still to start;
    `frame.attrs["notes"]` says where the scheduler could not be asked. Raises ConfigError where nothing was
    launched.
    """
    import pandas as pd

    found = standing(folder)
    frame = pd.DataFrame(found.rows)
    axes = [name for name in AXES if frame[name].nunique(dropna=False) > 1]
    frame = frame.drop(columns=[name for name in AXES if name not in axes])
    trunks = [{str(name): row[str(name)] for name in frame} for row in found.attrs["trunks"]]
    frame.attrs = {**found.attrs, "trunks": trunks, "axes": axes}
    return frame


def standing(folder: Path) -> Standing:
    """Return what `status` returns as plain rows, every axis among them; imports no pandas."""
    ledger = read_ledger(folder)
    states = {run.run_id: (run, run.status()) for run in ledger.nodes(folder)}
    arrays = read_arrays(folder)
    places = latest_elements(arrays)
    unfinished = [run for run, state in states.values() if state.state not in ("done", "failed")]
    elements, notes = _ask(ledger, places, unfinished)
    if ledger.cluster.kind == "slurm":  # which may take seconds to answer, and runs go on meanwhile
        states |= {run.run_id: (run, run.status()) for run in unfinished}
    jobs = {array.token: read_submitted(array_folder(folder, array)) for array in arrays}
    needed = required_segments(ledger, folder, {name: state for name, (_, state) in states.items()})
    rows = []
    for run_id, (run, state) in states.items():
        place = places.get(run_id)
        element = elements.get((place[0].name, place[1])) if place else None
        job = jobs[place[0].token] if place else None
        where = job.element(place[1]) if job and place and job.job_id else ""
        row = _row(run, state, element, where, ledger)
        if run_id in ledger.segments and run_id not in needed and row["status"] in ("planned", LOST):
            row |= {"status": UNNEEDED, "message": ""}
        rows.append(row)
    segments = len(rows) - len(ledger.run_ids)
    attrs = {"sweep": folder.name, "notes": notes, "trunks": rows[:segments], "forecast": forecast(rows)}
    return Standing(rows=rows[segments:], attrs=attrs)


def attempts_of(run: RunFolder) -> list[dict[str, Any]]:
    """Return where each attempt of a run ran: job, node, process, start."""
    path = run.path / "logs" / "attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _ask(
    ledger: Ledger, places: dict[str, tuple[JobArray, int]], unfinished: list[RunFolder]
) -> tuple[Elements, list[str]]:
    """Ask the scheduler once about the arrays of unfinished runs; its silence is a remark, not an error."""
    arrays = [places[run.run_id][0] for run in unfinished if run.run_id in places]
    asked = {array.token: array for array in arrays}
    if not asked or ledger.cluster.kind != "slurm":
        return {}, []
    from sweeps.backends.slurm import Slurm

    try:
        return Slurm(ledger.cluster).states(asked.values(), patient=False), []
    except (OSError, ValueError) as error:
        return {}, [f"the scheduler was not asked, so a queued run may be shown as planned: {error}"]


def shown_status(run: RunFolder, state: Status, element: JobElement | None) -> str:
    """Return how a run is shown, with the scheduler's word where the folder cannot know better."""
    if state.state == "running" and not run.is_held():
        state = run.status()  # it may have ended since it was read
        if state.state == "running":
            return "submitted" if element and element.is_live else LOST
    if state.state in ("planned", "submitted") and element:
        return "submitted" if element.is_live else "planned"
    return str(state)


def _row(
    run: RunFolder, state: Status, element: JobElement | None, job: str, ledger: Ledger
) -> dict[str, Any]:
    record = run.record()
    newest = {} if state.state in ("planned", "done") else last_metrics(run.metrics)
    shown = shown_status(run, state, element)
    step = state.steps if state.state == "done" else newest.get("step", 0)
    rate = record["tokens_per_s"] or newest.get("tokens_per_s")
    message = state.message
    trunk_id, first_step, waits = _lineage(run, record, ledger, state)
    if waits and state.state != "running":
        message = waits
    if element is not None and element.is_live and element.state == "PENDING":
        message = message or f"waits: {element.reason}"
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
        "val_loss_nats": record["val_loss_nats"],
        "tokens_per_s": rate,
        "eta_s": (record["steps"] - step) * record["batch_tokens"] / rate
        if shown == "running" and rate
        else None,
        "job": job,
        "node": element.node if element else "",
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
