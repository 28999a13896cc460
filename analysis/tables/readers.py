"""Readers of tables: a collected sweep, its CSV alone, a CSV of points, or Weights & Biases."""

from __future__ import annotations

import ast
import codecs
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables.schema import DEPTHS, ITEMS, RUNS, Column, TableError, conform, migrate
from analysis.tables.wandb_runs import flat

WANDB = "wandb:"
DELIMITERS = (",", ";", "\t", "|")
Tables = tuple[pd.DataFrame, pd.DataFrame]


def read_tables(folder: Path) -> Tables:
    """Read the runs and depths tables of a collected sweep: Parquet, or CSV where no Parquet was kept.

    Raises TableError when a table is absent, unreadable or of another schema.
    """
    return _read_collected(Path(folder), "runs", RUNS), _read_collected(Path(folder), "depths", DEPTHS)


def read_items(folder: Path) -> pd.DataFrame | None:
    """Read `items.parquet` of a collected sweep; None where no run was evaluated on tasks."""
    path = Path(folder) / "items.parquet"
    return conform(pd.read_parquet(path), ITEMS) if path.is_file() else None


def read_source(data: str, mapped: bool = False) -> Tables | pd.DataFrame:
    """Read `data`: a folder of collected tables, a CSV or Parquet file, wandb:ENTITY/PROJECT or wandb:FOLDER.

    Returns
    -------
    (runs, depths) where the table is a runs table and no columns are `mapped`, else the table as it is,
    nested columns dotted. A runs.csv takes the depths.csv beside it.

    Raises
    ------
    TableError : in one line, for whatever cannot be read.
    """
    if data.startswith(WANDB):
        from analysis.tables.wandb_runs import read_wandb

        frame = read_wandb(data.removeprefix(WANDB))
    elif Path(data).is_dir():
        return read_tables(Path(data))
    else:
        frame = flattened(_read_any(Path(data)))
    if frame.empty:
        raise TableError(f"{data} holds no row, only the columns {', '.join(map(str, frame.columns))}")
    runs = migrate(frame)
    if mapped or not {column.name for column in RUNS} <= set(runs.columns):
        return frame
    return _as_runs(runs, data)


def flattened(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose nested columns (mappings, or JSON objects as text) have dotted names."""
    parts: list[pd.Series | pd.DataFrame] = []
    for name in frame:
        values = frame[name]
        known = values.dropna()
        first = known.iloc[0] if len(known) and values.dtype in ("object", "string") else None
        if not isinstance(first, Mapping) and not (isinstance(first, str) and first.startswith("{")):
            parts.append(values)
            continue
        rows = [flat(_mapping(value), f"{name}.") for value in values]
        parts.append(pd.DataFrame(rows, index=frame.index))
    return pd.concat(parts, axis=1) if parts else frame


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a cell of a nested column; an empty one where it holds no object."""
    if isinstance(value, Mapping):
        return value
    for read in (json.loads, ast.literal_eval) if isinstance(value, str) else ():
        try:
            mapping = read(value)
        except (ValueError, SyntaxError):
            continue
        if isinstance(mapping, Mapping):
            return mapping
    return {}


def _read_collected(folder: Path, name: str, columns: tuple[Column, ...]) -> pd.DataFrame:
    files = [folder / f"{name}.parquet", folder / f"{name}.csv"]
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        if not folder.is_dir():
            raise TableError(
                f"no {name} table in {folder}, which does not exist{_collected_siblings(folder)}"
            )
        words = [f"sweep={folder.name}", *([] if str(folder.parent) == "runs" else [f"root={folder.parent}"])]
        raise TableError(
            f"no {name} table in {folder}{_collected_siblings(folder)}: "
            f"run loopscale collect {shlex.join(words)}"
        )
    frame = _read_any(path, columns)
    return conform(frame if path.suffix == ".parquet" else _filled(frame, columns), columns)


def _collected_siblings(folder: Path) -> str:
    """Name the collected sweeps that lie beside a folder without tables."""
    names = sorted({path.parent.name for path in folder.parent.glob("*/runs.*")})
    return f" (collected there: {', '.join(names)})" if names else ""


def _read_any(path: Path, columns: tuple[Column, ...] = RUNS) -> pd.DataFrame:
    """Read Parquet or CSV; text columns of `columns` stay text, as a digest of digits is no number."""
    if not path.is_file():
        raise TableError(f"no table at {path}")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        texts = dict.fromkeys(_texts(columns), "string")
        frame = pd.read_csv(path, dtype=texts, low_memory=False, **_dialect(path))
        return frame.rename(columns=str.strip)
    except (OSError, ValueError) as error:
        raise TableError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _dialect(path: Path) -> dict[str, Any]:
    """Return the encoding, the delimiter and the decimal sign of a CSV, as its first rows show them."""
    with path.open("rb") as start:
        encoding = "utf-16" if start.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    with path.open(encoding=encoding, errors="replace") as file:
        header, *rows = [file.readline() for _ in range(20)]
    delimiter = max(DELIMITERS, key=header.count)  # the first of equals: a comma
    comma = delimiter != "," and any(re.search(r"(?<![\d,])\d+,\d+(?![\d,])", row) for row in rows)
    return {
        "encoding": encoding,
        "sep": delimiter,
        "decimal": "," if comma else ".",
        "skipinitialspace": True,
    }


def _texts(columns: tuple[Column, ...]) -> list[str]:
    return [column.name for column in columns if column.kind == "string"]


def _filled(frame: pd.DataFrame, columns: tuple[Column, ...]) -> pd.DataFrame:
    """Return a table that was read from CSV, where an empty text reads as a missing value."""
    return frame.fillna(dict.fromkeys(_texts(columns), ""))


def _as_runs(frame: pd.DataFrame, data: str) -> Tables:
    """Return a runs table of any origin, and the depths table beside it or an empty one."""
    runs = _damaged_left_out(frame[[column.name for column in RUNS]])
    runs = runs.assign(**{name: runs[name].astype("string").fillna("") for name in _texts(RUNS)})
    beside = Path(data).parent / "depths.csv"
    if not data.startswith(WANDB) and beside.is_file():
        return conform(runs, RUNS), conform(_read_any(beside), DEPTHS)
    empty = pd.DataFrame({column.name: pd.Series(dtype=column.kind) for column in DEPTHS})
    return conform(runs, RUNS), conform(empty, DEPTHS)


def _damaged_left_out(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs with a state that says which cell holds no number: `select` leaves them out with it."""
    runs = runs.copy()
    for column in (column for column in RUNS if column.kind != "string"):
        values = pd.to_numeric(runs[column.name], errors="coerce")
        bad = values.isna() & (runs[column.name].notna() | (column.kind == "int64"))
        said = f"damaged: {column.name} = " + runs[column.name].astype(str)
        runs["status"] = runs["status"].mask(bad, said)
        runs[column.name] = values.where(~bad, 0 if column.kind == "int64" else np.nan)
    return runs
