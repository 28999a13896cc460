"""A table of points from anywhere: its columns by role, in known units, and the rows that cannot be used.

Points have compute, params, tokens, recurrence or whatever else a law is of, and a loss. What is missing
follows from C = 6 N D. No row is dropped silently.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.format import number
from analysis.serialize import HIDDEN
from analysis.tables.schema import TableError
from analysis.tables.units import in_plain_units, in_printed_unit, loss_unit, named_scale

Axis = Literal["params", "tokens", "recurrence"]
# Columns of a table of points: those of the laws (analysis.laws.registry), the loss, its budget, its block.
ROLES = (
    "block",
    "budget",
    "compute",
    "depth",
    "flops",
    "loss",
    "loss_se",
    "mean_recurrence",
    "params",
    "params_looped",
    "params_once",
    "recurrence",
    "run_id",
    "score",
    "tokens",
    "tokens_per_param",
    "x",
)
LABELS = ("block", "budget", "run_id")  # roles that need not be numbers
MAY_BE_ZERO = ("params_looped",)
ANY_SIGN = ("score",)  # a score centred on chance
RUN_NAMES = ("run_id", "run_name", "run", "name", "Name", "id", "ID")
STATES = ("state", "State", "status", "Status")
UNFINISHED = ("crashed", "failed", "killed", "running", "pending", "preempted", "preempting")
LARGEST = 1e60  # beyond it no FLOPs, tokens or loss lie
OUT_OF_SCALE = 1000.0  # a loss as many times the median is no loss of a trained model
NAMED = 5  # rows named per reason in a summary


@dataclass(frozen=True, kw_only=True)
class LeftOutRows:
    """Rows that no law uses, and why."""

    reason: str
    rows: tuple[str, ...]

    def summary(self) -> str:
        """Return how many rows, why, and the first names."""
        return f"{len(self.rows)} left out, {self.reason}: {_listed(self.rows)}"


def _listed(rows: Sequence[str]) -> str:
    """Return the first names of some rows, and how many more there are."""
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"{', '.join(rows[:NAMED])}{more}"


@dataclass(frozen=True, kw_only=True)
class PointsTable:
    """Points with columns named by role, as numbers in their units; NaN where a cell holds none.

    `usable` picks the rows for a law. `axis` is what the column x holds, where the table or the user says so.
    """

    name: str
    frame: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)  # indexed by the rows' names
    axis: Axis | None
    unit: str  # of the loss, as printed
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOutRows, ...] = ()
    wrong: Mapping[str, pd.Series] = field(  # reasons by column and row
        default_factory=dict, repr=False, compare=False, metadata=HIDDEN
    )

    def summary(self) -> str:
        """Return the size of the table, what was converted and which rows are left out."""
        size = f"{len(self.frame)} points of {self.name} (loss in {self.unit})"
        return "\n".join([size, *self.remarks()])

    def remarks(self) -> tuple[str, ...]:
        """Return the notes and what was left out, one line each."""
        return *self.notes, *(rows.summary() for rows in self.left_out)

    def __str__(self) -> str:
        """Return the summary."""
        return self.summary()

    def usable(self, columns: Sequence[str]) -> PointsTable:
        """Return the points whose `columns` are usable, each distinct one once.

        Raises TableError where none is.
        """
        frame, left_out = self.frame, list(self.left_out)
        reasons = pd.Series(np.nan, index=frame.index, dtype=object)
        for column in columns:
            reasons = reasons.fillna(self._reasons(column))
        for reason, rows in reasons.dropna().groupby(reasons.dropna(), sort=True):
            left_out.append(LeftOutRows(reason=str(reason), rows=tuple(map(str, rows.index))))
        frame = frame[reasons.isna()]
        if frame.empty:
            why = "; ".join(rows.summary() for rows in left_out)
            raise TableError(f"none of {len(self.frame)} points of {self.name} can be used: {why}")
        same = [name for name in (*columns, "seed") if name in frame]
        again = frame.duplicated(same).to_numpy()
        notes = self.notes
        if again.any():
            names = _listed([str(name) for name in frame.index[again]])
            notes = *notes, f"{again.sum()} points repeat another one and count once: {names}"
        return replace(self, frame=frame[~again], left_out=tuple(left_out), notes=notes)

    def _reasons(self, column: str) -> pd.Series:
        """Return why a cell of a column cannot be used, by row."""
        values = self.frame[column]
        if column in LABELS:
            return pd.Series(f"without {column}", index=values.index[values.isna()], dtype=object)
        reasons = dict(self.wrong.get(column, pd.Series(dtype=object)))
        allowed = (values > 0) | ((column in MAY_BE_ZERO) & (values == 0)) | (column in ANY_SIGN)
        bad = ~(np.isfinite(values) & allowed)
        bad |= values.abs() > LARGEST
        for row, value in values[bad].items():
            seen = f"without {column}" if np.isnan(value) else f"{column} = {number(value)}"
            reasons.setdefault(row, f"{seen} is out of range" if value > 0 else seen)
        if column == "loss":
            high = OUT_OF_SCALE * values[~bad].median()
            for row, value in values[~bad & (values > high)].items():
                reasons[row] = (
                    f"loss = {number(value)}, {number(value / high * OUT_OF_SCALE)} times the median"
                )
        return pd.Series(reasons, dtype=object)


def points_table(
    frame: pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    *,
    where: str | None = None,
    x: Axis | None = None,
    unit: str | None = None,
    name: str = "the table",
) -> PointsTable:
    """Return a table with its columns named by role and its cells read as numbers.

    Parameters
    ----------
    columns : by role (see ROLES) the column of the table, or an expression of its columns such as "N * 1e6".
    where : rows to keep, as pandas' `DataFrame.query` takes it: "state == 'finished' and lr == 0.02".
    x : what the column x holds; None: as the column that it came from is named.
    unit : of the loss: nats, bits, bits_per_byte or perplexity; None: as the column is named.
    name : of the table, in messages.

    Raises
    ------
    TableError : a role, column, unit or filter is unknown, or no row is left.
    """
    columns = dict(columns or {})
    kept = filtered(frame, where, name)
    notes = () if where is None else (f"where={where}: {len(kept)} of {len(frame)} rows",)
    kept = kept.set_axis(_row_names(kept))
    kept, unfinished = _finished(kept)
    taken = {role: _column(kept, role, source, name) for role, source in columns.items()}
    axis = x or _axis(columns)
    loss = columns.get("loss", "loss")
    for role in ROLES:
        if role in kept and role not in taken and role not in columns.values():
            taken[role] = kept[role]
    numbers: dict[str, Any] = {}
    wrong: dict[str, pd.Series] = {}
    for role, values in taken.items():
        if role in LABELS:
            numbers[role] = values.astype("string")
            continue
        numbers[role], wrong[role] = _numbers(values, role)
        scale = named_scale(axis if role == "x" and axis else role, columns.get(role, role), numbers[role])
        if scale != 1:
            numbers[role] = numbers[role] * scale
            notes = *notes, f"{role}: column {columns.get(role, role)} was multiplied by {number(scale)}"
    if "x" in numbers and axis and axis not in columns:
        numbers[axis], wrong[axis] = numbers["x"], wrong["x"]
    numbers, more = in_plain_units(numbers)
    shown = loss_unit(loss, unit)
    if "loss" in numbers:
        numbers["loss"], printed, said = in_printed_unit(numbers["loss"], shown, loss)
        notes = *notes, *said
    else:
        printed = in_printed_unit(pd.Series(dtype=float), shown, loss)[1]
    rest = {str(c): kept[c] for c in kept if str(c) not in numbers and c not in columns.values()}
    return PointsTable(
        name=name,
        frame=pd.DataFrame({**numbers, **rest}, index=kept.index),
        axis=axis,
        unit=printed,
        notes=(*notes, *more),
        left_out=unfinished,
        wrong=wrong,
    )


def filtered(frame: pd.DataFrame, where: str | None, name: str = "the table") -> pd.DataFrame:
    """Return the rows for which the query `where` holds; raises TableError where it fails or leaves none."""
    if where is None:
        return frame
    try:
        kept = frame.query(where, engine="python")
    except Exception as error:  # whatever the expression raises is the user's to mend
        listed = ", ".join(map(str, frame.columns))
        raise TableError(f"where={where}: {str(error).splitlines()[0]} ({name} has {listed})") from error
    if not isinstance(kept, pd.DataFrame):  # of an expression that is no condition, such as a number
        raise TableError(f"where={where} chooses no rows: write a condition on columns, such as lr == 0.02")
    if kept.empty:
        raise TableError(f"where={where} leaves none of the {len(frame)} rows of {name}")
    return kept


def _column(frame: pd.DataFrame, role: str, source: str, name: str) -> pd.Series:
    if role not in ROLES:
        raise TableError(f"columns.{role} is unknown: choose from {', '.join(ROLES)}")
    if source in frame:
        return frame[source]
    failed = ""
    if any(sign in source for sign in "*/+-"):
        try:
            return pd.Series(frame.eval(source, engine="python"), index=frame.index)
        except Exception as error:  # whatever the expression raises is the user's to mend
            failed = f"; as an expression: {str(error).splitlines()[0]}"
    near = difflib.get_close_matches(source, list(map(str, frame.columns)), n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(map(str, frame.columns))}"
    raise TableError(f"columns.{role}={source}: {name} has no such column ({hint}{failed})")


def _axis(columns: Mapping[str, str]) -> Axis | None:
    """Return what is swept: the column that x came from names it, else the only size that is mapped."""
    source = columns.get("x", "").lower()
    if "token" in source or source in ("d", "d_opt"):
        return "tokens"
    if "recurrence" in source or source in ("mu", "µ", "r", "loops"):
        return "recurrence"
    if source:
        return "params"
    return next((axis for axis in ("recurrence", "params", "tokens") if axis in columns), None)


def _row_names(frame: pd.DataFrame) -> pd.Index[Any]:
    """Return the names of the runs where the table has distinct ones, else the rows' numbers."""
    for column in RUN_NAMES:
        if column in frame and frame[column].notna().all() and frame[column].is_unique:
            return pd.Index(frame[column].astype(str))
    if not frame.index.is_unique:
        return pd.Index([f"row {place + 1}" for place in range(len(frame))])
    if pd.api.types.is_integer_dtype(frame.index.dtype):
        return pd.Index([f"row {place + 1}" for place in frame.index])
    return pd.Index(frame.index.astype(str))


def _finished(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[LeftOutRows, ...]]:
    """Return the rows of runs that ended, and the others by their state."""
    column = next((name for name in STATES if name in frame), None)
    if column is None:
        return frame, ()
    states = frame[column].astype("string").str.lower().fillna("")
    out = states.isin(UNFINISHED) | states.str.startswith("failed:")
    left_out = tuple(
        LeftOutRows(reason=f"{column} {state}", rows=tuple(map(str, rows.index)))
        for state, rows in states[out].groupby(states[out], sort=True)
    )
    return frame[~out], left_out


def _numbers(values: pd.Series, role: str) -> tuple[pd.Series, pd.Series]:
    """Return a column as floats, NaN where it holds none, and those cells with what they hold."""
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    if numbers.isna().all() and len(numbers):
        # 1,000,000 in quotes
        numbers = pd.to_numeric(values.astype("string").str.replace(",", ""), errors="coerce").astype(float)
    held = values[numbers.isna() & values.notna()]
    text = held.map(lambda value: f"{role} = {str(value)[:40]!r} is no number")
    return numbers, text[held.astype("string").str.lower() != "nan"]
