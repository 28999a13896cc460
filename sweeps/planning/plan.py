"""The plan of a sweep: every cell with its verdict, length, cost and state; writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.format import plural
from harness.run.folder import RunFolder
from harness.run.pending_runs import pending_lines
from harness.run.record import planned_columns
from sweeps.config.cluster import ClusterConfig
from sweeps.config.compose import without_garbage_collection
from sweeps.config.next_command import command_line
from sweeps.config.study import StudyConfig
from sweeps.grid.cells import Cell, memory_bytes, plan_cells
from sweeps.grid.trunks import Trunks, cell_name, trajectories, why_nothing_is_shared
from sweeps.planning.bound_refusals import bound_refusals, ladder_refusals
from sweeps.planning.cost import add_hours, describe_sources
from sweeps.planning.text_needed import estimated_tokens, text_notes, would_drop
from sweeps.state.ledger import read_ledger, trunks_of

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.planning.trunk_savings import TrunkSavings


Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells of a sweep with their verdicts and costs, and the totals and notes of the whole grid."""

    frame: pd.DataFrame  # one row per cell, see `plan`
    axes: list[str]  # columns of the frame, the sweep's own axes
    notes: list[str]  # remarks on the grid
    data: list[str]  # the text that the longest run reads, by data set
    lacks_text: bool  # whether runs will be dropped once the text is prepared, as far as that is known
    hours_source: str  # where the hours come from
    trunks: TrunkSavings | None  # None where no runs share a trunk

    @property
    def accepted(self) -> pd.DataFrame:
        """Return the rows of the cells that are not dropped."""
        return self.frame[self.frame["verdict"] == "OK"]

    @property
    def is_done(self) -> bool:
        """Return True if every accepted cell has been trained."""
        return bool((self.accepted["status"] == "done").all())

    def totals(self) -> dict[str, float]:
        """Return counts, FLOPs and hours of the accepted cells, and of those that remain to be run."""
        kept = self.accepted
        rest = kept[kept["status"] != "done"]
        totals = {
            "cells": len(self.frame),
            "cells_ok": len(kept),
            "cells_dropped": len(self.frame) - len(kept),
            "cells_done": len(kept) - len(rest),
            "nominal_flops": float(kept["nominal_flops"].sum()),
            "tokens": float(kept["tokens"].sum()),
            "hours": float(kept["hours"].sum(min_count=1)),
            "remaining_flops": float(rest["nominal_flops"].sum()),
            "remaining_hours": float(rest["hours"].sum(min_count=1)) if len(rest) else 0.0,
        }
        if self.trunks is not None:
            totals["remaining_flops"] = self.trunks.remaining_flops
            totals["remaining_hours"] = self.trunks.remaining_hours
        return totals

    def summary(self) -> str:
        """Return the totals, the source of the hours, the shared trunks and the notes as text."""
        total = self.totals()
        hours = "unknown" if np.isnan(total["hours"]) else f"{total['hours']:.3g}"
        rest = "unknown" if np.isnan(total["remaining_hours"]) else f"{total['remaining_hours']:.3g}"
        lines = [
            f"{plural(len(self.frame), 'cell')}: {total['cells_ok']} OK, {total['cells_dropped']} dropped, "
            f"{total['cells_done']} done; accounting={', '.join(sorted(set(self.frame['accounting'])))}",
            f"total {total['nominal_flops']:.4g} nominal FLOPs, {total['tokens']:.4g} tokens, "
            f"{hours} device-hours; "
            f"remaining {total['remaining_flops']:.4g} FLOPs, {rest} device-hours ({self.hours_source})",
        ]
        lines += self.data
        if self.trunks is not None:
            lines.append(self.trunks.summary())
        return "\n".join([*lines, *self.notes])


@without_garbage_collection()
def plan(study: StudyConfig) -> Plan:
    """Return the plan of a sweep; writes nothing.

    Raises
    ------
    ConfigError : sweep.trunk=true and no runs can share a trunk, or the grid is contradictory.

    Notes
    -----
    The frame has one row per cell: verdict, reason, run_id, the planned columns of the runs table, every axis
    of the sweep under its dotted key, status, and

    hours : device-hours of the whole run; a run that shares its devices is charged its part of them.
    price : the source of the hours.
    trunk_steps : the steps that a trunk would train.
    trajectory : equal for runs with the same first steps, whether they share them or not; "" where all
        rates depend on the length of the run.
    """
    import pandas as pd

    planned = plan_cells(study)
    folder = Path(study.root) / str(study.sweep.name)
    existing = {path.name for path in folder.iterdir()} if folder.exists() else set()
    existing |= pending_lines(folder).keys()
    rows = [_row(cell, folder, existing, study.cluster) for cell in planned]
    add_hours(rows, study, folder)
    before = read_ledger(folder) if "sweep.json" in existing else None
    trunks = trunks_of(study, before, planned)
    _add_trunks(rows, planned, trunks, study)
    savings, notes = None, truncated_curves(planned)
    if trunks.parents:
        from sweeps.planning.trunk_savings import trunk_savings

        savings = trunk_savings(study, planned, rows, trunks, folder)
    if savings is None:
        notes += missed_savings(study, planned, rows)
    frame = pd.DataFrame(rows)
    unprepared = {cell.run.data.name: cell.run.data for cell in planned if cell.data.digest is None}.values()
    estimated = estimated_tokens(unprepared)
    planned_ids = {cell.run_id for cell in planned}
    if before and (kept := sum(run_id not in planned_ids for run_id in before.run_ids)):
        notes.append(
            f"{kept} launched runs are not in this grid: they stay in the sweep and its laws, and launch "
            "finishes them too; under another sweep.name it starts without them"
        )
    if study.sweep.budgets_flops:
        notes += bound_refusals(rows, max(cell.run.evaluation.max_depth for cell in planned))
    if study.sweep.ladder and "tokens" in study.sweep.ladder.equal:
        notes += ladder_refusals(rows, len(set(study.sweep.ladder.sizes)))
    return Plan(
        frame=frame,
        axes=list(study.sweep.axes),
        notes=notes,
        data=text_notes(frame, command_line("data", study.overrides), study.sweep.max_epochs, estimated),
        lacks_text=would_drop(frame, study.sweep.max_epochs, estimated),
        hours_source=describe_sources((row["price"] for row in rows if row["verdict"] == "OK"), study),
        trunks=savings,
    )


def _add_trunks(rows: list[Row], planned: list[Cell], trunks: Trunks, study: StudyConfig) -> None:
    """Add the axes, the trajectory and the trunk of each cell to its row."""
    shared = {name: key for key, members in trajectories(planned).items() for name, _, _ in members}
    for number, (cell, row) in enumerate(zip(planned, rows, strict=True)):
        row |= {key: reduce(getattr, key.split("."), cell.run) for key in study.sweep.axes}
        name = cell_name(cell, number)
        row["trajectory"] = shared.get(name, "")
        if parent := trunks.parents.get(name):
            row["trunk_id"] = trunks.segments[parent].trunk_id
            row["trunk_steps"] = trunks.first_step(name, cell.run)


def _row(cell: Cell, folder: Path, existing: set[str], cluster: ClusterConfig) -> Row:
    row: Row = {"verdict": cell.verdict, "reason": cell.reason, "run_id": cell.run_id}
    columns = planned_columns(cell.run) if cell.run.steps else _unsolved_columns(cell)
    unique = cell.data.unique_tokens
    row |= columns | {
        "data_digest": cell.data.digest,
        "unique_tokens": unique,
        "epochs": (cell.run.steps or 0) * cell.run.batch_tokens / unique if unique else None,
        "memory_bytes": memory_bytes(cell, cluster),
        "status": None,
    }
    if cell.run_id in existing:
        row["status"] = str(RunFolder(folder / str(cell.run_id)).status())
    return row


def truncated_curves(planned: list[Cell]) -> list[str]:
    """Return a note for each budget that loses recurrences on one side: its minimum is biased."""
    curves: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in planned:
        if cell.run.model.table_kind == "looped" and cell.run.budget_flops:
            curves.setdefault((cell.run.scale, cell.run.budget_flops, cell.run.seed), []).append(cell)
    notes = []
    for (scale, budget, _), curve in curves.items():
        curve.sort(key=lambda cell: cell.run.model.mean_recurrence)
        dropped = [cell.verdict == "DROP" for cell in curve]
        if any(dropped) and not all(dropped) and dropped[0] != dropped[-1]:
            side = "low" if dropped[0] else "high"
            notes.append(
                f"{scale} at {budget:.3g} FLOPs loses its {side} recurrences: its minimum will be biased"
            )
    return notes


def missed_savings(study: StudyConfig, cells: Sequence[Cell], rows: Sequence[Row]) -> list[str]:
    """Return a note on the weight decay that rules out trunks and on what they would save, or no note."""
    reason = why_nothing_is_shared(cells)
    if study.sweep.trunk is False or "weight_decay" not in reason:
        return []
    names = (cell_name(cell, number) for number, cell in enumerate(cells))
    costs = {name: row["nominal_flops"] for name, row in zip(names, rows, strict=True)}
    saved = 0.0
    for members in trajectories(cells, weight_decay="follow").values():
        # The longest stable phase is trained once for all of them.
        shared = sorted(costs[name] * point / (cell.run.steps or 1) for name, point, cell in members)
        saved += sum(shared[:-1])
    whole = sum(row["nominal_flops"] for row in rows if row["verdict"] == "OK")
    if not saved:
        return []
    return [f"no shared trunks: {reason}; trunks would then save {100 * saved / whole:.0f} % of the FLOPs"]


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
