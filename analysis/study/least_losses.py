"""The least of several noisy losses at every cell: by how much it lies low, and what noise cannot tell apart.

The runs may be those of a study or the points of a table: a cell is what they share beside the axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.config import Array
from analysis.isoflop.group import GroupFit
from analysis.stats.noise import NoiseFloor

RESAMPLES = 4000  # standard normal errors behind the shortfall of a minimum


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: its arms with mean losses, the runs of the best one and the shortfall of its loss."""

    means: pd.DataFrame  # by arm: nats and seeds
    rows: pd.DataFrame
    shortfall: float

    @property
    def best(self) -> Any:
        """Return the arm of least loss."""
        return self.means.index[int(self.means["nats"].argmin())]

    def within_noise(self, sd: float | None, freedom: int, confidence: float) -> int:
        """Return how many arms noise does not tell from the best, with that one; 0 where it is unknown."""
        if sd is None:
            return 0
        gap = (self.means["nats"] - self.means["nats"].min()).to_numpy(float)
        seeds = self.means["seeds"].to_numpy(float)
        own = seeds[int(gap.argmin())]
        limit = float(stdtrit(freedom, (1 + confidence) / 2)) * sd * np.sqrt(1 / seeds + 1 / own)
        return int((gap <= limit).sum())


def at_edge(tried: Sequence[tuple[Any, ...]], best: tuple[Any, ...]) -> bool:
    """Return True if the best is the least or greatest of three or more numbers along one of the axes."""
    return any(
        len(set(column)) > 2 and not isinstance(value, str) and value in (min(column), max(column))
        for column, value in zip(zip(*tried, strict=True), best, strict=True)
    )


def compared_cells(frame: pd.DataFrame, by: Sequence[str], sd: float) -> list[Cell]:
    """Return the cells of one group of runs.

    Parameters
    ----------
    frame : columns arm, val_loss_nats and seed, and those of `by`, whose equal values make a cell.
    sd : noise of a run in nats.
    """
    split = [cell for _, cell in frame.groupby(list(by), sort=True)]
    named = {"nats": ("val_loss_nats", "mean"), "seeds": ("seed", "size")}
    means = [cell.groupby("arm", sort=True).agg(**named) for cell in split]
    share, cells = true_share(means, sd), []
    for cell, table in zip(split, means, strict=True):
        nats, errors = table["nats"].to_numpy(float), sd / np.sqrt(table["seeds"].to_numpy(float))
        best = Cell(means=table, rows=cell, shortfall=shortfall(nats, errors, share))
        cells.append(replace(best, rows=cell[cell["arm"] == best.best]))
    return cells


def true_share(means: Sequence[pd.DataFrame], sd: float) -> float:
    """Return the share of the scatter between the arms of a cell that is not noise, pooled over cells."""
    squares = noise = 0.0
    for table in means:
        nats, count = table["nats"].to_numpy(float), len(table)
        squares += float(np.square(nats - nats.mean()).sum())
        noise += sd**2 * (count - 1) * float((1 / table["seeds"].to_numpy(float)).mean())
    return max(0.0, 1 - noise / squares) if squares else 0.0


def shortfall(nats: Array, errors: Array, share: float) -> float:
    """Return by how much the least of noisy losses is expected to lie below the least true one.

    Parameters
    ----------
    nats : losses of the arms of one cell [arms].
    errors : their standard errors [arms].
    share : of their scatter that is true (see `true_share`).

    Notes
    -----
    The bias of the minimum in a parametric bootstrap about the losses, which are first drawn towards their
    mean by the root of `share`: losses as seen scatter more than true ones, and a bootstrap about them would
    find two thirds of the bias of equal arms.
    """
    if len(nats) < 2:
        return 0.0
    centre = nats.mean() + np.sqrt(share) * (nats - nats.mean())
    noise = np.random.default_rng(0).standard_normal((RESAMPLES, len(nats)))
    drawn = np.concatenate([centre + errors * noise, centre - errors * noise])  # of mean zero
    return max(0.0, float(centre.min() - drawn.min(axis=1).mean()))


def noise_of_runs(arms: Sequence[GroupFit], floor: NoiseFloor) -> tuple[float | None, int, str]:
    """Return the noise of a run with its degrees of freedom and source."""
    if floor.sd_nats is not None:
        return floor.sd_nats, floor.degrees_of_freedom, "replicate seeds"
    levels = [level for fit in arms if (level := fit.estimator().noise) is not None]
    freedom = sum(level.degrees_of_freedom for level in levels)
    if not freedom:
        return None, 0, "unknown"
    squares = sum(level.degrees_of_freedom * level.sd_nats**2 for level in levels)
    return float(np.sqrt(squares / freedom)), freedom, "residuals of the arms' curves"
