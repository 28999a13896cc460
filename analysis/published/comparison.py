"""Looped against fixed depth on Core in the paper's own rows, and what nine single runs a side support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from analysis import serialize
from analysis.format import number
from analysis.published.parcae import core_differences

SCORES = {"core": "Core", "extended": "Core-Extended"}


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """Looped minus fixed at one size and budget, in Core points.

    `items_sd` adds the two printed spreads in squares: they are over evaluation seeds, with one training
    run a side, so that no verdict can be given row by row.
    """

    score: str
    size: str
    budget_flops: float
    mean_recurrence: float
    points: float
    items_sd: float
    verdict: str = "items only, training noise unknown"


@dataclass(frozen=True, kw_only=True)
class PublishedMean:
    """The mean over rows, with Student's interval from the scatter of the rows themselves.

    That scatter holds the training noise of both sides and whatever differs between budgets.
    """

    score: str
    rows: int
    wins: int
    ties: int
    points: float
    sd_points: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True, kw_only=True)
class PublishedComparison:
    """The paper's rows and what they support together."""

    rows: tuple[PublishedRow, ...]
    means: tuple[PublishedMean, ...]

    def summary(self) -> str:
        """Return the comparison as plain text."""
        lines = ["Looped minus fixed depth in Core points, as published (above zero, looping wins)"]
        for mean in self.means:
            lines += [
                f"  {row.score}, {row.size}, {number(row.budget_flops)} FLOPs: {row.points:+.1f} at µ = "
                f"{row.mean_recurrence:g}, evaluation spread {row.items_sd:.2f}: {row.verdict}"
                for row in self.rows
                if row.score == mean.score
            ]
            lines.append(
                f"  {mean.score}, mean of {mean.rows} rows: {mean.points:+.2f} [{mean.low:+.2f}, "
                f"{mean.high:+.2f}], {mean.wins} won and {mean.ties} tied: {mean.verdict}"
            )
        lines.append(
            "  The interval of a mean is Student's, from the scatter of its rows. The printed spreads are "
            "over evaluation seeds; with one training run a side no single row can be judged. The recurrence "
            "of a row is the best of several."
        )
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the comparison as JSON text."""
        return serialize.to_json(self)


def published_comparison(confidence: float = 0.95) -> PublishedComparison:
    """Compare looped with fixed depth in the published table."""
    differences = core_differences()
    rows, means = [], []
    for column, score in SCORES.items():
        points = differences[column].to_numpy(float)
        rows += [
            PublishedRow(
                score=score,
                size=str(row["size"]),
                budget_flops=float(row["budget_flops"]),
                mean_recurrence=float(row["mean_recurrence"]),
                points=float(row[column]),
                items_sd=float(row[f"{column}_sd"]),
            )
            for row in differences.to_dict("records")
        ]
        means.append(_mean(score, points, confidence))
    return PublishedComparison(rows=tuple(rows), means=tuple(means))


def _mean(score: str, points: np.ndarray[Any, Any], confidence: float) -> PublishedMean:
    middle, sd = float(points.mean()), float(points.std(ddof=1))
    half = float(stdtrit(len(points) - 1, (1 + confidence) / 2)) * sd / float(np.sqrt(len(points)))
    low, high = middle - half, middle + half
    return PublishedMean(
        score=score,
        rows=len(points),
        wins=int((points > 0).sum()),
        ties=int((points == 0).sum()),
        points=middle,
        sd_points=sd,
        low=low,
        high=high,
        verdict="looped higher" if low > 0 else "fixed higher" if high < 0 else "not resolved",
    )
