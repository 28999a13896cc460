"""isoFLOP laws of a table of points: a CSV or DataFrame with a budget, one swept variable and a loss.

    fit = isoflop(read_points("points.csv", {"compute": "flops", "x": "params", "loss": "val_loss"}))
    fit.summary(); fit.predict(1e22); fit.to_json(); analysis.plot(fit, ax=ax)

The swept variable is the size, the tokens or the recurrence. FLOPs are counted as C = 6 N D where the table
has no token counts of its own. Other laws of such a table are in `points_laws`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from analysis import serialize
from analysis.config import FitConfig
from analysis.format import plural
from analysis.isoflop.curves import QUANTITY_NAMES
from analysis.isoflop.estimator import DEFAULT_ESTIMATOR
from analysis.isoflop.exponents import IsoflopResult
from analysis.isoflop.group import GroupFit
from analysis.isoflop.points import fit_points, isoflop_points, regrouped
from analysis.serialize import WHEN_SET
from analysis.study.holdout import Holdout, holdout
from analysis.study.points_envelope import PointsEnvelope, least_over
from analysis.study.sensitivity import Variant, sensitivity, variants_summary
from analysis.tables.budgets import Budgets
from analysis.tables.points import Axis, LeftOutRows, PointsTable, points_table
from analysis.tables.readers import read_source
from analysis.tables.schema import TableError
from analysis.tables.units import OWN_UNIT, implied, in_plausible_units

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, repr=False)
class IsoflopFit(IsoflopResult):
    """The laws of one table of points; the loss is in `unit`."""

    config: FitConfig
    points_digest: str
    unit: str
    budgets: Budgets
    notes: tuple[str, ...]  # what was converted, what contradicts, what counts once
    left_out: tuple[LeftOutRows, ...]
    envelope: PointsEnvelope | None = field(default=None, metadata=WHEN_SET)
    group: GroupFit
    validation: Holdout | None = None  # None: not asked for
    sensitivity: tuple[Variant, ...] | None = None

    def summary(self) -> str:
        """Return the fit as plain text."""
        count = len(self.group.budgets_flops)
        size = f"{plural(self.group.runs, 'point')} at {plural(count, 'budget')}"
        lines = [f"{size} (table {self.points_digest}), loss in {self.unit}", *self.remarks()]
        lines.append(self.group.summary())
        if self.validation is not None:
            lines += ["", self.validation.summary()]
        if self.sensitivity is not None:
            lines += ["", variants_summary(self.sensitivity)]
        return in_unit("\n".join(lines), self.unit)

    def remarks(self) -> list[str]:
        """Return how budgets were grouped, what was converted and what was left out, one line each."""
        rows = [item.summary() for item in self.left_out]
        floor = self.group.inputs.floor
        noise = [in_unit(floor.summary(), self.unit)] if floor.sd_nats is not None else []
        least = [in_unit(self.envelope.summary(), self.unit)] if self.envelope else []
        return [self.budgets.summary(), *noise, *least, *self.notes, *rows]

    def at_level(self, level: float) -> IsoflopFit:
        """Return the fit with its intervals at another level of confidence."""
        return replace(self, group=self.group.at_level(level))

    def fitted_groups(self) -> tuple[GroupFit, ...]:
        """Return the one group."""
        return (self.group,)

    def headlines(self) -> list[str]:
        """Return the laws, or the refusals with their reasons, one line per quantity."""
        return [
            in_unit(f"Optimal {QUANTITY_NAMES[quantity]}: {self.group.headline(quantity)}", self.unit)
            for quantity in self.group.quantities
        ]

    def predict(
        self, flops: float | np.ndarray[Any, Any], estimator: str = DEFAULT_ESTIMATOR
    ) -> pd.DataFrame:
        """Return optimal parameters and tokens at budgets of `flops`, and L* there (see `GroupFit.predict`).

        The column loss is in the table's unit.
        """
        optima = self.group.predict(flops, estimator)
        return optima.rename(columns=lambda name: name.replace("_nats", ""))

    def to_dict(self) -> dict[str, Any]:
        """Return the fit as JSON values."""
        return dict(keys_in_unit(serialize.to_jsonable(self), self.unit))

    def to_json(self) -> str:
        """Return the fit as JSON text, the same bytes for the same points and seed."""
        return serialize.to_json(self.to_dict())


def read_points(
    path: Path | str,
    columns: Mapping[str, str] | None = None,
    *,
    where: str | None = None,
    x: Axis | None = None,
    unit: str | None = None,
) -> PointsTable:
    """Read a CSV, a Parquet file or runs of wandb as points (see `points_table` for the arguments).

    Raises
    ------
    TableError : the source cannot be read, or lacks a mapped column.
    """
    frame = read_source(str(path), mapped=True)
    assert isinstance(frame, pd.DataFrame)
    return points_table(frame, columns, where=where, x=x, unit=unit, name=Path(path).name)


def _said_of_frames(function: Callable[P, T]) -> Callable[P, T]:
    """Let errors on a DataFrame speak of its columns and of functions, not of the command's options."""

    @functools.wraps(function)
    def called(*args: P.args, **options: P.kwargs) -> T:
        try:
            return function(*args, **options)
        except TableError as error:
            if isinstance([*args, *options.values()][0], PointsTable):
                raise
            text = re.sub(r"say (columns\.\w+=NAME ?)+", "rename columns of the frame ", str(error))
            text = re.sub(r"columns\.(\w+)=(NAME)?", r"a column \1", text)
            text = text.replace("law=surface", 'fit_law("surface", ...)')
            raise TableError(text) from error

    return called


@_said_of_frames
def isoflop(
    points: PointsTable | pd.DataFrame,
    *,
    x: Axis | None = None,
    budget_tolerance: float | None = None,
    envelope: Sequence[str] = (),
    config: FitConfig | None = None,
) -> IsoflopFit:
    """Fit all isoFLOP estimators to a table of points.

    Parameters
    ----------
    points : two of compute (FLOPs), params and tokens, and the loss; or compute, recurrence, the loss and
        params or tokens. `x` may stand for the swept one; `block` labels points that share their noise
        (resampling=block), `budget` those of one budget.
    x : what is swept; None: the table's own statement, else the size.
    budget_tolerance : largest relative distance of a point from the middle of its budget; None: budgets are
        found by the gaps between them.
    envelope : settings, such as a learning rate, over which the least loss is taken at each budget and size.

    Raises
    ------
    TableError : a column is missing, no row can be used, or the points make no isoFLOP curves.
    """
    config = config or FitConfig()
    table, axis = with_axis(points, x)
    used = _complete(table, axis)
    taken = None
    try:
        if envelope:
            used, taken = least_over(used, envelope, axis, budget_tolerance, config)
        prepared = isoflop_points(used, axis, budget_tolerance)
    except TableError as error:
        raise TableError("; ".join([str(error), *(item.summary() for item in used.left_out)])) from error
    group = fit_points(prepared, config)
    fitted = IsoflopFit(
        config=config,
        points_digest=prepared.digest,
        unit=used.unit,
        budgets=prepared.budgets,
        notes=(*used.notes, *prepared.notes),
        left_out=used.left_out,
        envelope=taken,
        group=group,
    )
    if not config.validation:
        return fitted

    def refit(other: FitConfig, without: tuple[str, ...]) -> tuple[GroupFit, ...]:
        kept = ~prepared.frame.index.isin(without)
        frame = prepared.frame[kept]
        budgets = regrouped(prepared.budgets, kept)
        return (fit_points(replace(prepared, frame=frame, budgets=budgets), other),)

    return replace(
        fitted,
        validation=holdout((group,), config),
        sensitivity=sensitivity((group,), refit, config, counts=False),
    )


def in_unit(text: str, unit: str) -> str:
    """Return a text about losses with their unit in place of nats."""
    return text if unit == "nats" else re.sub(r"\bnats\b", lambda _: unit, text)


def keys_in_unit(value: Any, unit: str) -> Any:
    """Return JSON values whose keys and texts name the unit: loss_nats becomes loss_bits_per_byte."""
    if unit == "nats":
        return value
    if isinstance(value, str):
        return in_unit(value, unit)
    if isinstance(value, dict):
        plain = OWN_UNIT + "its column" if unit.startswith(OWN_UNIT) else unit
        ending = "_" + plain.replace("/", "_per_").replace(" ", "_")
        return {re.sub("_nats$", ending, key): keys_in_unit(item, unit) for key, item in value.items()}
    return [keys_in_unit(item, unit) for item in value] if isinstance(value, list) else value


def with_axis(points: PointsTable | pd.DataFrame, x: Axis | None) -> tuple[PointsTable, Axis]:
    """Return points as a table, and what they sweep."""
    table = points if isinstance(points, PointsTable) else points_table(points, x=x)
    if x and table.axis and x != table.axis:
        raise TableError(f"x={x}, but {table.name} was read with x={table.axis}: read it with x={x}")
    sized = {"x", "params"} & set(table.frame.columns) or "tokens" not in table.frame
    return table, x or table.axis or ("params" if sized else "tokens")


def with_columns(table: PointsTable, columns: Sequence[str], axis: Axis) -> PointsTable:
    """Return the points that have usable `columns`, where they are in the table or follow from others."""
    frame = implied(table.frame, axis)
    missing = [name for name in columns if name not in frame]
    if missing:
        wanted = [name for name in missing if name == "compute"]
        if "compute" not in columns:  # a law names its own columns
            wanted = missing
        elif {"params", "tokens"} <= set(missing):
            wanted.append("tokens" if axis == "recurrence" else "x")
        wanted += [name for name in missing if name not in (*wanted, "params", "tokens", "x")]
        named = " ".join(f"columns.{name}=NAME" for name in wanted)
        present = ", ".join(map(str, table.frame.columns))
        raise TableError(f"points need {', '.join(wanted)}: say {named} (the table has {present})")
    derived = {"compute", "params", "tokens", "flops", "tokens_per_param"}
    checked = [name for name in columns if name in table.frame or name not in derived]
    if len(checked) < len(columns):  # some follow from others, whose cells name what is wrong
        sources = [name for name in ("compute", "flops", "x", "params", "tokens") if name in table.frame]
        checked = [*sources, *checked]
    return replace(table, frame=frame).usable([*dict.fromkeys([*checked, *columns])])


def _complete(table: PointsTable, axis: Axis) -> PointsTable:
    """Return the points usable for isoFLOP curves; raises TableError that names what to map."""
    columns = ["compute", "params", "tokens", "loss", *(["recurrence"] if axis == "recurrence" else [])]
    columns += [name for name in ("budget", "block") if name in table.frame]
    used = with_columns(table, columns, axis)
    names = {"compute": {"compute", "flops"}, "params": {"params"}, "tokens": {"tokens"}}
    names.get(axis, set()).add("x")
    stated = [name for name, columns_of in names.items() if columns_of & set(table.frame.columns)]
    frame, notes = in_plausible_units(used.frame, stated)
    return replace(used, frame=frame, notes=(*used.notes, *notes))
