"""Readers of tables: a collected sweep, its CSV alone, a CSV of points, or Weights & Biases."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.tables.schema import DEPTHS, ITEMS, RUNS, Column, TableError, conform, migrate

WANDB = "wandb:"
# Columns of a table of points: those of the laws (analysis.laws.registry), the loss, its budget, its block.
ROLES = (
    "block",
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
    "tokens",
    "tokens_per_param",
    "x",
)
LABELS = ("block", "run_id")  # roles whose values need not be numbers
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


def read_source(data: str, columns: Mapping[str, str] | None = None) -> Tables | pd.DataFrame:
    """Read `data`: a folder of collected tables, a CSV, or wandb:ENTITY/PROJECT or wandb:FOLDER.

    Returns
    -------
    (runs, depths) where the table is a runs table and no columns are mapped, else the points with `columns`
    mapped. A runs.csv takes the depths.csv beside it.

    Raises
    ------
    TableError : in one line, for whatever cannot be read.
    """
    if data.startswith(WANDB):
        from analysis.tables.wandb_runs import read_wandb

        frame, name = read_wandb(data.removeprefix(WANDB)), data
    elif Path(data).is_dir():
        return read_tables(Path(data))
    else:
        frame, name = _read_any(Path(data)), Path(data).name
    runs = migrate(frame)
    if columns or not {column.name for column in RUNS} <= set(runs.columns):
        return rename(frame, columns or {}, name)
    return _as_runs(runs, data)


def rename(frame: pd.DataFrame, columns: Mapping[str, str], name: str) -> pd.DataFrame:
    """Return `frame` with its columns renamed to their roles; unmapped columns stay as they are.

    `columns` maps a role to a column of the table, `name` is the table's in messages. Raises TableError for
    an unknown role, a column that the table does not have or a mapped value that is no number.
    """
    for role in columns:
        if role not in ROLES:
            raise TableError(f"columns.{role} is unknown: choose from {', '.join(ROLES)}")
    listed = ", ".join(map(str, frame.columns))
    for role, source in columns.items():
        if source not in frame:
            near = difflib.get_close_matches(source, list(frame.columns), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {listed}"
            raise TableError(f"columns.{role}={source}: {name} has no such column ({hint})")
    for role, source in columns.items():
        wrong = pd.to_numeric(frame[source], errors="coerce").isna()
        if wrong.any() and role not in LABELS:
            row = int(wrong.to_numpy().argmax())
            value = frame[source].iloc[row]
            raise TableError(
                f"column {source} of {name} holds {value!r} (row {row + 1}): it must be a number"
            )
    mapped = {role: frame[source] for role, source in columns.items()}
    kept = {str(c): frame[c] for c in frame if str(c) not in mapped and c not in columns.values()}
    return pd.DataFrame({**mapped, **kept})


def _read_collected(folder: Path, name: str, columns: tuple[Column, ...]) -> pd.DataFrame:
    files = [folder / f"{name}.parquet", folder / f"{name}.csv"]
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        raise TableError(
            f"no {name} table in {folder}{_collected_siblings(folder)}: run loopscale collect sweep=NAME"
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
        return pd.read_csv(path, dtype=dict.fromkeys(_texts(columns), "string"))
    except (OSError, ValueError) as error:
        raise TableError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _texts(columns: tuple[Column, ...]) -> list[str]:
    return [column.name for column in columns if column.kind == "string"]


def _filled(frame: pd.DataFrame, columns: tuple[Column, ...]) -> pd.DataFrame:
    """Return a table that was read from CSV, where an empty text reads as a missing value."""
    return frame.fillna(dict.fromkeys(_texts(columns), ""))


def _as_runs(frame: pd.DataFrame, data: str) -> Tables:
    """Return a runs table of any origin, and the depths table beside it or an empty one."""
    runs = frame[[column.name for column in RUNS]]
    runs = runs.assign(**{name: runs[name].astype("string").fillna("") for name in _texts(RUNS)})
    beside = Path(data).parent / "depths.csv"
    if not data.startswith(WANDB) and beside.is_file():
        return conform(runs, RUNS), conform(_read_any(beside), DEPTHS)
    empty = pd.DataFrame({column.name: pd.Series(dtype=column.kind) for column in DEPTHS})
    return conform(runs, RUNS), conform(empty, DEPTHS)
