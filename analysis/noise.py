"""The training-noise floor: how far two runs that differ in their seed alone end apart."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.numbers import number
from analysis.tables import CELL, VARIANT


@dataclass(frozen=True, kw_only=True)
class ReplicateCell:
    """Runs that differ in nothing but the seed."""

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

    def sentence(self) -> str:
        """Say what is known about the training noise."""
        if self.sd_nats is None:
            return "training noise unknown: no cell was trained with more than one seed"
        freedom, cells = self.degrees_of_freedom, len(self.cells)
        source = f"pooled over {cells} replicated cell{'s' * (cells > 1)}" if cells else "within seeds"
        return (
            f"training noise {self.sd_nats:.4f} nats ({source}, {freedom} degree{'s' * (freedom > 1)} "
            "of freedom)"
        )


def paired_floor(runs: pd.DataFrame) -> NoiseFloor:
    """Pool what seeds leave unexplained where cells of one budget share their seeds (nats).

    Runs of one seed see the same data in the same order, which moves them together. In a block of cells by
    seeds the residual of the two-way layout, loss - cell mean - seed mean + block mean, is free of that.
    """
    squares, freedom = 0.0, 0
    for _, budget in runs.groupby([*VARIANT, "target_flops"], sort=True, dropna=False):
        for _, block in _blocks(budget):
            losses = block.pivot_table(
                index=["kind", "mean_recurrence"], columns="seed", values="val_loss_nats"
            ).to_numpy(float)
            residual = losses - losses.mean(0) - losses.mean(1, keepdims=True) + losses.mean()
            squares += float(np.square(residual).sum())
            freedom += (losses.shape[0] - 1) * (losses.shape[1] - 1)
    sd = float(np.sqrt(squares / freedom)) if freedom else None
    return NoiseFloor(sd_nats=sd, degrees_of_freedom=freedom)


def _blocks(budget: pd.DataFrame) -> list[tuple[tuple[int, ...], pd.DataFrame]]:
    """Return the runs of one budget by the seeds that their cells were trained with, two seeds at least."""
    cells = [frame for _, frame in budget.groupby(list(CELL), sort=True, dropna=False)]
    seeds = [tuple(sorted(frame["seed"].tolist())) for frame in cells]
    return [
        (each, pd.concat([frame for frame, own in zip(cells, seeds, strict=True) if own == each]))
        for each in sorted(set(seeds))
        if len(each) > 1
    ]


def noise_floor(runs: pd.DataFrame) -> NoiseFloor:
    """Pool the variance over seeds of all cells with replicates (nats)."""
    cells = []
    for _, frame in runs.groupby(list(CELL), sort=True, dropna=False):
        if frame["seed"].nunique() > 1:
            losses = frame["val_loss_nats"].to_numpy(float)
            first = frame.iloc[0]
            depth = f"µ={first['mean_recurrence']:g}" if first["kind"] == "looped" else str(first["kind"])
            cells.append(
                ReplicateCell(
                    label=f"{first['scale']} {depth} at {number(first['target_flops'])} FLOPs",
                    mean_nats=float(losses.mean()),
                    deviations_nats=tuple(float(v) for v in losses - losses.mean()),
                    run_ids=tuple(str(v) for v in frame["run_id"]),
                )
            )
    freedom = sum(len(cell.deviations_nats) - 1 for cell in cells)
    squares = sum(float(np.square(cell.deviations_nats).sum()) for cell in cells)
    sd = float(np.sqrt(squares / freedom)) if freedom else None
    return NoiseFloor(sd_nats=sd, degrees_of_freedom=freedom, cells=tuple(cells))
