"""Depth curves of a study: a saturating exponential per run, and its rate over mean recurrence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import stdtrit

from analysis.config import MIN_RATE_RECURRENCES, MIN_RATES, Array, FitConfig
from analysis.format import percent
from analysis.laws.depth_curve import DepthFit, fit_depth_curves
from analysis.tables.schema import TableError

PLATEAU_SHARE = 0.99  # of the fall of the loss from T = 1, reached at the plateau


@dataclass(frozen=True, kw_only=True)
class DepthCurve:
    """One run's depth curve and its fit."""

    run_id: str
    kind: str
    scale: str
    accounting: str
    mean_recurrence: float
    target_flops: float | None
    fit: DepthFit


@dataclass(frozen=True, kw_only=True)
class RateAtRecurrence:
    """The rate z of the runs at one mean recurrence; the spread is over runs."""

    mean_recurrence: float
    curves: int
    fitted: int
    rate: float | None
    rate_times_recurrence: float | None
    rate_times_recurrence_sd: float | None  # None with fewer than two fitted runs

    @property
    def plateau(self) -> float | None:
        """Return the depth T in loops at which 99 % of the fall of the loss from T = 1 is reached."""
        return None if self.rate is None else 1 + math.log(1 / (1 - PLATEAU_SHARE)) / self.rate

    def summary(self) -> str:
        """Return the rate, or that none was identified."""
        if self.rate is None:
            return f"µ = {self.mean_recurrence:g}: none of {self.curves} curves identifies z"
        sd = self.rate_times_recurrence_sd
        return (
            f"µ = {self.mean_recurrence:g}: z = {self.rate:.3f}, z µ = {self.rate_times_recurrence:.2f}"
            f"{'' if sd is None else f' ± {sd:.2f}'}, plateau at T = {self.plateau:.3g} "
            f"({self.fitted} of {self.curves} curves)"
        )


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

    def headline(self) -> str:
        """Return how many curves were fitted, where they plateau, and how the rate depends on µ."""
        fitted = f"{len(self.fitted)} of {len(self.curves)} curves fitted{self._plateaus()}"
        if self.slope is None or self.slope_low is None or self.slope_high is None:
            return f"{fitted}; no law of z over µ: {self.refusal}"
        constant = self.slope_low <= -1 <= self.slope_high
        verdict = "consistent with a constant z µ" if constant else "so z µ is not constant"
        ends = f"[{self.slope_low:.3f}, {self.slope_high:.3f}]"
        return f"{fitted}; z falls as µ^{self.slope:.3f} {ends}, {verdict}"

    def summary(self) -> str:
        """Return the headline, the rate at every mean recurrence, and the refusals."""
        if not self.curves:
            return "Test-time depth: no depth curve in the tables"
        lines = [f"Test-time depth, L(T) = L_inf + Z exp(-z T): {self.headline()}"]
        lines += [f"  {rate.summary()}" for rate in self.by_recurrence]
        lines += [f"  refused: {curve.run_id}, {curve.fit.refusal}" for curve in self._refused()]
        return "\n".join(lines)

    def _plateaus(self) -> str:
        known = [(row.plateau, row.mean_recurrence) for row in self.by_recurrence if row.plateau]
        if not known:
            return ""
        places = ", ".join(f"{depth:.2g} at µ = {recurrence:g}" for depth, recurrence in known)
        ratios = sorted(depth / recurrence for depth, recurrence in known)
        return (
            f"; {percent(PLATEAU_SHARE)} of the fall from T = 1 is reached at T = {places} "
            f"({ratios[0]:.2g} to {ratios[-1]:.2g} µ)"
        )

    def _refused(self) -> list[DepthCurve]:
        return [curve for curve in self.curves if curve.fit.refusal is not None]


def depth_study(runs: pd.DataFrame, depths: pd.DataFrame, config: FitConfig) -> DepthStudy:
    """Fit the depth curve of every looped run in `runs`; depth rows of other runs are ignored.

    Raises
    ------
    TableError : a depth is listed twice.
    """
    twice = depths[depths.duplicated(["run_id", "depth"])]
    if len(twice):
        row = twice.iloc[0]
        raise TableError(
            f"depth {row['depth']} of run {row['run_id']} is listed twice: collect the sweep again"
        )
    depths = depths[np.isfinite(depths["val_loss_nats"].astype(float))]
    rows = {str(run_id): frame for run_id, frame in depths.groupby("run_id", sort=True)}
    looped = [run for run in runs[runs["kind"] == "looped"].to_dict("records") if str(run["run_id"]) in rows]
    fits = _fits({str(run["run_id"]): rows[str(run["run_id"])] for run in looped}, config.confidence)
    curves = []
    for run in looped:
        budget = float(run["target_flops"])
        curves.append(
            DepthCurve(
                run_id=str(run["run_id"]),
                kind=str(run["kind"]),
                scale=str(run["scale"]),
                accounting=str(run["accounting"]),
                mean_recurrence=float(run["mean_recurrence"]),
                target_flops=budget if np.isfinite(budget) else None,
                fit=fits[str(run["run_id"])],
            )
        )
    summary = tuple(
        _summarise(depth, [c for c in curves if c.mean_recurrence == depth])
        for depth in sorted({c.mean_recurrence for c in curves})
    )
    return _slope(tuple(curves), summary, config.confidence)


def _fits(curves: dict[str, pd.DataFrame], confidence: float) -> dict[str, DepthFit]:
    """Fit all curves, those over the same depths at once."""
    alike: dict[tuple[float, ...], list[str]] = {}
    for run_id, curve in curves.items():
        alike.setdefault(tuple(curve["depth"].astype(float)), []).append(run_id)
    fits: dict[str, DepthFit] = {}
    for depths, run_ids in alike.items():
        losses, errors = (
            np.stack([curves[run_id][name].to_numpy(float) for run_id in run_ids])
            for name in ("val_loss_nats", "val_loss_se_nats")
        )
        found = fit_depth_curves(np.array(depths), losses, errors=errors, confidence=confidence)
        fits |= dict(zip(run_ids, found, strict=True))
    return fits


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
    """Regress log z on log mu over runs, with each run's own error and one scatter for all runs."""
    known = [c for c in curves if c.fit.rate is not None and c.fit.rate_low and c.fit.rate_high]
    recurrences = len({c.mean_recurrence for c in known})
    if recurrences < MIN_RATE_RECURRENCES or len(known) < MIN_RATES:
        noun = "recurrence" if recurrences == 1 else "recurrences"
        needed = f"at least {MIN_RATES} rates at {MIN_RATE_RECURRENCES} are needed"
        reason = f"{len(known)} identified rates at {recurrences} {noun}, {needed}"
        return DepthStudy(curves=curves, by_recurrence=summary, refusal=reason)
    x = np.log([c.mean_recurrence for c in known])
    y = np.log([c.fit.rate or np.nan for c in known])
    width = np.log([(c.fit.rate_high or np.nan) / (c.fit.rate_low or np.nan) for c in known])
    freedoms = np.array([len(c.fit.depths) - 3 for c in known])
    own = np.maximum(width / 2 / stdtrit(freedoms, (1 + confidence) / 2), 1e-6) ** 2
    freedom = len(known) - 2
    # Paule and Mandel 1982: the shared variance at which the weighted squares sum to their expectation.
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
