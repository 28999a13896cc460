"""Results as text, HTML, LaTeX and JSON: the same bytes for the same result."""

from __future__ import annotations

import dataclasses
import html
import importlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic_core import to_jsonable_python

from analysis.format import number, span

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

DIGITS = 6  # significant digits kept of what is no whole number; the eighth depends on the processor
REPR_LINES = 29  # longer summaries are cut in a repr
HIDDEN: dict[str, Any] = {"json": False}  # metadata of dataclass fields that are left out of the JSON
WHEN_SET: dict[str, Any] = {"json": "when set"}  # of those that are left out where they are empty


def to_jsonable(value: Any) -> Any:
    """Return dataclasses, mappings, sequences and arrays as JSON values; NaN and infinities become None.

    Raises PydanticSerializationError (a ValueError) for an object that has no JSON form.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [
            item
            for item in dataclasses.fields(value)
            if (rule := item.metadata.get("json", True)) is True or (rule and getattr(value, item.name))
        ]
        return {item.name: to_jsonable(getattr(value, item.name)) for item in shown}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [to_jsonable(item) for item in value]
    if isinstance(value, float):
        return rounded(value) if math.isfinite(value) else None
    return to_jsonable_python(value)


def rounded(value: float) -> float:
    """Return a number with `DIGITS` significant digits; a whole number, which is a count, as it is."""
    return value if value.is_integer() and abs(value) < 1e15 else float(f"{value:.{DIGITS}g}")


def estimates_frame(keys: Sequence[str], rows: Iterable[Sequence[object]]) -> pd.DataFrame:
    """Return numbers by `keys` as a `Result` shows them: value, low, high and refusal.

    `rows` hold the keys and these four; an end or value of None is NaN, a refusal of None is empty.
    """
    import pandas as pd

    names = [*keys, "value", "low", "high", "refusal"]
    frame = pd.DataFrame(list(rows), columns=names).astype(dict.fromkeys(("value", "low", "high"), float))
    return frame.fillna({"refusal": ""}).set_index(list(keys))


def to_json(value: Any) -> str:
    """Return indented JSON."""
    return json.dumps(to_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False)


class Printed:
    """A result that prints itself by its `summary`, in a notebook too."""

    def summary(self) -> str:
        """Return the result as plain text."""
        raise NotImplementedError

    def __repr__(self) -> str:
        lines = self.summary().split("\n")
        if len(lines) > REPR_LINES:
            lines = [*lines[: REPR_LINES - 1], f"... {len(lines) - REPR_LINES + 1} more lines: summary()"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the summary for a notebook, its columns aligned."""
        return f"<pre>{html.escape(self.summary())}</pre>"


class Result(Printed):
    """A result that has its numbers as a frame and a plot as well; a subclass has `to_frame`."""

    def to_frame(self) -> pd.DataFrame:
        """Return the result's numbers as a frame, one row per number: value, low, high and what is said."""
        raise NotImplementedError

    @property
    def params(self) -> pd.DataFrame:
        """Return `to_frame`."""
        return self.to_frame()

    def at_level(self, level: float) -> Result:
        """Return the result with its intervals at another level of confidence."""
        raise NotImplementedError

    def conf_int(self, level: float | None = None) -> pd.DataFrame:
        """Return the intervals (low, high) of `to_frame`, at the level of the fit or at another one."""
        shown = self if level is None else self.at_level(level)
        return shown.to_frame()[["low", "high"]]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the result on a matplotlib axis and return it (see `analysis.plot`)."""
        # Figures import results; the result reaches them through the front door only.
        return importlib.import_module("analysis").plot(self, ax)

    def headline(self) -> str:
        """Return the first line of the summary."""
        return self.summary().split("\n", 1)[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return dict(to_jsonable(self))

    def to_json(self) -> str:
        """Return the result as JSON text, the same bytes for the same data and seed."""
        return to_json(self)

    def to_latex(self) -> str:
        """Return `to_frame` as a LaTeX table (it needs the package booktabs)."""
        frame = self.to_frame().reset_index()
        rows = [map(_latex, map(str, frame.columns))]
        rows += [map(_latex, map(_cell, row)) for row in frame.itertuples(index=False)]
        head, *body = (" & ".join(row) + r" \\" for row in rows)
        ends = rf"\begin{{tabular}}{{{'l' * frame.shape[1]}}}", r"\end{tabular}"
        return "\n".join([ends[0], r"\toprule", head, r"\midrule", *body, r"\bottomrule", ends[1]])

    def _repr_html_(self) -> str:
        """Return the headline and `to_frame` for a notebook."""
        frame = _shown(self.to_frame())
        head = f'<p style="max-width: 60em">{html.escape(self.headline())}</p>'
        table = frame.to_html(border=0, justify="left", classes="dataframe")
        table = table.replace(
            "<td>", '<td style="text-align: left; white-space: normal; padding: 0 0.8em 0 0">'
        )
        return f'<div style="overflow-x: auto">{head}\n{table}</div>'


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame as text for reading: intervals in brackets, a reason in place of what has no value."""
    ends = frame[["low", "high"]].to_numpy(float)
    values, errors = (
        frame["value"].to_numpy(float),
        frame.get("standard_error", frame["value"]).to_numpy(float),
    )
    reasons = [
        str(why) if isinstance(why, str) else ""
        for why in frame.get("identified", frame.get("refusal", [""] * len(frame)))
    ]
    shown = frame[[]].copy()
    missing = "not identified" if "identified" in frame else "refused"
    shown["value"] = [missing if why else _cell(value) for value, why in zip(values, reasons, strict=True)]
    shown["interval"] = [
        "" if why or np.isnan([low, high]).all() else span(_end(low), _end(high), 4)
        for (low, high), why in zip(ends.tolist(), reasons, strict=True)
    ]
    if "standard_error" in frame:
        shown["standard error"] = [
            "" if why or not np.isfinite(error) else number(error, 2)
            for error, why in zip(errors.tolist(), reasons, strict=True)
        ]
    own = ["value", "low", "high", "standard_error", "identified", "refusal"]
    for name in frame.columns.difference(own, sort=False):
        shown[name] = [_cell(value) for value in frame[name]]
    unbroken = shown.map(lambda text: text.replace(" ", "\N{NO-BREAK SPACE}"))
    return unbroken.assign(remark=reasons) if any(reasons) else unbroken


def _end(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cell(value: Any) -> str:
    """Return a value as text: six digits, a missing one empty."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if math.isnan(value) else number(value, 6)
    return str(value)


def _latex(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, rf"\{character}")
    return text
