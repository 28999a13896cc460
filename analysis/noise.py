"""The training-noise floor: how far two runs that differ in their seed alone end apart."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.numbers import number
from analysis.tables import CELL


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
        return (
            f"training noise {self.sd_nats:.4f} nats (pooled over {cells} replicated "
            f"cell{'s' * (cells > 1)}, {freedom} degree{'s' * (freedom > 1)} of freedom)"
        )


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
