"""A fitted law: its parameters with intervals, what the data do not identify, and predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.config import Array
from analysis.format import number, span
from analysis.laws.identification import Ends, Intervals, unidentified
from analysis.laws.intervals import Student, band, intervals
from analysis.laws.law import Data, Law
from analysis.laws.objective import predict
from analysis.serialize import HIDDEN, Result
from analysis.tables.schema import TableError

FLAT = 1e-6  # scaled gradient and curvature below this are zero; an optimum reaches 1e-10 or less


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Evidence for an optimum: scaled gradient, least scaled curvature, agreeing starts, active bounds."""

    gradient: float
    curvature: float
    starts: int
    starts_agreeing: int
    at_bound: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Return True if this is an optimum, not a point on a flat direction along which the fit still moved.

        Agreement of two starts suffices where the gradient is dominated by rounding, as it is for data
        without noise.
        """
        return (self.gradient < FLAT or self.starts_agreeing > 1) and self.curvature > -FLAT

    def __str__(self) -> str:
        return (
            f"{self.starts_agreeing} of {self.starts} starts agree, gradient {self.gradient:.1e}, "
            f"least curvature {self.curvature:.1e}"
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class LawFit(Result):
    """A fitted law: parameters with intervals, the certificate and what the data do not determine."""

    law: str
    formula: str
    source: str
    points: int
    delta: float
    objective: float
    parameters: dict[str, float]
    units: dict[str, str]
    intervals: Intervals
    resampling: str
    certificate: Certificate
    not_identified: dict[str, str]  # parameter and reason
    undetermined: tuple[str, ...]
    rms_nats: float
    few: Student | None = field(default=None, metadata=HIDDEN)  # set where few units were resampled
    draws: Array = field(compare=False, metadata=HIDDEN)  # fitted form [resamples, parameters]
    fitted: Array = field(compare=False, metadata=HIDDEN)
    covariance: Array = field(compare=False, metadata=HIDDEN)  # of the fitted form, by linear theory
    model: Law = field(compare=False, metadata=HIDDEN)
    data: dict[str, Array] = field(compare=False, metadata=HIDDEN)  # columns of the fitted points
    losses: Array = field(compare=False, metadata=HIDDEN)

    @property
    def params(self) -> pd.DataFrame:
        """Return one row per parameter: value, low, high, standard_error, unit and identified.

        `identified` is True, or the reason why not. See `conf_int` for low and high.
        """
        ends = _frame(self.intervals) if self.intervals else self.conf_int()
        names = [parameter.name for parameter in self.model.parameters]
        return pd.DataFrame(
            {
                "value": pd.Series(self.parameters, dtype=float),
                "low": ends["low"],
                "high": ends["high"],
                "standard_error": np.sqrt(np.diagonal(self.cov)),
                "unit": pd.Series(self.units),
                "identified": pd.Series({name: self.not_identified.get(name, True) for name in names}),
            },
            index=pd.Index(names, name="parameter"),
        )

    @property
    def cov(self) -> pd.DataFrame:
        """Return the covariance of the parameters: of the resamples, or else by linear theory.

        It is NaN for a parameter that a bound determines.
        """
        names = [parameter.name for parameter in self.model.parameters]
        if len(self.draws):
            matrix = np.cov(self.draws, rowvar=False).reshape(len(names), len(names))
        else:
            matrix = self.covariance
        logs = [parameter.log for parameter in self.model.parameters]
        scale = np.where(logs, np.exp(np.where(logs, self.fitted, 0.0)), 1.0)
        return pd.DataFrame(matrix * np.outer(scale, scale), index=names, columns=names)

    @property
    def resid(self) -> pd.Series:
        """Return loss minus fitted loss of the points, in the order of `data`."""
        return pd.Series(self.losses - self.predict(self.data), name="residual")

    def conf_int(self, level: float | None = None) -> pd.DataFrame:
        """Return the interval of every parameter (low, high), infinite where it is open; 0.95 by default.

        It is that of the resamples, or for bootstrap=0 Student's by the covariance of linear theory.
        """
        level = level or 0.95
        terms = self.model.terms(self.data)
        if len(self.draws):
            resampled = (self.draws, self.few, level, self.covariance)
            return _frame(intervals(self.model, terms, self.fitted, *resampled))
        quantile = float(stdtrit(max(self.points - len(self.fitted), 1), (1 + level) / 2))
        half = quantile * np.sqrt(np.diagonal(self.covariance))
        low, high = (self.model.public(self.fitted + side * half) for side in (-1, 1))
        least, most = self.model.bounds
        at_bound = (self.fitted <= least) | (self.fitted >= most)
        lost = unidentified(self.model, terms, self.fitted, at_bound, self.covariance)
        return _frame({n: (None, None) if n in lost else (float(low[n][0]), float(high[n][0])) for n in low})

    def to_frame(self) -> pd.DataFrame:
        """Return `params`."""
        return self.params

    def predict(self, data: Data | pd.DataFrame) -> Array:
        """Return the law's loss in nats at new points."""
        return predict(self.model.terms(columns(self.model, data)), self.fitted[None])[0]

    def band(self, data: Data | pd.DataFrame, confidence: float = 0.95) -> tuple[Array, Array]:
        """Return the pointwise interval of the law's loss at new points.

        It is Student's where few blocks were resampled. Raises ValueError for a law fitted with bootstrap=0.
        """
        terms = self.model.terms(columns(self.model, data))
        drawn = predict(terms, self.draws) if len(self.draws) else self.draws
        return band(predict(terms, self.fitted[None])[0], drawn, self.few, confidence)

    def headline(self) -> str:
        """Return the law, the points and their scatter in one line."""
        rms = f"{self.rms_nats:.4f}" if self.rms_nats < 10 else number(self.rms_nats, 4)
        return f"{self.law}: L = {self.formula} ({self.source}), {self.points} points, rms {rms} nats"

    def summary(self) -> str:
        """Return the fit as plain text."""
        lines = [
            self.headline(),
            f"  objective {self.objective:.6g} (Huber delta {number(self.delta, 4)}); {self.certificate}",
        ]
        if not self.certificate.holds:
            lines.append("  no optimum was reached: the points do not determine these parameters")
        for parameter in self.model.parameters:
            value = number(self.parameters[parameter.name], 6)
            ends: Ends | None = self.intervals.get(parameter.name)
            shown = f" {span(*ends, 4)}" if ends and ends != (None, None) else ""
            if parameter.name in self.not_identified:
                why = self.not_identified[parameter.name]
                text = f"not identified: {why} (best value {value}{shown})"
            else:
                text = f"{value}{shown} {parameter.unit}{': ' * bool(parameter.meaning)}{parameter.meaning}"
            lines.append(f"  {parameter.name:>6} = {text.rstrip()}")
        lines.append(f"  intervals: {self.resampling}")
        together = [text for text in self.undetermined if " is not identified: " not in text]
        return "\n".join([*lines, *(f"  {text}" for text in together)])


def _frame(ends: Intervals) -> pd.DataFrame:
    """Return intervals as a frame of low and high, infinite where open."""
    rows = [
        (-np.inf if low is None else low, np.inf if high is None else high) for low, high in ends.values()
    ]
    return pd.DataFrame(rows, index=pd.Index(list(ends), name="parameter"), columns=["low", "high"])


def columns(law: Law, data: Data | pd.DataFrame) -> dict[str, Array]:
    """Return the law's columns as float arrays, as products of integer columns may overflow."""
    missing = [name for name in law.columns if name not in data]
    if missing:
        raise TableError(
            f"the {law.name} law needs the columns {', '.join(law.columns)}; missing: {', '.join(missing)}"
        )
    return {name: as_floats(name, data[name]) for name in law.columns}


def as_floats(name: str, values: Any) -> Array:
    """Return a column as floats. Raises TableError for a value that is not a number."""
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        wrong = pd.to_numeric(pd.Series(list(values)), errors="coerce").isna().to_numpy()
        raise TableError(
            f"column {name} holds {list(values)[int(np.argmax(wrong))]!r}: not a number"
        ) from None
