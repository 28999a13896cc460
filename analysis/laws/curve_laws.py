"""A law of depth alone, fitted to each depth curve of a study, and compared with the other laws of depth.

Curves of different runs share no parameter and are never pooled: one run gives one fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import serialize
from analysis.format import number, span
from analysis.laws.depth_curve import fit_saturating
from analysis.laws.fit import fit_law
from analysis.laws.registry import LAWS
from analysis.laws.result import LawFit
from analysis.tables.schema import TableError

DEPTH_LAWS = tuple(name for name, law in LAWS.items() if law.columns == ("depth",))
EXPONENTIAL = "saturating"
MIN_DEPTHS = 1 + max(len(LAWS[name].parameters) for name in DEPTH_LAWS)


@dataclass(frozen=True, kw_only=True)
class CurveLaw:
    """One law fitted to one depth curve; `refusal`: why the curve does not determine the exponential."""

    run_id: str
    mean_recurrence: float
    parameters: dict[str, float]
    rms_nats: float
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class DepthLawError:
    """The errors of one law on depth curves, medians over the curves.

    `ahead_nats` is the mean absolute error on the deeper half of a curve of the law fitted to the shallower
    half; None where that is too short.
    """

    law: str
    rms_nats: float
    ahead_nats: float | None


@dataclass(frozen=True, kw_only=True)
class CurveLaws:
    """One law fitted to every depth curve, and all laws of depth compared on the same curves."""

    law: str
    formula: str
    source: str
    curves: tuple[CurveLaw, ...]
    rivals: tuple[DepthLawError, ...]

    def summary(self) -> str:
        """Return one line per mean recurrence (median and range over its runs) and one per law of depth."""
        lines = [
            f"{self.law}: L = {self.formula} ({self.source}), {len(self.curves)} depth curves fitted apart"
        ]
        for depth in sorted({curve.mean_recurrence for curve in self.curves}):
            curves = [curve for curve in self.curves if curve.mean_recurrence == depth]
            fitted = [curve for curve in curves if curve.refusal is None]
            count = f"{len(curves)} curves" if fitted == curves else f"{len(fitted)} of {len(curves)} curves"
            values = (
                f"{name} = {_median_and_range([curve.parameters[name] for curve in fitted])}"
                for name in curves[0].parameters
            )
            lines.append(f"  µ = {depth:g}, {count}: {', '.join(values) if fitted else curves[0].refusal}")
        lines.append(
            "  median and range over the runs of a recurrence whose curves determine the law; "
            "the laws of depth on all curves:"
        )
        for errors in self.rivals:
            ahead = (
                ""
                if errors.ahead_nats is None
                else f", deeper half predicted to within {errors.ahead_nats:.2g} nats"
            )
            lines.append(f"  {errors.law:>13}: rms {errors.rms_nats:.2g} nats{ahead}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the fits as JSON values."""
        return dict(serialize.to_jsonable(self))

    def to_json(self) -> str:
        """Return the fits as JSON text."""
        return serialize.to_json(self)


def fit_curves(name: str, points: pd.DataFrame, delta: float | None) -> CurveLaws:
    """Fit a law of depth to the depth curve of every run in `points`.

    Parameters
    ----------
    name : of a law whose only column is depth.
    points : columns run_id, mean_recurrence, depth and loss in nats.
    delta : of the Huber cost on the log loss.

    Raises
    ------
    TableError : no curve has more depths than the laws have parameters.
    """
    curves = [rows.sort_values("depth") for _, rows in points.groupby("run_id") if _enough(rows)]
    if not curves:
        raise TableError(
            f"law={name}: no depth curve has {MIN_DEPTHS} depths: evaluate with a larger max_depth"
        )
    fits = {law: [_fit(law, rows, delta) for rows in curves] for law in DEPTH_LAWS}
    return CurveLaws(
        law=name,
        formula=LAWS[name].formula,
        source=LAWS[name].source,
        curves=tuple(
            CurveLaw(
                run_id=str(rows["run_id"].iloc[0]),
                mean_recurrence=float(rows["mean_recurrence"].iloc[0]),
                parameters=fit.parameters,
                rms_nats=fit.rms_nats,
                refusal=_refusal(rows) if name == EXPONENTIAL else None,
            )
            for rows, fit in zip(curves, fits[name], strict=True)
        ),
        rivals=tuple(
            DepthLawError(
                law=law,
                rms_nats=float(np.median([fit.rms_nats for fit in fits[law]])),
                ahead_nats=_ahead_nats(law, curves, delta),
            )
            for law in DEPTH_LAWS
        ),
    )


def _enough(rows: pd.DataFrame) -> bool:
    return rows["depth"].nunique() >= MIN_DEPTHS


def _fit(name: str, rows: pd.DataFrame, delta: float | None) -> LawFit:
    return fit_law(name, rows, rows["loss"].to_numpy(float), delta=delta)


def _refusal(rows: pd.DataFrame) -> str | None:
    return fit_saturating(rows["depth"].to_numpy(float), rows["loss"].to_numpy(float)).refusal


def _ahead_nats(name: str, curves: list[pd.DataFrame], delta: float | None) -> float | None:
    """Return the median error on the deeper halves of the curves, None where all are too short."""
    errors = []
    for rows in curves:
        near = rows["depth"] <= rows["depth"].median()
        if _enough(rows[near]):
            deeper = rows[~near]
            predicted = _fit(name, rows[near], delta).predict(deeper)
            errors.append(float(np.abs(predicted - deeper["loss"].to_numpy(float)).mean()))
    return float(np.median(errors)) if errors else None


def _median_and_range(values: list[float]) -> str:
    ends = "" if len(values) == 1 else f" {span(min(values), max(values))}"
    return f"{number(float(np.median(values)))}{ends}"
