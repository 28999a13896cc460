"""What the command line prints: results in, text or JSON out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sweeps.cli.tables import as_json, as_text, plain

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from harness.run.record import Evaluation
    from sweeps.cli.evaluate import TaskScores
    from sweeps.config.study import CollectConfig, StatusConfig


def curve(result: Evaluation, form: str) -> str:
    """Return a run's loss at every test-time depth, with the law of that curve."""
    if form == "json":
        return json.dumps(vars(result), indent=1)
    rows = zip(result.loss_nats, result.loss_se_nats, result.bits_per_byte, strict=True)
    lines = [
        f"{depth:>3}  {row[0]:11.4f}  {row[1]:.4f}  {row[2]:8.4f}" for depth, row in enumerate(rows, start=1)
    ]
    return "\n".join(["  T  loss (nats)     ±  bits/byte", *lines, _saturating(result.loss_nats)])


def _saturating(losses: list[float]) -> str:
    """Return the law of a depth curve in one line."""
    import numpy as np

    from analysis.laws.depth_curve import fit_saturating

    law = fit_saturating(np.arange(1.0, len(losses) + 1), np.array(losses))
    if law.rate is None:
        return f"L(T) = L_inf + Z exp(-z T): {law.refusal}"
    low, high = (f"{end:.2f}" if end is not None else "" for end in (law.rate_low, law.rate_high))
    return (
        f"L(T) = L_inf + Z exp(-z T): L_inf = {law.floor_nats:.4f} nats, Z = {law.amplitude_nats:.4f}, "
        f"z = {law.rate:.2f} [{low}, {high}] per loop"
    )


def scores(result: TaskScores, form: str) -> str:
    """Return the scores of tasks, one row per model, task and depth, and the notes on them."""
    from sweeps.cli.evaluate import SCORE_COLUMNS

    if form == "json":
        return as_json(result.frame, notes=result.notes)
    return "\n".join([as_text(result.frame, SCORE_COLUMNS), *result.notes])


def planned(frame: pd.DataFrame, form: str) -> str:
    """Return a plan: its cells, totals, price and shared trunks."""
    from sweeps.cli.tables import PLAN_COLUMNS
    from sweeps.planning.plan import summary, totals

    if form == "json":
        more = {name: frame.attrs[name] for name in ("notes", "price", "trunks")}
        return as_json(frame, totals=totals(frame), **more)
    axes = {key: key.rpartition(".")[2] for key in frame.attrs["axes"]}
    return f"{as_text(frame, axes | PLAN_COLUMNS)}\n{summary(frame)}"


def launched(folder: Path, notes: Sequence[str], root: str) -> str:
    """Return how a sweep stands that was just launched, with what the launch remarked."""
    from sweeps.state.eta import summary
    from sweeps.state.status import standing

    found = standing(folder)
    attrs = {**found.attrs, "notes": [*notes, *found.attrs["notes"]]}
    statuses = [row["status"] for row in found.rows]
    return summary(statuses, attrs, folder.name, root, worked_on=True)  # a rehearsal has its own name


def status(frame: pd.DataFrame, settings: StatusConfig) -> str:
    """Return how a launched sweep stands, cell by cell, its counts, forecast and next command."""
    from sweeps.cli.tables import STATUS_COLUMNS
    from sweeps.state.eta import summary, with_trunks
    from sweeps.state.ledger import is_worked_on

    if settings.format == "json":
        return status_json(frame)
    worked_on = is_worked_on(settings.folder)
    told = summary(list(frame["status"]), frame.attrs, settings.sweep, settings.root, worked_on=worked_on)
    columns = {"run_id": "run"} | dict.fromkeys(frame.attrs["axes"], "") | STATUS_COLUMNS
    return f"{as_text(with_trunks(frame), columns)}\n{told}"


def status_json(frame: pd.DataFrame) -> str:
    """Return the same for machines."""
    from sweeps.state.eta import counts

    more = {name: frame.attrs[name] for name in ("notes", "forecast", "trunks")}
    return as_json(frame, counts=counts(frame["status"]), **more)


def one_run(settings: StatusConfig) -> str:
    """Return all that is known of the run `settings.run`."""
    from sweeps.launch.control import find_run
    from sweeps.state.inspection import as_text, inspect_run
    from sweeps.state.ledger import read_ledger

    ledger = read_ledger(settings.folder)
    run = find_run(settings.folder, ledger, str(settings.run))
    found = inspect_run(settings.folder, ledger, run)
    return json.dumps(plain(found), indent=1) if settings.format == "json" else as_text(found)


def stopped(what: Sequence[str], form: str) -> str:
    """Return what was cancelled."""
    if form == "json":
        return json.dumps({"cancelled": what}, indent=1)
    return "\n".join(f"cancelled {one}" for one in what) or "nothing was queued or running"


def opened(runs: Sequence[str], notes: Sequence[str], form: str) -> str:
    """Return which failed runs were started again."""
    if form == "json":
        return json.dumps({"started": runs, "notes": notes}, indent=1)
    return "\n".join([*([f"started again: {run}" for run in runs] or ["no run has failed"]), *notes])


def collected(runs: pd.DataFrame, depths: pd.DataFrame, settings: CollectConfig) -> str:
    """Return which tables were written and what they lack."""
    from sweeps.state.eta import gaps

    if settings.format == "json":
        return as_json(runs)
    rows = {"runs": len(runs), "depths": len(depths), **runs.attrs["beside"]}
    written = ", ".join(f"{name}.parquet ({count} rows)" for name, count in rows.items())
    return f"{settings.folder}: {written}\n{gaps(runs)}"


def synced(frame: pd.DataFrame, settings: Any) -> str:
    """Return how many wandb histories were rebuilt."""
    if settings.format == "json":
        return as_json(frame)
    counts = frame["wandb"].value_counts().items()
    return f"{settings.folder}: " + ", ".join(f"{count} {told}" for told, count in counts)


def fitted(result: Any, form: str) -> str:
    """Return a fit or a comparison."""
    return str(result.to_json() if form == "json" else result.summary())


def compared(result: Any, figures: Sequence[Path], form: str) -> str:
    """Return a comparison and where its figures lie."""
    text = fitted(result, form)
    if form == "json" or not figures:
        return text
    return f"{text}\n\nfigures (PNG and data as CSV beside them): {', '.join(map(str, figures))}"


def reported(page: Path, form: str) -> str:
    """Return where a report lies."""
    return json.dumps({"path": str(page)}, indent=1) if form == "json" else str(page)
