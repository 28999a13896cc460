"""Where tables come from: a collected sweep, its CSV alone, anybody's CSV of points, or wandb."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.laws.registry import LAWS
from analysis.tables.schema import DEPTHS, RUNS, TableError, conform
from analysis.tables.selection import read_tables
from analysis.tables.wandb_runs import read_wandb

WANDB = "wandb:"
ROLES = {"loss", "compute", "block"}.union(*(law.columns for law in LAWS.values()))
TEXT = [column.name for column in RUNS if column.kind == "string"]  # a digest of digits is no number
Tables = tuple[pd.DataFrame, pd.DataFrame]


def read_source(data: str, columns: Mapping[str, str] | None = None) -> Tables | pd.DataFrame:
    """Read `data`: a folder of collected tables, a CSV, or wandb:ENTITY/PROJECT or wandb:FOLDER.

    Returns (runs, depths) where the table is a runs table and no columns are mapped, else the points with
    `columns` mapped. A runs.csv takes the depths.csv beside it. Raises TableError, in one line, for whatever
    cannot be read.
    """
    if data.startswith(WANDB):
        frame, name = read_wandb(data.removeprefix(WANDB)), data
    elif Path(data).is_dir():
        return read_tables(Path(data))
    else:
        frame, name = _read_csv(Path(data)), Path(data).name
    if columns or not {column.name for column in RUNS} <= set(frame.columns):
        return rename(frame, columns or {}, name)
    return _as_runs(frame, data)


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise TableError(f"no table at {path}")
    try:
        return (
            pd.read_parquet(path)
            if path.suffix == ".parquet"
            else pd.read_csv(path, dtype=dict.fromkeys(TEXT, "string"))
        )
    except (OSError, ValueError) as error:
        raise TableError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _as_runs(frame: pd.DataFrame, data: str) -> Tables:
    """Conform a runs table that came as text, where an empty string reads as a missing value."""
    runs = frame[[column.name for column in RUNS]]
    runs = runs.assign(**{name: runs[name].astype("string").fillna("") for name in TEXT})
    beside = Path(data).parent / "depths.csv"
    if not data.startswith(WANDB) and beside.is_file():
        return conform(runs, RUNS), conform(_read_csv(beside), DEPTHS)
    empty = pd.DataFrame({column.name: pd.Series(dtype=column.kind) for column in DEPTHS})
    return conform(runs, RUNS), conform(empty, DEPTHS)


def rename(frame: pd.DataFrame, columns: Mapping[str, str], name: str) -> pd.DataFrame:
    """Return `frame` with the mapped columns under this room's names, the others as they are.

    Raises TableError for a role that no law knows, a column that the table does not have or a mapped value
    that is no number.
    """
    for target in columns:
        if target not in ROLES:
            raise TableError(f"columns.{target} is unknown: choose from {', '.join(sorted(ROLES))}")
    listed = ", ".join(map(str, frame.columns))
    for target, source in columns.items():
        if source not in frame:
            near = difflib.get_close_matches(source, list(frame.columns), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {listed}"
            raise TableError(f"columns.{target}={source}: {name} has no such column ({hint})")
    for target, source in columns.items():
        numbers = pd.to_numeric(frame[source], errors="coerce")
        wrong = numbers.isna()
        if wrong.any() and target != "block":
            row = int(wrong.to_numpy().argmax())
            value = frame[source].iloc[row]
            raise TableError(
                f"column {source} of {name} holds {value!r} (row {row + 1}): it must be a number"
            )
    mapped = {target: frame[source] for target, source in columns.items()}
    kept = {str(c): frame[c] for c in frame if str(c) not in mapped and c not in columns.values()}
    return pd.DataFrame({**mapped, **kept})
