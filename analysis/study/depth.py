"""Depth curves of a study: the saturating exponential run by run, and its rate over mean recurrence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import stdtrit

from analysis.config import Array, FitConfig
from analysis.laws.depth_curve import SaturatingFit, fit_saturating
from analysis.tables.schema import TableError


@dataclass(frozen=True, kw_only=True)
class DepthCurve:
    """One run's depth curve and its fit."""

    run_id: str
    kind: str
    scale: str
    accounting: str
    mean_recurrence: float
    target_flops: float | None
    fit: SaturatingFit


@dataclass(frozen=True, kw_only=True)
class RateAtRecurrence:
    """The rate z of the runs at one mean recurrence; the spread is over runs."""

    mean_recurrence: float
    curves: int
    fitted: int
    rate: float | None
    rate_times_recurrence: float | None
    rate_times_recurrence_sd: float | None  # None with fewer than two fitted runs


@dataclass(frozen=True, kw_only=True)
class DepthStudy:
    """All depth curves of looped runs, their summary, and the slope of log z on log mu.

    A slope of -1 means that z mu is constant.
    """

    curves: tuple[DepthCurve, ...]
    by_recurrence: tuple[RateAtRecurrence, ...]
    slope: float | None = None
    slope_low: float | None = None
    slope_high: float | None = None
    refusal: str | None = None

    @property
    def fitted(self) -> tuple[DepthCurve, ...]:
        """Return the curves whose rate was accepted."""
        return tuple(curve for curve in self.curves if curve.fit.refusal is None)


def depth_study(runs: pd.DataFrame, depths: pd.DataFrame, config: FitConfig) -> DepthStudy:
    """Fit the depth curve of every looped run in `runs`; depth rows of other runs are ignored.

    Raises TableError for a depth listed twice.
    """
    twice = depths[depths.duplicated(["run_id", "depth"])]
    if len(twice):
        row = twice.iloc[0]
        raise TableError(
            f"depth {row['depth']} of run {row['run_id']} is listed twice: collect the sweep again"
        )
    depths = depths[np.isfinite(depths["val_loss_nats"].astype(float))]
    rows = {str(run_id): frame for run_id, frame in depths.groupby("run_id", sort=True)}
    curves = []
    for run in runs[runs["kind"] == "looped"].to_dict("records"):
        frame = rows.get(str(run["run_id"]))
        if frame is None:
            continue
        fit = fit_saturating(
            frame["depth"].to_numpy(float), frame["val_loss_nats"].to_numpy(float), config.confidence
        )
        budget = float(run["target_flops"])
        curves.append(
            DepthCurve(
                run_id=str(run["run_id"]),
                kind=str(run["kind"]),
                scale=str(run["scale"]),
                accounting=str(run["accounting"]),
                mean_recurrence=float(run["mean_recurrence"]),
                target_flops=budget if np.isfinite(budget) else None,
                fit=fit,
            )
        )
    summary = tuple(
        _summarise(depth, [c for c in curves if c.mean_recurrence == depth])
        for depth in sorted({c.mean_recurrence for c in curves})
    )
    return _slope(tuple(curves), summary, config.confidence)


def _summarise(depth: float, curves: list[DepthCurve]) -> RateAtRecurrence:
    rates = np.array([c.fit.rate for c in curves if c.fit.rate is not None])
    return RateAtRecurrence(
        mean_recurrence=depth,
        curves=len(curves),
        fitted=len(rates),
        rate=float(rates.mean()) if len(rates) else None,
        rate_times_recurrence=float(rates.mean() * depth) if len(rates) else None,
        rate_times_recurrence_sd=float(rates.std(ddof=1) * depth) if len(rates) > 1 else None,
    )


def _slope(
    curves: tuple[DepthCurve, ...], summary: tuple[RateAtRecurrence, ...], confidence: float
) -> DepthStudy:
    """Regress log z on log mu over runs, each with its own fit's error and a scatter that all runs share."""
    known = [c for c in curves if c.fit.rate is not None and c.fit.rate_low and c.fit.rate_high]
    recurrences = len({c.mean_recurrence for c in known})
    if recurrences < 3 or len(known) < 4:
        noun = "recurrence" if recurrences == 1 else "recurrences"
        reason = f"{len(known)} identified rates at {recurrences} {noun}, at least 4 rates at 3 are needed"
        return DepthStudy(curves=curves, by_recurrence=summary, refusal=reason)
    x = np.log([c.mean_recurrence for c in known])
    y = np.log([c.fit.rate or np.nan for c in known])
    width = np.log([(c.fit.rate_high or np.nan) / (c.fit.rate_low or np.nan) for c in known])
    freedoms = np.array([len(c.fit.depths) - 3 for c in known])
    own = np.maximum(width / 2 / stdtrit(freedoms, (1 + confidence) / 2), 1e-6) ** 2
    freedom = len(known) - 2
    # Paule and Mandel 1982: the shared variance that makes the weighted residuals as large as they should be.
    ceiling = float(np.var(y)) * len(known) + 1.0
    excess = _regress(x, y, own)[2] - freedom
    shared = brentq(lambda v: _regress(x, y, own + v)[2] - freedom, 0.0, ceiling) if excess > 0 else 0.0
    slope, error, _ = _regress(x, y, own + shared)
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return DepthStudy(
        curves=curves, by_recurrence=summary, slope=slope, slope_low=slope - half, slope_high=slope + half
    )


def _regress(x: Array, y: Array, variance: Array) -> tuple[float, float, float]:
    """Return slope, its standard error and the weighted sum of squared residuals."""
    weight = 1 / variance
    x, y = x - np.average(x, weights=weight), y - np.average(y, weights=weight)
    information = float(weight @ x**2)
    slope = float(weight @ (x * y)) / information
    return slope, information**-0.5, float(weight @ (y - slope * x) ** 2)
