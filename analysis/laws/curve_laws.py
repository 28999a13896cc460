"""A law of depth alone, fitted to each depth curve of a table, and compared with the other laws of depth.

Curves of different runs share no parameter and are never pooled: one run gives one fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.config import Array
from analysis.format import number, span
from analysis.laws.curve_law import CurveLaw, fit_curve
from analysis.laws.decay import Decay
from analysis.laws.registry import LAWS
from analysis.serialize import Result, estimates_frame
from analysis.tables.schema import TableError

DEPTH_LAWS = tuple(name for name, law in LAWS.items() if law.columns == ("depth",))
MIN_DEPTHS = 1 + max(len(LAWS[name].parameters) for name in DEPTH_LAWS)
PRINTED = 20  # curves of unknown recurrence, printed one by one


@dataclass(frozen=True, kw_only=True)
class DepthLawError:
    """The errors of one law on depth curves, medians over the curves.

    `ahead_nats` is the mean absolute error on the deeper half of a curve of the law fitted to the shallower
    half; None where that is too short.
    """

    law: str
    rms_nats: float
    ahead_nats: float | None

    def summary(self) -> str:
        """Return the errors in one line."""
        line = f"{self.law:>13}: rms {self.rms_nats:.2g} nats"
        if self.ahead_nats is None:
            return line
        return f"{line}, deeper half predicted to within {self.ahead_nats:.2g} nats"


@dataclass(frozen=True, kw_only=True, repr=False)
class CurveLaws(Result):
    """One law fitted to every depth curve, and all laws of depth compared on the same curves."""

    law: str
    formula: str
    source: str
    curves: tuple[CurveLaw, ...]
    rivals: tuple[DepthLawError, ...]

    def summary(self) -> str:
        """Return one line per mean recurrence (median and range over its runs) and one per law of depth.

        Curves of unknown recurrence have a line each.
        """
        count = "1 depth curve" if len(self.curves) == 1 else f"{len(self.curves)} depth curves fitted apart"
        lines = [f"{self.law}: L = {self.formula} ({self.source}), {count}"]
        apart = [curve for curve in self.curves if curve.mean_recurrence is None]
        lines += [f"  {curve.run_id or 'all points'}: {curve.summary()}" for curve in apart[:PRINTED]]
        if len(apart) > PRINTED:
            lines.append(f"  and {len(apart) - PRINTED} more")
        depths = sorted({c.mean_recurrence for c in self.curves if c.mean_recurrence is not None})
        lines += [self._at(depth) for depth in depths]
        if depths:
            lines.append("  median and range over the runs of a recurrence whose curves determine the law")
        lines.append("  the laws of depth on all curves:")
        return "\n".join([*lines, *(f"  {errors.summary()}" for errors in self.rivals)])

    def _at(self, depth: float) -> str:
        curves = [curve for curve in self.curves if curve.mean_recurrence == depth]
        fitted = [curve for curve in curves if curve.refusal is None]
        count = f"{len(curves)} curves" if fitted == curves else f"{len(fitted)} of {len(curves)} curves"
        if not fitted:
            return f"  µ = {depth:g}, {count}: {curves[0].refusal}"
        values = (
            f"{name} = {_median_and_range([curve.parameters[name] for curve in fitted])}"
            for name in fitted[0].parameters
        )
        return f"  µ = {depth:g}, {count}: {', '.join(values)}"

    def predict(self, curve: CurveLaw, depths: Any) -> Array:
        """Return the law of one curve at some depths; NaN where it has no law."""
        law = LAWS[self.law]
        if len(curve.parameters) < len(law.parameters):
            return np.full(len(np.asarray(depths)), np.nan)
        return law.loss({"depth": np.asarray(depths, float)}, **curve.parameters)

    def to_frame(self) -> pd.DataFrame:
        """Return the parameters of every curve: value, low, high (infinite where open) and refusal."""
        rows = []
        for curve in self.curves:
            for name in (parameter.name for parameter in LAWS[self.law].parameters):
                low, high = curve.intervals.get(name, (np.nan, np.nan))
                ends = (-np.inf if low is None else low, np.inf if high is None else high)
                rows.append((curve.run_id, name, curve.parameters.get(name), *ends, curve.refusal))
        return estimates_frame(("run_id", "parameter"), rows)

    def at_level(self, level: float) -> CurveLaws:
        """Return the laws with their intervals at another level of confidence."""
        curves = (
            fit_curve(self.law, curve.run_id, curve.mean_recurrence, curve.points, level)
            for curve in self.curves
        )
        return replace(self, curves=tuple(curves))

    @property
    def cov(self) -> pd.DataFrame:
        """Return the covariance of the parameters by linear theory; curves are independent of each other."""
        parts = [curve.cov for curve in self.curves if len(curve.cov)]
        return pd.concat(parts).reindex(columns=[name for part in parts for name in part]).fillna(0.0)

    @property
    def resid(self) -> pd.Series:
        """Return loss minus fitted loss by run and depth; NaN where a curve has no law."""
        parts = [
            (curve.run_id, depth, loss - fitted)
            for curve in self.curves
            for depth, loss, fitted in zip(
                curve.points["depth"],
                curve.points["loss"],
                self.predict(curve, curve.points["depth"]),
                strict=True,
            )
        ]
        frame = pd.DataFrame(parts, columns=["run_id", "depth", "residual"])
        return frame.set_index(["run_id", "depth"])["residual"]


def fit_curves(name: str, points: pd.DataFrame, confidence: float = 0.95) -> CurveLaws:
    """Fit a law of depth to the depth curve of every run in `points`.

    Parameters
    ----------
    name : of a law whose only column is depth.
    points : columns depth and loss; run_id (without it all points are one curve), mean_recurrence and
        loss_se, the standard error of the loss, where they are known.

    Raises
    ------
    TableError : a column is missing, a value is not positive and finite, a curve lists a depth twice, or no
        curve has more depths than the laws have parameters.
    """
    curves = []
    for run_id, rows in _checked(name, points).groupby("run_id"):
        if len(rows) >= MIN_DEPTHS:
            recurrence = float(rows["mean_recurrence"].iloc[0]) if "mean_recurrence" in rows else None
            own = rows[rows.columns.intersection(["depth", "loss", "loss_se"])].astype(float)
            own = own.reset_index(drop=True)
            curves.append(fit_curve(name, str(run_id), recurrence, own, confidence))
    if not curves:
        raise TableError(
            f"law={name}: no depth curve has {MIN_DEPTHS} depths: evaluate with a larger max_depth"
        )
    return CurveLaws(
        law=name,
        formula=LAWS[name].formula,
        source=LAWS[name].source,
        curves=tuple(curves),
        rivals=tuple(_errors(law, curves) for law in DEPTH_LAWS),
    )


def _checked(name: str, points: pd.DataFrame) -> pd.DataFrame:
    """Return the points by run and depth, with a run_id."""
    missing = [column for column in ("depth", "loss") if column not in points]
    if missing:
        raise TableError(f"law={name} needs {' and '.join(missing)}: say columns.{missing[0]}=NAME")
    rows = points.assign(run_id=points["run_id"].astype(str) if "run_id" in points else "")
    rows = rows.sort_values(["run_id", "depth"], kind="stable")
    for column in ("depth", "loss"):
        values = rows[column].astype(float)
        wrong = ~(np.isfinite(values) & (values > 0))
        if wrong.any():
            value = values[wrong].iloc[0]
            raise TableError(f"column {column} holds {value:g}: values must be positive and finite")
    twice = rows[rows.duplicated(["run_id", "depth"])]
    if len(twice):
        row = twice.iloc[0]
        where = f"of run {row['run_id']} is" if row["run_id"] else "is"
        hint = "" if row["run_id"] else ": columns.run_id=NAME says which points are one curve"
        raise TableError(f"depth {row['depth']:g} {where} listed twice{hint}")
    return rows


def _errors(name: str, curves: Sequence[CurveLaw]) -> DepthLawError:
    """Return the errors of one law on all curves, whether they determine it or not."""
    rms, ahead = [], []
    for curve in curves:
        depths, losses = (curve.points[column].to_numpy(float) for column in ("depth", "loss"))
        near = depths <= np.median(depths)
        both = Decay(
            law=LAWS[name],
            depths=depths,
            values=np.stack([losses, losses]),
            weights=np.stack([np.ones(len(near)), near]) / losses**2,
        )
        on_all, on_near = both.fitted(both.best_rates())[3] - losses
        rms.append(float(np.sqrt(np.mean(on_all**2))))
        if near.sum() >= MIN_DEPTHS:
            ahead.append(float(np.abs(on_near[~near]).mean()))
    return DepthLawError(
        law=name,
        rms_nats=float(np.median(rms)),
        ahead_nats=float(np.median(ahead)) if ahead else None,
    )


def _median_and_range(values: list[float]) -> str:
    ends = "" if len(values) == 1 else f" {span(min(values), max(values))}"
    return f"{number(float(np.median(values)))}{ends}"
