"""The plan: every cell with its verdict, length, cost and state, as a table; writes nothing."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.config import DataConfig
from harness.data.dataset import find_prepared
from harness.run.folder import RunFolder
from harness.run.pending_runs import pending_lines
from harness.run.record import planned_columns
from model.memory import memory_estimate_bytes
from sweeps.config.cluster import ClusterConfig, Resources
from sweeps.config.study import StudyConfig
from sweeps.grid.cells import Cell, DataFacts, cells, truncated_curves
from sweeps.grid.trunks import cell_name, trajectories
from sweeps.planning import trunk_plan
from sweeps.planning.cost import ESTIMATED, UNKNOWN, Prices, in_words, known_prices, shape_of
from sweeps.state.ledger import read_ledger, trunks_of

if TYPE_CHECKING:
    import pandas as pd


def plan_cells(study: StudyConfig) -> list[Cell]:
    """Return the study's cells, named where the data is prepared under `study.cache`."""
    found = cells(study, lambda data: _facts(data, Path(study.cache)))
    return (
        found if study.cluster.device_memory_gb is None else [_fitting(cell, study.cluster) for cell in found]
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python from searching for garbage in tens of thousands of objects that all stay."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_uncollected()
def plan(study: StudyConfig) -> pd.DataFrame:
    """Return one row per cell: verdict, reason, run_id, the runs table's planned columns, hours and state.

    `frame.attrs["notes"]` holds remarks on the grid, `frame.attrs["price"]` says where the hours come from,
    as does the column `price` cell by cell, `frame.attrs["trunks"]` what shared trunks save and cost. Hours
    are device-hours of the whole run, `trunk_steps` those of its steps that a trunk would train; a run that
    shares its devices with others side by side is charged its part. Every axis of the sweep is a column under
    its dotted key. `trajectory` is equal for runs with the
    same first steps, whether they compute them together or not; "" where all rates depend on the length.
    Raises ConfigError, with the reason, where sweep.trunk=true and nothing can be shared.
    """
    import pandas as pd

    planned = plan_cells(study)
    root = Path(study.root)
    folder = root / str(study.sweep.name)
    prices, asked = known_prices(study.cluster, root, folder)
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    there |= pending_lines(folder).keys()
    rows = [_row(cell, folder, there, study.cluster) for cell in planned]
    for row in rows:
        if row["status"] == "done" and (resources := _trained_with(row, study, asked)):
            prices.add_record(RunFolder(folder / str(row["run_id"])).record(), resources)
    if any(_rate(row, study, prices)[1] in (ESTIMATED, UNKNOWN) for row in rows):
        _learn_from_others(prices, study, folder)
    for row in rows:
        _price(row, study, prices)
    before = read_ledger(folder) if "sweep.json" in there else None
    trunks = trunks_of(study, before, planned)
    follows = {name: key for key, members in trajectories(planned).items() for name, _, _ in members}
    for number, (cell, row) in enumerate(zip(planned, rows, strict=True)):
        row |= {key: reduce(getattr, key.split("."), cell.run) for key in study.sweep.axes}
        name = cell_name(cell, number)
        row["trajectory"] = follows.get(name, "")
        if parent := trunks.parents.get(name):
            row["trunk_id"] = trunks.segments[parent].trunk_id
            row["trunk_steps"] = trunk_plan.first_step(trunks, name, cell.run)
    frame = pd.DataFrame(rows)
    kept = frame.loc[frame["verdict"] == "OK", "price"]
    saved = trunk_plan.figures(study, planned, rows, trunks, folder)
    notes = truncated_curves(planned)
    notes += [] if saved else trunk_plan.why_not(study, planned, rows)
    frame.attrs = {
        "axes": list(study.sweep.axes),
        "notes": notes,
        "price": in_words(kept, study.cluster),
        "trunks": saved,
    }
    return frame


def totals(frame: pd.DataFrame) -> dict[str, float]:
    """Return counts, FLOPs and hours of the cells that count, and of those that remain to be run."""
    kept = frame[frame["verdict"] == "OK"]
    rest = kept[kept["status"] != "done"]
    shared = frame.attrs.get("trunks", {})
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
        **{name: shared[name] for name in ("remaining_flops", "remaining_hours") if shared},
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
    return "\n".join([*lines, *trunk_plan.in_words(frame.attrs["trunks"]), *frame.attrs["notes"]])


def _facts(data: DataConfig, cache: Path) -> DataFacts:
    prepared = find_prepared(data, cache)
    if prepared is None:
        return DataFacts(digest=None, unique_tokens=data.unique_tokens)
    return DataFacts(digest=prepared.digest, unique_tokens=prepared.unique_tokens)


def _row(cell: Cell, folder: Path, there: set[str], cluster: ClusterConfig) -> dict[str, Any]:
    row: dict[str, Any] = {"verdict": cell.verdict, "reason": cell.reason, "run_id": cell.run_id}
    columns = planned_columns(cell.run) if cell.run.steps else _unsolved_columns(cell)
    unique = cell.data.unique_tokens
    row |= columns | {
        "data_digest": cell.data.digest,
        "unique_tokens": unique,
        "epochs": (cell.run.steps or 0) * cell.run.batch_tokens / unique if unique else None,
        "memory_bytes": _memory_bytes(cell, cluster),
        "status": None,
    }
    if cell.run_id in there:
        row["status"] = str(RunFolder(folder / str(cell.run_id)).status())
    return row


def _trained_with(
    row: dict[str, Any], study: StudyConfig, asked: dict[str, Resources | None]
) -> Resources | None:
    """Return what a finished run asked for on the study's cluster, None where it was trained elsewhere."""
    if row["run_id"] in asked or study.cluster.kind != "local":
        return asked.get(row["run_id"])
    return study.cluster.resources_of(row["scale"])  # in the local pool nothing is submitted


def _learn_from_others(prices: Prices, study: StudyConfig, folder: Path) -> None:
    """Learn from the collected runs of other sweeps under the same root."""
    import pandas as pd

    for path in sorted(folder.parent.glob("*/runs.parquet")):
        if path.parent == folder:
            continue
        table = pd.read_parquet(path)
        mine = table["scale"].isin(list(study.runs)) & (table["tokens_per_s"] > 0)
        asked = known_prices(study.cluster, folder.parent, path.parent)[1] if mine.any() else {}
        for row in table[mine].to_dict("records"):
            record = {str(name): value for name, value in row.items()}
            if resources := _trained_with(record, study, asked):
                prices.add_record(record, resources)


def _rate(row: dict[str, Any], study: StudyConfig, prices: Prices) -> tuple[float | None, str]:
    shape = shape_of(row["scale"], row["kind"], row["mean_recurrence"], row["batch_tokens"])
    return prices.flops_per_s(shape, study.cluster.resources_of(row["scale"]))


def _price(row: dict[str, Any], study: StudyConfig, prices: Prices) -> None:
    resources = study.cluster.resources_of(row["scale"])
    rate, origin = _rate(row, study, prices)
    devices = resources.devices / resources.parallel_runs
    row["devices"] = devices
    row["hours"] = row["nominal_flops"] / rate * devices / 3600 if rate else np.nan
    row["price"] = origin


def _fitting(cell: Cell, cluster: ClusterConfig) -> Cell:
    needed, limit_gb = _memory_bytes(cell, cluster), cluster.device_memory_gb or math.inf
    if cell.verdict == "DROP" or needed <= limit_gb * 1e9:
        return cell
    found = cell.run.training.micro_batch
    advice = "take more devices" if found in (None, 1) else "lower training.micro_batch"
    reason = f"needs about {needed / 1e9:.3g} GB, cluster.device_memory_gb={limit_gb:g}: {advice}"
    return dataclasses.replace(cell, verdict="DROP", reason=reason)


def _memory_bytes(cell: Cell, cluster: ClusterConfig) -> float:
    """Estimate what one device holds; a micro-batch that is not set is the most that fits it."""
    training, world = cell.run.training, cluster.resources_of(cell.run.scale).world_size
    limit_bytes = (cluster.device_memory_gb or math.inf) * 1e9

    def needed(size: int) -> float:
        estimate = memory_estimate_bytes(cell.run.model, size, precision=training.precision)
        held = estimate.total - estimate.activations
        return estimate.activations + held / (world if training.parallel == "fsdp" else 1)

    share = max(1, training.batch_sequences // world)
    size = min(training.micro_batch or share, share)
    while training.micro_batch is None and size > 1 and needed(size) > limit_bytes:
        size = math.ceil(size / 2)
    return needed(size)


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
        "batch_tokens": run.batch_tokens,
        "seed": run.seed,
    }
