"""The budgets of an isoFLOP table: which of its runs were trained at the same FLOPs.

Measured or digitised FLOPs jitter about the budget that was asked for. Points are grouped where the spread
inside every group is much smaller than the gap to the next group. A table without such gaps is no isoFLOP
grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.config import Array, Indices
from analysis.format import number, percent, plural
from analysis.serialize import HIDDEN
from analysis.tables.schema import TableError

GAP = 4.0  # a gap between budgets is at least as many times the widest spread inside one, in log FLOPs
WIDEST = 0.15  # spread inside a budget, in log FLOPs: points at 1.16 times the FLOPs are no longer equal
ROUNDING = 1e-6  # log FLOPs that differ by less are equal
CURVE = 4  # points that make a curve
MIN_BUDGETS = 3  # that make a power law


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """The budgets of a table, how they were found, and how clearly they are apart."""

    how: str
    count: int
    widest_spread: float  # of the FLOPs inside one budget: the largest over the smallest, less 1
    nearest_ratio: float | None  # of neighbouring budgets; None for one budget
    flops: Array = field(repr=False, compare=False, metadata=HIDDEN)  # medians [budgets], ascending
    index: Indices = field(repr=False, compare=False, metadata=HIDDEN)  # budget of every point [points]

    def summary(self) -> str:
        """Return the grouping as one line."""
        text = f"{plural(self.count, 'budget')} {self.how}"
        text += f", FLOPs inside one within {percent(self.widest_spread, 1)}"
        if self.count < MIN_BUDGETS:
            text += f"; an exponent needs {MIN_BUDGETS}"
        if self.nearest_ratio is not None:
            text += f", neighbours {number(self.nearest_ratio, 4)} times apart"
        return text


def group_budgets(
    compute: Array, tolerance: float | None = None, labels: np.ndarray[Any, Any] | None = None
) -> Budgets:
    """Group points by budget.

    Parameters
    ----------
    compute : FLOPs [points].
    tolerance : largest relative distance of a point from the middle of its budget. None: by gaps.
    labels : budget of every point, where the table has one [points].

    Raises
    ------
    TableError : most points share their budget with too few others for a curve.
    """
    logs = np.log(compute)
    order = np.argsort(logs, kind="stable")
    if labels is not None:
        how, index = "by the column", np.unique(labels.astype(str), return_inverse=True)[1]
    else:
        if tolerance is not None:
            how, starts = (
                f"within {percent(tolerance, 1)} (budget_tolerance)",
                _within(logs[order], tolerance),
            )
        else:
            how, starts = "by gaps", _by_gaps(logs[order])
        index = np.empty(len(logs), int)
        index[order] = np.cumsum(starts) - 1
    return _budgets(compute, index, how)


def _budgets(compute: Array, index: Indices, how: str) -> Budgets:
    logs, count = np.log(compute), int(index.max()) + 1
    sizes = np.bincount(index, minlength=count)
    if sizes[sizes >= CURVE].sum() <= len(logs) / 2:
        raise TableError(
            f"{plural(count, 'budget')} for {plural(len(logs), 'point')} make no isoFLOP curves: fit the "
            "surface law instead (law=surface), or say which points share a budget (budget_tolerance=0.05, "
            "columns.budget=NAME)"
        )
    inside = np.argsort(index, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    low, high = np.minimum.reduceat(logs[inside], starts), np.maximum.reduceat(logs[inside], starts)
    middle = np.array([np.median(part) for part in np.split(compute[inside], starts[1:])])
    rank = np.argsort(middle, kind="stable")
    gaps = low[rank][1:] - high[rank][:-1]
    return Budgets(
        how=how,
        count=count,
        widest_spread=float(np.expm1((high - low).max())),
        nearest_ratio=float(np.exp(gaps.min())) if count > 1 else None,
        flops=middle[rank],
        index=np.argsort(rank)[index],
    )


def _within(logs: Array, tolerance: float) -> Array:
    """Mark the first point of every budget of a limited width; `logs` ascend."""
    width, starts = np.log1p(tolerance) - np.log1p(-min(tolerance, 0.99)), np.zeros(len(logs), bool)
    at = 0
    while at < len(logs):
        starts[at] = True
        at = int(np.searchsorted(logs, logs[at] + width + ROUNDING, side="right"))
    return starts


def _by_gaps(logs: Array) -> Array:
    """Mark the first point of every budget; `logs` ascend.

    Of the groupings whose gaps are wide enough, that with the most points on curves is taken, and of several
    the finest. Without any, every point starts a budget.
    """
    best, most = np.ones(len(logs), bool), 0
    for starts in _groupings(logs):
        sizes = np.diff(np.append(np.flatnonzero(starts), len(logs)))
        on_curves = int(sizes[sizes >= CURVE].sum())
        if on_curves > most:
            best, most = starts, on_curves
    return best


def _groupings(logs: Array) -> Iterator[Array]:
    """Yield the groupings whose gaps exceed every spread enough, from the finest to a single budget."""
    gaps = np.diff(logs)
    gaps[gaps < ROUNDING] = 0.0
    sizes = np.unique(gaps)
    cuts = [gap for below, gap in zip(np.append(0.0, sizes), sizes, strict=False) if gap >= GAP * below > 0]
    cuts += list(sizes[sizes > 0][:1])
    for cut in [*sorted(set(cuts)), np.inf]:
        starts = np.concatenate([[True], gaps >= cut])
        first = np.flatnonzero(starts)
        spread = (logs[np.append(first[1:], len(logs)) - 1] - logs[first]).max()
        nearest = gaps[starts[1:]].min() if len(first) > 1 else np.inf
        if spread <= WIDEST and nearest >= GAP * max(spread, ROUNDING / GAP):
            yield starts
