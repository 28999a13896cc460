"""The training-noise floor: the scatter of the losses of runs that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import ndtr

from analysis.config import Array, Indices, Labels
from analysis.format import number, plural
from analysis.tables.selection import CELL, VARIANT

ROUNDING = 1e-9  # of the loss: smaller differences are rounding
STEEPEST = 2.0  # power of the budget that the variance of the noise may go as
TREND_LEVEL = 0.05  # p value of the test for noise that changes with the budget


@dataclass(frozen=True, kw_only=True)
class NoiseTrend:
    """Noise whose standard deviation goes as C^exponent; the default is the same noise everywhere."""

    exponent: float = 0.0
    reference_flops: float = 1.0
    level: float = 1.0  # standard deviation at the reference over that of all runs pooled
    p_value: float = 1.0

    def scale(self, flops: Array | float) -> Array:
        """Return the standard deviation at budgets of `flops` over that of all runs pooled."""
        return np.asarray(self.level * (np.asarray(flops) / self.reference_flops) ** self.exponent)

    @property
    def is_constant(self) -> bool:
        """Return True for the same noise at all budgets."""
        return self.exponent == 0

    def summary(self) -> str:
        """Return the trend and what follows from it."""
        return (
            f"the noise goes as C^{self.exponent:.2f} (p = {self.p_value:.2g}): intervals from residuals "
            "take it so"
        )


CONSTANT = NoiseTrend()


def noise_trend(residual: Array, leverage: Array, flops: Array) -> NoiseTrend:
    """Return how the noise changes with the budget, or `CONSTANT` where a score test finds no change.

    Parameters
    ----------
    residual, leverage, flops : residuals of a least-squares fit in nats, leverages and budgets [runs].

    Notes
    -----
    A residual has the variance sigma(C)^2 (1 - leverage). The test is that of Cook and Weisberg (1983), the
    exponent the maximum of the likelihood of independent residuals.
    """
    spare, squares = 1 - leverage, np.square(residual)
    logs = np.log(flops)
    middle = float(logs @ spare / spare.sum())
    x, pooled = logs - middle, float(squares.sum() / spare.sum())
    information = float(spare @ x**2) / 2
    if information <= 0 or len(np.unique(flops)) < 3:
        return CONSTANT
    score = float(squares @ x) / pooled / 2
    p_value = 2 * float(ndtr(-abs(score) / np.sqrt(information)))
    if p_value > TREND_LEVEL:
        return CONSTANT

    def gradient(slope: float) -> float:  # of the likelihood, up to a positive factor; it falls
        return float(squares @ (x * np.exp(-slope * x)))

    inside = gradient(-STEEPEST) > 0 > gradient(STEEPEST)
    slope = brentq(gradient, -STEEPEST, STEEPEST) if inside else float(np.copysign(STEEPEST, score))
    level = float(squares @ np.exp(-slope * x) / spare.sum() / pooled)
    return NoiseTrend(
        exponent=slope / 2,
        reference_flops=float(np.exp(middle)),
        level=float(np.sqrt(level)),
        p_value=p_value,
    )


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
        source = f"pooled over {plural(cells, 'replicated cell')}" if cells else "within seeds"
        return f"training noise {self.sd_nats:.4f} nats ({source}, {plural(freedom, 'degree')} of freedom)"


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
