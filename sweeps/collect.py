"""Collect: the records of a sweep as one runs table and one depth table, Parquet and CSV."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.schema import DEPTHS, RUNS, Column, conform
from harness.runfolder import RunFolder
from sweeps.ledger import read_ledger

if TYPE_CHECKING:
    import pandas as pd


def collect(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write and return the runs and depth tables of the sweep in `folder`.

    Every run of the ledger has its row; the `status` column tells the unfinished and failed ones, whose
    results are missing. Files: runs.parquet, runs.csv, depths.parquet, depths.csv.
    """
    runs, depths = [], []
    for run in read_ledger(folder).runs(folder):
        runs.append(_row(run))
        if runs[-1]["status"] == "done":
            depths.extend(json.loads(run.depth_curve.read_text()))
    return _write(folder, "runs", runs, RUNS), _write(folder, "depths", depths, DEPTHS)


def _row(run: RunFolder) -> dict[str, Any]:
    state = run.status()
    return run.record() | {"status": str(state), "attempts": state.attempts}


def _write(folder: Path, name: str, rows: list[dict[str, Any]], columns: tuple[Column, ...]) -> pd.DataFrame:
    import pandas as pd

    frame = conform(pd.DataFrame(rows, columns=None if rows else [c.name for c in columns]), columns)
    for suffix, write in ((".parquet", frame.to_parquet), (".csv", frame.to_csv)):
        temporary = folder / f".{name}{suffix}"
        write(temporary, index=False)
        temporary.replace(folder / f"{name}{suffix}")
    return frame
