"""What the paper's scores support: rows, their mean and trend, and the gap to the next larger Transformer.

One run was trained a side. The printed spreads are over evaluation seeds and hold no training noise. That
noise is seen in two places: the scatter of the rows themselves, and two models that others trained again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from analysis import serialize
from analysis.config import Array
from analysis.format import number, percent
from analysis.published.parcae import core_differences, table

SCORES = {"core": "Core", "extended": "Core-Extended"}
ROW_VERDICT = "none: one training run a side"
RowVerdict = Literal["looped higher", "fixed higher", "not resolved"]


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """Looped minus fixed at one size and budget, in points.

    `evaluation_sd` adds the two printed spreads in squares: they are over evaluation seeds, with one training
    run a side, so that no verdict can be given row by row.
    """

    score: str
    size: str
    budget_flops: float
    mean_recurrence: float
    points: float
    evaluation_sd: float
    verdict: str = ROW_VERDICT


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
    verdict: RowVerdict


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A least-squares slope common to groups with an intercept each, with Student's interval."""

    slope: float
    se: float
    low: float
    high: float
    p_value: float  # of no slope, two-sided
    degrees_of_freedom: int
    residual_sd: float

    def summary(self, digits: int = 2) -> str:
        """Return the slope with its standard error and p-value."""
        return f"{self.slope:+.{digits}f} ± {self.se:.{digits}f} (p = {self.p_value:.2g})"


@dataclass(frozen=True, kw_only=True)
class SizeEquivalent:
    """How far a looped model reaches from its own Transformer to the next larger one, on one measure.

    `share` is the part of that gap (the paper's parameter efficiency); `multiplier` the Transformer's
    parameters at equal quality over those of the looped model's own, log-linear in the size between the two.
    Intervals take the training noise of `run_sd`; they are None where that is unknown.
    """

    measure: str
    size: str
    larger: str
    size_ratio: float  # parameters of the larger Transformer over those of the own
    share: float
    low: float | None
    high: float | None
    multiplier: float


@dataclass(frozen=True, kw_only=True, repr=False)
class PublishedComparison(serialize.Result):
    """The paper's rows and what they support together.

    It has no `cov` and `resid`: no one model is fitted. Means take the rows as scattered about one level,
    trends about a level per size, and both scores are of the same runs. The scatter is in `sd_points` of the
    means and `residual_sd` of the trends.
    """

    rows: tuple[PublishedRow, ...]
    means: tuple[PublishedMean, ...]
    trends: dict[str, Slope]  # of each score over log10 C, in points a decade

    def to_frame(self) -> pd.DataFrame:
        """Return the mean of each score and its trend over log10 C in points: value, low and high."""
        values = {(mean.score, "mean"): (mean.points, mean.low, mean.high) for mean in self.means}
        values |= {
            (score, "trend"): (trend.slope, trend.low, trend.high) for score, trend in self.trends.items()
        }
        index = pd.MultiIndex.from_tuples(list(values), names=["score", "number"])
        return pd.DataFrame(list(values.values()), index=index, columns=["value", "low", "high"])

    def at_level(self, level: float) -> PublishedComparison:
        """Return the comparison with its intervals at another level of confidence."""
        return published_comparison(level)

    def summary(self) -> str:
        """Return the comparison as plain text."""
        lines = ["Looped minus fixed depth in points, as published (above zero, looping wins)"]
        for mean in self.means:
            trend = self.trends[mean.score]
            lines += [
                f"  {row.score}, {row.size}, {number(row.budget_flops)} FLOPs: {row.points:+.1f} at µ = "
                f"{row.mean_recurrence:g}, ± {row.evaluation_sd:.2f} over evaluation seeds"
                for row in self.rows
                if row.score == mean.score
            ]
            lines += [
                f"  {mean.score}, mean of {mean.rows} rows: {mean.points:+.2f} [{mean.low:+.2f}, "
                f"{mean.high:+.2f}], {mean.wins} won and {mean.ties} tied: {mean.verdict}",
                f"  {mean.score}, trend with the budget, a level per size: {trend.summary()} points a decade "
                f"[{trend.low:+.2f}, {trend.high:+.2f}]; rows scatter by {trend.residual_sd:.2f} about it",
            ]
        lines.append(
            "  The ± of a row is over evaluation seeds and holds no training noise: with one training run a "
            "side no single row can be judged. Intervals of means and trends are Student's, from the scatter "
            "of the rows, which holds the training noise. The recurrence of a row is the best of several."
        )
        return "\n".join(lines)


def published_comparison(confidence: float = 0.95) -> PublishedComparison:
    """Compare looped with fixed depth in the published table."""
    differences = core_differences()
    rows, means, trends = [], [], {}
    decades = np.log10(differences["budget_flops"].to_numpy(float))
    sizes = differences["size"].to_numpy(str)
    for column, score in SCORES.items():
        points = differences[column].to_numpy(float)
        rows += [
            PublishedRow(
                score=score,
                size=str(row["size"]),
                budget_flops=float(row["budget_flops"]),
                mean_recurrence=float(row["mean_recurrence"]),
                points=float(row[column]),
                evaluation_sd=float(row[f"{column}_sd"]),
            )
            for row in differences.to_dict("records")
        ]
        means.append(_mean(score, points, confidence))
        trends[score] = slope_within(decades, points, sizes, confidence)
    return PublishedComparison(rows=tuple(rows), means=tuple(means), trends=trends)


def slope_within(x: Array, y: Array, groups: Array, confidence: float = 0.95) -> Slope:
    """Fit y = level(group) + slope x by least squares; `groups` labels the points.

    Raises ValueError without a degree of freedom left for the error.
    """
    centred = [v - np.array([v[groups == g].mean() for g in groups]) for v in (x, y)]
    freedom = len(x) - len(set(groups.tolist())) - 1
    if freedom < 1:
        raise ValueError(f"{len(x)} points leave no degree of freedom for the error of a slope")
    squares = float(centred[0] @ centred[0])
    slope = float(centred[0] @ centred[1]) / squares
    sd = float(np.sqrt(np.square(centred[1] - slope * centred[0]).sum() / freedom))
    se = sd / float(np.sqrt(squares))
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * se
    return Slope(
        slope=slope,
        se=se,
        low=slope - half,
        high=slope + half,
        p_value=2 * float(stdtr(freedom, -abs(slope) / se)),
        degrees_of_freedom=freedom,
        residual_sd=sd,
    )


def run_sd(column: str) -> tuple[float, int]:
    """Return the standard deviation of a looped model's score between trainings, and its freedom.

    From the models that others trained again with the published recipe: the half mean square of the
    differences. It holds what differs between the two setups as well.
    """
    pairs = table("reproduction").merge(table("end_to_end"), on="size", suffixes=("_again", ""))
    gap = (pairs[f"looped_{column}_again"] - pairs[f"looped_{column}"]).to_numpy(float)
    return float(np.sqrt(np.square(gap).mean() / 2)), len(gap)


def size_equivalents(confidence: float = 0.95) -> tuple[SizeEquivalent, ...]:
    """Place every looped model between its own Transformer and the next larger one.

    Notes
    -----
    With one run per model and noise s, the share r = (L - T) / (B - T) has the standard error
    s sqrt(1 + (1 - r)^2 + r^2) / (B - T) by the delta method; Student's t with the freedom of s.
    """
    models, equivalents = table("end_to_end"), []
    for column, measure in {**SCORES, "loss": "validation loss"}.items():
        if column == "loss":
            own, looped = (-np.log(models[f"{side}_perplexity"]) for side in ("transformer", "looped"))
        else:
            own, looped = models[f"transformer_{column}"], models[f"looped_{column}"]
        for i in range(len(models) - 1):
            gap = float(own[i + 1] - own[i])
            share = float(looped[i] - own[i]) / gap
            ratio = float(models["transformer_params"][i + 1] / models["transformer_params"][i])
            half = None
            if column != "loss":  # the losses of the reproduction are those of other held-out text
                sd, freedom = run_sd(column)
                error = sd * float(np.sqrt(1 + (1 - share) ** 2 + share**2)) / gap
                half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
            equivalents.append(
                SizeEquivalent(
                    measure=measure,
                    size=str(models["size"][i]),
                    larger=str(models["size"][i + 1]),
                    size_ratio=ratio,
                    share=share,
                    low=None if half is None else share - half,
                    high=None if half is None else share + half,
                    multiplier=ratio**share,
                )
            )
    return tuple(equivalents)


def shares(measure: str, *, interval: bool = False) -> str:
    """Return the shares of one measure over the sizes as a phrase."""
    parts = []
    for item in (item for item in size_equivalents() if item.measure == measure):
        known = interval and item.low is not None and item.high is not None
        ends = f" [{100 * (item.low or 0):.0f}, {100 * (item.high or 0):.0f}]" if known else ""
        parts.append(percent(item.share, 1) + ends)
    return " / ".join(parts)


def _mean(score: str, points: Array, confidence: float) -> PublishedMean:
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
