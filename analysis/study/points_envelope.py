"""The envelope of a table of points: the least loss over one or several settings at every budget and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.config import FitConfig
from analysis.format import number
from analysis.isoflop.points import fit_points, isoflop_points
from analysis.stats.noise import NoiseFloor
from analysis.study.least_losses import Cell, at_edge, compared_cells, noise_of_runs
from analysis.tables.arms import name_of
from analysis.tables.budgets import group_budgets
from analysis.tables.points import Axis, PointsTable
from analysis.tables.schema import TableError

ADDED = ("arm", "budget_index", "val_loss_nats", "seed")  # columns that cells are compared by
RESAMPLES = 100  # of the curves of one arm, whose noise alone counts


@dataclass(frozen=True, kw_only=True)
class BestSetting:
    """The best values of the settings at the size of least loss of one budget."""

    budget_flops: float
    best: str
    tied: bool  # within noise with another value
    at_edge: bool  # of three or more numbers that were tried: a better one may lie outside


@dataclass(frozen=True, kw_only=True)
class PointsEnvelope:
    """Settings over which the least losses were taken, by how much these were raised, and the best values."""

    settings: tuple[str, ...]
    cells: int
    noise_nats: float
    noise_source: str
    shortfalls_nats: tuple[float, float]  # the least and the most by which the least of noisy losses lies low
    best: tuple[BestSetting, ...]

    def summary(self) -> str:
        """Return what was done and the best values by budget, as one line."""
        low, high = self.shortfalls_nats
        listed = ", ".join(
            f"{one.best}{'~' * one.tied}{'!' * one.at_edge} at {number(one.budget_flops)} FLOPs"
            for one in self.best
        )
        return (
            f"envelope over {' and '.join(self.settings)}: the least loss at each of {self.cells} points, "
            f"raised by {low:.4f} to {high:.4f} nats, as the least of noisy losses lies low (noise "
            f"{self.noise_nats:.4f} nats from {self.noise_source}). Best (~ tied within noise, ! at the end "
            f"of the values): {listed}"
        )


def least_over(
    used: PointsTable, names: Sequence[str], axis: Axis, tolerance: float | None, config: FitConfig
) -> tuple[PointsTable, PointsEnvelope]:
    """Return the points with the best values of some settings at every budget and size, their losses raised.

    Raises
    ------
    TableError : a setting is no column, no cell was trained with two values, or the noise is unknown.
    """
    asked = f"envelope={','.join(names)}"
    absent = [name for name in names if name not in used.frame]
    if absent:
        listed = ", ".join(map(str, used.frame.columns))
        raise TableError(f"{asked}: {used.name} has no column {absent[0]} (it has {listed})")
    frame = used.frame.dropna(subset=list(names))
    tuples = list(frame[list(names)].itertuples(index=False, name=None))
    tried = sorted(set(tuples), key=str)
    arm = pd.Series([tried.index(one) for one in tuples], frame.index)
    bare = replace(used, frame=frame.drop(columns=list(names)))
    noise, freedom, source = _noise(bare, arm, axis, tolerance, config)
    cells, flops = _cells(bare, arm, axis, tolerance, noise)
    several = [cell for cell in cells if len(cell.means) > 1]
    if not several:
        raise TableError(f"{asked}: no two points of equal budget and size differ in it")
    rows = pd.concat([cell.rows.assign(loss=cell.rows["loss"] + cell.shortfall) for cell in cells])
    raised = [cell.shortfall for cell in several]
    best = []
    for place, budget in enumerate(flops):
        inside = [cell for cell in several if cell.rows["budget_index"].iloc[0] == place]
        if inside:
            least = min(inside, key=lambda cell: float(cell.means["nats"].min()))
            values = tried[least.best]
            best.append(
                BestSetting(
                    budget_flops=float(budget),
                    best=", ".join(name_of(n, value) for n, value in zip(names, values, strict=True)),
                    tied=least.within_noise(noise, freedom, config.confidence) > 1,
                    at_edge=at_edge([tried[one] for one in least.means.index], values),
                )
            )
    return replace(used, frame=rows.drop(columns=list(ADDED))), PointsEnvelope(
        settings=tuple(names),
        cells=len(cells),
        noise_nats=noise,
        noise_source=source,
        shortfalls_nats=(min(raised), max(raised)),
        best=tuple(best),
    )


def _cells(
    bare: PointsTable, arm: pd.Series, axis: Axis, tolerance: float | None, noise: float
) -> tuple[list[Cell], Any]:
    """Return the cells of one budget and one value of the swept variable, and the budgets."""
    frame = bare.frame
    labels = frame["budget"].to_numpy() if "budget" in frame else None
    budgets = group_budgets(frame["compute"].to_numpy(float), tolerance, labels)
    added: dict[str, Any] = {
        "arm": arm,
        "budget_index": budgets.index,
        "val_loss_nats": frame["loss"],
        "seed": 0,
    }
    swept = axis if axis in frame else "params"
    return compared_cells(frame.assign(**added), ("budget_index", swept), noise), budgets.flops


def _noise(
    bare: PointsTable, arm: pd.Series, axis: Axis, tolerance: float | None, config: FitConfig
) -> tuple[float, int, str]:
    """Return the noise of a point, its degrees of freedom and its source: the curves of every arm."""
    quick, fits, reason = replace(config, bootstrap=RESAMPLES, profiles=False), [], ""
    for one in sorted(set(arm)):
        try:
            prepared = isoflop_points(replace(bare, frame=bare.frame[arm == one]), axis, tolerance)
        except TableError as error:
            reason = str(error)
            continue
        fits.append(fit_points(prepared, quick))
    sd, freedom, source = noise_of_runs(fits, NoiseFloor(sd_nats=None, degrees_of_freedom=0))
    if sd is None:
        raise TableError(
            f"the least of noisy losses lies low by an unknown amount: no value has curves ({reason})"
        )
    replicated = all(fit.inputs.floor.sd_nats is not None for fit in fits)
    return sd, freedom, "replicates" if replicated else source
