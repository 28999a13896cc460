"""A sweep as a live page: one HTML file that stands alone, rewritten while the sweep is watched.

The page reloads itself; it needs no server and no network. It shows the grid of cells by state and loss, the
loss curves, what is spent and left, and the failures with their reasons.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from harness.run.folder import RunFolder
from harness.storage.files import write_text
from sweeps.cli.tables import clock
from sweeps.state.eta import counts, flops_left, flops_own
from sweeps.state.sweep_status import SweepStatus

REFRESH_S = 5
CURVES = 60  # runs whose loss curve is drawn: those that run, then the longest
CURVE_POINTS = 120
WIDTH, HEIGHT, MARGIN = 900, 300, 46  # of the curves, in the units of the SVG
Row = dict[str, Any]


def write_live_page(state: SweepStatus, folder: Path, path: Path, *, live: bool) -> None:
    """Write how the sweep in `folder` stands to `path`, in one step; a `live` page reloads itself."""
    write_text(path, live_page(state, folder, live=live))


def live_page(state: SweepStatus, folder: Path, *, live: bool) -> str:
    """Return the page as text."""
    rows = [*state.rows, *state.trunks]
    total, left = sum(map(flops_own, rows)), sum(map(flops_left, rows))
    spent_s = sum(filter(None, map(_spent_seconds, rows)))
    forecast = state.forecast
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("live.html").render(
        sweep=state.sweep,
        refresh=REFRESH_S if live else None,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        share=0.0 if total == 0 else 1 - left / total,
        counts=counts(map(_state, state.rows)),
        facts=[
            ("runs done", f"{sum(row['status'] == 'done' for row in state.rows)} of {len(state.rows)}"),
            ("ends in", "–" if forecast.ends_in_s is None else clock(forecast.ends_in_s)),
            ("FLOPs spent", f"{total - left:.3g}"),
            ("FLOPs left", f"{left:.3g}"),
            ("run-hours spent", _hours(spent_s / 3600)),
            ("run-hours left", _hours(forecast.remaining_run_hours)),
        ],
        grids=[grid(label, list(group)) for label, group in _by_setting(state)],
        curves=curves(rows, folder),
        width=WIDTH,
        height=HEIGHT,
        failures=[row for row in rows if row["status"].startswith("failed")],
        waiting=[row for row in rows if row["message"] and not row["status"].startswith("failed")],
        notes=state.notes,
    )


def grid(label: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a table of cells: a line per length, a column per recurrence, the runs of a cell side by side.

    A finished run has `rank`, 0 for the lowest loss of its line to 1 for the highest.
    """
    lengths = sorted({_length(row) for row in rows})
    depths = sorted({(row["kind"] != "fixed", row["mean_recurrence"], row["kind"]) for row in rows})
    lines = []
    for length in lengths:
        of_length = [row for row in rows if _length(row) == length]
        losses = [row["val_loss_nats"] for row in of_length if _has_loss(row)]
        cells = [
            [_cell(row, losses) for row in of_length if (row["mean_recurrence"], row["kind"]) == depth[1:]]
            for depth in depths
        ]
        lines.append({"heading": f"{length[1]:.3g} {length[0]}", "cells": cells})
    headings = ["fixed depth" if kind == "fixed" else f"µ = {mu:g}" for _, mu, kind in depths]
    return {"label": label, "headings": headings, "lines": lines}


def curves(rows: Sequence[Row], folder: Path) -> dict[str, Any] | None:
    """Return the training losses over the share of each run's steps, as SVG points; None before the first.

    The loss axis leaves out the first tenth of every run, which is far above the rest.
    """
    begun = [row for row in rows if row["step"]]
    begun.sort(key=lambda row: (row["status"] != "running", -row["step"]))
    series = {row["run_id"]: (row, _curve(folder, row)) for row in begun[:CURVES]}
    series = {name: (row, points) for name, (row, points) in series.items() if len(points) > 1}
    late = [loss for _, points in series.values() for share, loss in points if share > 0.1]
    if not late:
        return None
    low, high = min(late), max(late)
    room = 0.05 * (high - low) or 0.05
    low, high = low - room, high + room

    def place(share: float, loss: float) -> str:
        x = MARGIN + share * (WIDTH - MARGIN - 10)
        y = 10 + (high - min(loss, high)) / (high - low) * (HEIGHT - MARGIN)
        return f"{x:.1f},{y:.1f}"

    lines = [
        {
            "run_id": name,
            "state": _state(row),
            "title": f"{name}: {points[-1][1]:.4f} nats after {row['step']:,} of {row['steps']:,} steps",
            "points": " ".join(place(*point) for point in points),
        }
        for name, (row, points) in series.items()
    ]
    ticks = [
        (f"{10 + (high - loss) / (high - low) * (HEIGHT - MARGIN):.1f}", f"{loss:g}")
        for loss in _ticks(low, high)
    ]
    return {"lines": lines, "ticks": ticks, "hidden": len(begun) - len(lines)}


def _by_setting(state: SweepStatus) -> list[tuple[str, Iterable[Row]]]:
    """Return the runs by scale and by the settings in which they differ, with a label of each group."""

    def label(row: Row) -> str:
        settings = [f"{name} = {row[name]}" for name in state.axes]
        return ", ".join(filter(None, [str(row["scale"] or ""), *settings]))

    return [(key, list(group)) for key, group in groupby(sorted(state.rows, key=label), label)]


def _length(row: Row) -> tuple[str, float]:
    """Return the unit and the number by which a run's length was set: FLOPs of its budget, or tokens."""
    budget = row["target_flops"]
    return ("tokens", float(row["tokens"])) if budget is None else ("FLOPs", float(budget))


def _cell(row: Row, losses: Sequence[float]) -> dict[str, Any]:
    loss, state = row["val_loss_nats"], _state(row)
    share = row["step"] / max(row["steps"], 1)
    rank = None
    if _has_loss(row):
        rank = (loss - min(losses)) / ((max(losses) - min(losses)) or 1.0)
    shown = f"{loss:.3f}" if rank is not None else f"{share:.0%}" if state == "running" else state
    about = f"{row['run_id']}: {row['status']}, step {row['step']:,} of {row['steps']:,}"
    loss_text = f", {loss:.4f} nats" if rank is not None else ""
    return {
        "state": state,
        "rank": rank,
        "share": share,
        "shown": shown,
        "title": about + loss_text + (f"; {row['message']}" if row["message"] else ""),
    }


def _has_loss(row: Row) -> bool:
    loss = row["val_loss_nats"]
    return row["status"] == "done" and loss is not None and math.isfinite(loss)


def _state(row: Row) -> str:
    """Return the status without the class of a failure."""
    return str(row["status"]).split()[0].rstrip(":")


def _spent_seconds(row: Row) -> float | None:
    """Return the seconds that a run has trained by itself, from its speed; None before that is known."""
    rate = row["tokens_per_s"]
    steps = max(row["step"] - row["first_step"], 0)
    return steps * row["tokens"] / max(row["steps"], 1) / rate if rate else None


def _hours(hours: float | None) -> str:
    return "–" if hours is None else f"{hours:.3g}"


def _curve(folder: Path, row: Row) -> list[tuple[float, float]]:
    """Return (share of the steps, loss) of at most `CURVE_POINTS` lines of a run's metrics."""
    path = RunFolder(folder / row["run_id"]).metrics
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # the last line may be half written
    stride = max(1, len(lines) // CURVE_POINTS)
    read = [
        json.loads(line) for line in lines[(len(lines) - 1) % stride :: stride] if line
    ]  # with the newest
    return [
        (line["step"] / max(row["steps"], 1), line["train_loss_nats"])
        for line in read
        if line.get("train_loss_nats") is not None
    ]


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round values between `low` and `high`."""
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step)
    return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]
