"""The arms of a study: the values of one axis of the recipe, such as an injection or a learning rate."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.tables.schema import RUNS, TableError
from analysis.tables.selection import VARIANT, by_columns

Value = str | float
CELL_COLUMNS = ("kind", "mean_recurrence", "target_flops")  # of one group; the arms of a cell are compared
RECIPE = VARIANT[2:]  # what a scale and an accounting leave open


def axes(runs: pd.DataFrame) -> list[str]:
    """Return the axes along which cells of one scale and accounting were trained more than once.

    A column of the recipe (an injection, a learning rate) or a key within its text.
    """
    keys = sorted({key for text in runs["recipe"].unique() for key in _settings(str(text))})
    candidates = [name for name in RECIPE if name != "recipe"] + keys
    values = {name: axis_values(runs, name) for name in candidates}
    varied = {name: column for name, column in values.items() if column.nunique() > 1}
    if not varied:
        return []
    cell = by_columns(runs, ("scale", "accounting", *CELL_COLUMNS, "seed")).ngroup()
    return [name for name, column in varied.items() if (column.groupby(cell).nunique() > 1).any()]


def axis_values(runs: pd.DataFrame, axis: str) -> pd.Series:
    """Return every run's value of an axis: a column of the runs table, or a key of its recipe.

    Raises TableError for an axis that the table does not have.
    """
    column = column_of(axis)
    if column in runs:
        return runs[column]
    key = _key(runs, axis)
    of_recipe = {text: _settings(str(text)).get(key, "default") for text in runs["recipe"].unique()}
    values = runs["recipe"].map(of_recipe)
    if values.nunique() == 1 and values.iloc[0] == "default":
        listed = ", ".join(axes(runs)) or "none"
        raise TableError(
            f"arms={axis}: neither a column nor a setting of these runs; axes that vary: {listed}"
        )
    return values


def column_of(axis: str) -> str:
    """Return the column of a configuration's key: `model.injection` is `injection`."""
    last = axis.rpartition(".")[2]
    return last if last in {column.name for column in RUNS} else axis


def without_axis(runs: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Return runs whose recipe no longer tells the arms of an axis apart.

    The arms of `sweep` may differ in every setting: their recipes are left out of the comparison.
    """
    column = column_of(axis)
    if column == "sweep":
        return runs.assign(**{name: runs[name].iloc[0] for name in RECIPE})
    if column in runs:
        return runs.assign(**{column: runs[column].iloc[0]})
    key = _key(runs, axis)
    texts = [
        " ".join(f"{name}={value}" for name, value in _settings(str(text)).items() if name != key)
        for text in runs["recipe"]
    ]
    return runs.assign(recipe=texts)


def name_of(axis: str, value: Value) -> str:
    """Return an arm as `axis=value`."""
    return f"{axis}={value:g}" if isinstance(value, float | int) else f"{axis}={value}"


def _settings(recipe: str) -> dict[str, str]:
    return dict(item.split("=", 1) for item in recipe.split() if "=" in item)


def _key(runs: pd.DataFrame, axis: str) -> str:
    """Return the recipe's key that an axis names in full or by its last part."""
    keys: set[Any] = {key for text in runs["recipe"].unique() for key in _settings(str(text))}
    named = [key for key in keys if key == axis or key.rpartition(".")[2] == axis]
    return named[0] if len(named) == 1 else axis
