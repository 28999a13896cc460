"""The plan: every cell with its verdict, length, cost and state, as a table; no side effect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.data_config import DataConfig
from harness.dataset import find_prepared
from harness.record import planned_columns
from harness.runfolder import RunFolder
from model.memory import memory_estimate_bytes
from sweeps.config import StudyConfig
from sweeps.grid import Cell, DataFacts, cells, truncated_curves

if TYPE_CHECKING:
    import pandas as pd


def plan_cells(study: StudyConfig) -> list[Cell]:
    """Return the study's cells, named where the data is prepared under `study.cache`."""
    return cells(study, lambda data: _facts(data, Path(study.cache)))


def plan(study: StudyConfig) -> pd.DataFrame:
    """Return one row per cell: verdict, reason, run_id, the runs table's planned columns, hours and state.

    `frame.attrs["notes"]` holds remarks on the grid, `frame.attrs["price"]` says where the hours come from.
    Hours are device-hours from the throughput of finished runs of the same sweep, else from
    `cluster.device_flops_per_s`, else missing.
    """
    import pandas as pd

    planned = plan_cells(study)
    folder = Path(study.root) / str(study.sweep.name)
    frame = pd.DataFrame([_row(cell, folder) for cell in planned])
    rate, price = _flops_per_s(frame, study)
    frame["hours"] = frame["nominal_flops"] / rate / 3600
    frame.attrs = {"notes": truncated_curves(planned), "price": price}
    return frame.drop(columns="measured_flops_per_s")


def totals(frame: pd.DataFrame) -> dict[str, float]:
    """Return counts, FLOPs and hours of the cells that count, and of those that remain to be run."""
    kept = frame[frame["verdict"] == "OK"]
    rest = kept[kept["status"] != "done"]
    return {
        "cells": len(frame),
        "cells_ok": len(kept),
        "cells_dropped": len(frame) - len(kept),
        "cells_done": len(kept) - len(rest),
        "nominal_flops": float(kept["nominal_flops"].sum()),
        "tokens": float(kept["tokens"].sum()),
        "hours": float(kept["hours"].sum(min_count=1)),
        "remaining_flops": float(rest["nominal_flops"].sum()),
        "remaining_hours": float(rest["hours"].sum(min_count=1)) if len(rest) else 0.0,
    }


def summary(frame: pd.DataFrame) -> str:
    """Return the totals, the price's origin and the notes on the grid as text."""
    total = totals(frame)
    hours = "unknown" if np.isnan(total["hours"]) else f"{total['hours']:.3g}"
    rest = "unknown" if np.isnan(total["remaining_hours"]) else f"{total['remaining_hours']:.3g}"
    kept = frame[frame["verdict"] == "OK"]
    lines = [
        f"{total['cells']} cells: {total['cells_ok']} OK, {total['cells_dropped']} dropped, "
        f"{total['cells_done']} done; accounting={', '.join(sorted(set(frame['accounting'])))}",
        f"total {total['nominal_flops']:.4g} nominal FLOPs, {total['tokens']:.4g} tokens, "
        f"{hours} device-hours; "
        f"remaining {total['remaining_flops']:.4g} FLOPs, {rest} device-hours ({frame.attrs['price']})",
    ]
    if kept["data_digest"].isna().any():
        lines.append(
            "the data is not prepared yet, so runs have no id: loopscale data with the same settings"
        )
    return "\n".join([*lines, *frame.attrs["notes"]])


def _facts(data: DataConfig, cache: Path) -> DataFacts:
    prepared = find_prepared(data, cache)
    if prepared is None:
        return DataFacts(digest=None, unique_tokens=data.unique_tokens)
    return DataFacts(digest=prepared.digest, unique_tokens=prepared.unique_tokens)


def _row(cell: Cell, folder: Path) -> dict[str, object]:
    row: dict[str, object] = {"verdict": cell.verdict, "reason": cell.reason, "run_id": cell.run_id}
    columns = planned_columns(cell.run) if cell.run.steps else _unsolved_columns(cell)
    unique = cell.data.unique_tokens
    row |= columns | {
        "data_digest": cell.data.digest,
        "unique_tokens": unique,
        "epochs": (cell.run.steps or 0) * cell.run.batch_tokens / unique if unique else None,
        "memory_bytes": _memory_bytes(cell),
        "status": None,
        "measured_flops_per_s": None,
    }
    if cell.run_id and (run := RunFolder(folder / cell.run_id)).path.exists():
        status = run.status()
        row["status"] = str(status)
        if status.state == "done":
            record = run.record()
            row["measured_flops_per_s"] = record["tokens_per_s"] * record["nominal_flops"] / record["tokens"]
    return row


def _memory_bytes(cell: Cell) -> int:
    training = cell.run.training
    micro_batch = training.micro_batch or training.batch_sequences
    return memory_estimate_bytes(cell.run.model, micro_batch, precision=training.precision).total


def _unsolved_columns(cell: Cell) -> dict[str, object]:
    run = cell.run
    return {
        "scale": run.scale,
        "kind": run.model.table_kind,
        "mean_recurrence": run.model.mean_recurrence,
        "backprop_depth": run.model.resolved_backprop_depth,
        "depth_sampling": run.model.depth_sampling,
        "accounting": run.accounting,
        "target_flops": run.budget_flops,
        "nominal_flops": 0.0,
        "tokens": 0,
        "steps": 0,
        "seed": run.seed,
    }


def _flops_per_s(frame: pd.DataFrame, study: StudyConfig) -> tuple[float, str]:
    measured = frame["measured_flops_per_s"].dropna().astype(float)
    if len(measured):
        return float(measured.median()), f"measured on {len(measured)} finished runs"
    stated = study.cluster.device_flops_per_s
    if stated is not None:
        return stated, f"estimated from cluster.device_flops_per_s={stated:.3g}, not measured"
    return np.nan, "unknown: no run has finished and cluster.device_flops_per_s is not set"
