"""The training-noise floor: the scatter of the losses of runs that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.config import Array, Indices, Labels
from analysis.format import number
from analysis.tables.selection import CELL, VARIANT


@dataclass(frozen=True, kw_only=True)
class ReplicateCell:
    """Runs that differ only in the seed."""

    label: str
    mean_nats: float
    deviations_nats: tuple[float, ...]
    run_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """Pooled standard deviation over seeds; `sd_nats` is None where no cell was trained twice."""

    sd_nats: float | None
    degrees_of_freedom: int
    cells: tuple[ReplicateCell, ...] = field(default=())

    def replicates_among(self, run_ids: Labels) -> tuple[float, int]:
        """Return the sum of squares (nats²) and the degrees of freedom of the replicates among some runs.

        A cell counts if all its runs are among `run_ids`.
        """
        known = set(run_ids.tolist())
        inside = [cell for cell in self.cells if known.issuperset(cell.run_ids)]
        squares = sum(float(np.square(cell.deviations_nats).sum()) for cell in inside)
        return squares, sum(len(cell.run_ids) - 1 for cell in inside)

    def summary(self) -> str:
        """Return the noise level and its source as one phrase."""
        if self.sd_nats is None:
            return "training noise unknown: no cell was trained with more than one seed"
        freedom, cells = self.degrees_of_freedom, len(self.cells)
        source = f"pooled over {cells} replicated cell{'s' * (cells > 1)}" if cells else "within seeds"
        return (
            f"training noise {self.sd_nats:.4f} nats ({source}, {freedom} degree{'s' * (freedom > 1)} "
            "of freedom)"
        )


def paired_floor(runs: pd.DataFrame) -> NoiseFloor:
    """Pool the variance that is left after cell and seed effects, over cells that share their seeds (nats).

    Runs of one seed see the same data in the same order, which correlates them. In a block of cells by
    seeds the residual of the two-way layout, loss - cell mean - seed mean + block mean, is free of that
    effect.
    """
    budgets = _numbered(runs, (*VARIANT, "target_flops"))
    losses, seeds = runs["val_loss_nats"].to_numpy(float), runs["seed"].to_numpy(int)
    blocks: dict[tuple[int, ...], list[Array]] = {}
    for rows in _cells(runs):
        rows = rows[np.argsort(seeds[rows], kind="stable")]
        if len(rows) > 1:
            blocks.setdefault((budgets[rows[0]], *seeds[rows]), []).append(losses[rows])
    squares, freedom = 0.0, 0
    for block in map(np.array, blocks.values()):  # [cells, seeds]
        residual = block - block.mean(0) - block.mean(1, keepdims=True) + block.mean()
        squares += float(np.square(residual).sum())
        freedom += (block.shape[0] - 1) * (block.shape[1] - 1)
    sd = float(np.sqrt(squares / freedom)) if freedom else None
    return NoiseFloor(sd_nats=sd, degrees_of_freedom=freedom)


def noise_floor(runs: pd.DataFrame) -> NoiseFloor:
    """Pool the variance over seeds of all cells with replicates (nats)."""
    cells = []
    values, seeds = runs["val_loss_nats"].to_numpy(float), runs["seed"].to_numpy()
    for rows in _cells(runs):
        if len(set(seeds[rows].tolist())) > 1:
            losses, first = values[rows], runs.iloc[rows[0]]
            depth = f"µ = {first['mean_recurrence']:g}" if first["kind"] == "looped" else str(first["kind"])
            cells.append(
                ReplicateCell(
                    label=f"{first['scale']} {depth} at {number(first['target_flops'])} FLOPs",
                    mean_nats=float(losses.mean()),
                    deviations_nats=tuple(float(v) for v in losses - losses.mean()),
                    run_ids=tuple(str(v) for v in runs["run_id"].iloc[rows]),
                )
            )
    return pooled(cells)


def pooled(cells: Sequence[ReplicateCell]) -> NoiseFloor:
    """Pool the variance within cells."""
    freedom = sum(len(cell.deviations_nats) - 1 for cell in cells)
    squares = sum(float(np.square(cell.deviations_nats).sum()) for cell in cells)
    sd = float(np.sqrt(squares / freedom)) if freedom else None
    return NoiseFloor(sd_nats=sd, degrees_of_freedom=freedom, cells=tuple(cells))


def _cells(runs: pd.DataFrame) -> list[Indices]:
    """Return the rows of every cell, cells in the order of their columns."""
    cells = _numbered(runs, CELL)
    return [np.flatnonzero(cells == index) for index in range(int(cells.max(initial=-1)) + 1)]


def _numbered(runs: pd.DataFrame, columns: tuple[str, ...]) -> Indices:
    """Return the number of the group of every run [runs]."""
    return np.asarray(runs.groupby(list(columns), sort=True, dropna=False).ngroup(), dtype=np.int64)
