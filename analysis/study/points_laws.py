"""One law of the registry fitted to a table of points, with the unit and the left-out rows of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis import serialize
from analysis.config import FitConfig
from analysis.laws.curve_laws import DEPTH_LAWS, CurveLaws, fit_curves
from analysis.laws.fit import fit_law
from analysis.laws.function_law import as_law
from analysis.laws.result import LawFit
from analysis.laws.task_score import TASK_LAW, TaskLaw, fit_task_score
from analysis.study.points import in_unit, keys_in_unit, with_axis, with_columns
from analysis.tables.points import ROLES, Axis, PointsTable
from analysis.tables.schema import TableError
from analysis.tables.settings import differing_losses, varied_setting
from analysis.tables.units import implausible, implied

MOST_POINTS = 50_000  # of one law
MANY_POINTS = 2_000  # above, linear theory is as good as resampled points


@dataclass(frozen=True, kw_only=True, repr=False)
class PointsLawFit(LawFit):
    """A law of the registry fitted to a table of points, whose unit and rows `table` describes."""

    table: PointsTable = field(compare=False)

    def summary(self) -> str:
        """Return the fit as plain text, with what was converted and left out."""
        return in_unit(_with_remarks(super().summary(), self.table), self.table.unit)

    def to_dict(self) -> dict[str, Any]:
        """Return the fit as JSON values."""
        units = {name: in_unit(unit, self.table.unit) for name, unit in self.units.items()}
        return dict(keys_in_unit(super().to_dict() | {"units": units}, self.table.unit))

    def to_json(self) -> str:
        """Return the fit as JSON text."""
        return serialize.to_json(self.to_dict())


@dataclass(frozen=True, kw_only=True, repr=False)
class PointsCurveLaws(CurveLaws):
    """A law of depth fitted to the curves of a table of points, whose unit and rows `table` describes."""

    table: PointsTable = field(compare=False)

    def summary(self) -> str:
        """Return the fits as plain text, with what was converted and left out."""
        return in_unit(_with_remarks(super().summary(), self.table), self.table.unit)

    def to_dict(self) -> dict[str, Any]:
        """Return the fits as JSON values."""
        return dict(keys_in_unit(super().to_dict(), self.table.unit))

    def to_json(self) -> str:
        """Return the fits as JSON text."""
        return serialize.to_json(self.to_dict())


def _with_remarks(text: str, table: PointsTable) -> str:
    return "\n".join([text, *(f"  {line}" for line in table.remarks())])


def fit_law_to_points(
    law: str,
    points: PointsTable | pd.DataFrame,
    *,
    x: Axis | None = None,
    config: FitConfig | None = None,
) -> PointsLawFit | PointsCurveLaws | TaskLaw:
    """Fit one law of the registry to points that have its columns and a loss.

    Columns that follow from the others by C = 6 N D are filled in. A law of depth alone is fitted to the
    curve of each run_id separately (see `fit_curves`).

    Raises
    ------
    TableError : the law is unknown, or a column is missing.
    """
    config = config or FitConfig()
    model = as_law(law)
    table, axis = with_axis(points, x)
    if law in DEPTH_LAWS:
        known = ["run_id"] if "run_id" in table.frame else []
        curves = with_columns(table, ["depth", "loss", *known], axis)
        fits = fit_curves(law, curves.frame, config.confidence)
        return PointsCurveLaws(**_fields(CurveLaws, fits), table=curves)
    if law == TASK_LAW:
        scored = with_columns(table, ["loss", "score"], axis)
        frame = implied(scored.frame, axis)
        notes = (*scored.notes, *(item.summary() for item in scored.left_out))
        renamed = frame.rename(columns={"compute": "budget_flops"})
        return fit_task_score("score", renamed, config, notes)
    how = "pairs" if config.resampling == "noise" else config.resampling
    label = {"stratified": "compute", "block": "block"}.get(how)
    if label is not None and label not in implied(table.frame, axis):
        raise TableError(f"resampling={how} needs columns.{label}")
    used = with_columns(table, [*model.columns, "loss", *([label] if label else [])], axis)
    remarks = (*implausible(used.frame, model.columns), *_arms(used.frame, model.columns))
    used = replace(used, notes=(*used.notes, *remarks))
    count = len(used.frame)
    if count > MOST_POINTS:
        raise TableError(
            f"{count} points are more than the {MOST_POINTS} that one law is fitted to: take a part, as "
            f"where='index % {-(-count // MOST_POINTS)} == 0'"
        )
    linear = how == "pairs" and count > MANY_POINTS
    fitted = fit_law(
        law,
        used.frame,
        used.frame["loss"].to_numpy(float),
        delta=config.huber_delta,
        bootstrap=0 if linear else config.bootstrap,
        resampling=how,
        labels=None if label is None else used.frame[label].to_numpy(),
        seed=config.seed,
        confidence=config.confidence,
    )
    if linear:
        ends = fitted.conf_int(config.confidence).itertuples()
        spans = {str(name): _ends(low, high) for name, low, high in ends}
        theory = f"linear theory of {count} points, which need no resamples"
        fitted = replace(fitted, intervals=spans, resampling=theory)
    return PointsLawFit(**_fields(LawFit, fitted), table=used)


def _arms(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[str, ...]:
    """Return a note on a setting that the law does not have and that moves the loss."""
    cells = [frame[name].to_numpy() for name in columns]
    others = [name for name in map(str, frame) if name not in (*columns, *ROLES, "seed")]
    name = varied_setting(frame, cells, others)
    found = differing_losses(frame, cells, name) if name else None
    return (f"points of equal {', '.join(columns)} differ in {found}",) if found else ()


def _ends(*ends: float) -> tuple[float | None, float | None]:
    """Return an interval with None for an open end."""
    low, high = (float(end) if np.isfinite(end) else None for end in ends)
    return low, high


def _fields(kind: type, result: Any) -> dict[str, Any]:
    return {item.name: getattr(result, item.name) for item in fields(kind)}
