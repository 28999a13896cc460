"""Collect: the records of sweeps as one runs table and one depth table, Parquet and CSV."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.tables.schema import DEPTHS, ITEMS, RUNS, SCHEMA_VERSION, SCORES, Column, conform
from harness.evaluation.record import items_files, read_scores
from harness.run.folder import RunFolder
from model.config_validation import ConfigError
from sweeps.state.ledger import Ledger, read_ledger

if TYPE_CHECKING:
    import pandas as pd

Rows = list[dict[str, Any]]


def collect(folder: Path, also: Sequence[Path] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write and return the runs and depth tables of the sweep in `folder`, joined by those of `also`.

    Every run of a ledger has its row; the `status` column tells the unfinished and failed ones, whose
    results are missing. A folder of `also` may lack its run folders and hold collected tables alone. A run
    that several sweeps have appears once, where it is done. Runs collected before are not read again unless
    their record has changed. Files: runs.parquet, runs.csv, depths.parquet, depths.csv, and dictionary.csv,
    which explains every column; where runs were evaluated on tasks, scores.parquet, scores.csv and, item by
    item, items.parquet; `attrs["beside"]` of the runs table counts their rows.
    """
    import pandas as pd

    parts = [_tables(folder, folder), *(_tables(other, folder) for other in also)]
    runs = pd.concat([runs for runs, _ in parts], ignore_index=True)
    depths = pd.concat([depths for _, depths in parts], ignore_index=True)
    if also:
        best = runs.assign(undone=runs["status"] != "done").sort_values("undone", kind="stable")
        runs = runs.loc[sorted(best.drop_duplicates("run_id").index)].reset_index(drop=True)
        depths = depths.drop_duplicates(["run_id", "depth"], ignore_index=True)
    _write(folder, "runs", runs)
    _write(folder, "depths", depths)
    scores = pd.concat([_scores(one) for one in (folder, *also)], ignore_index=True)
    if len(scores):
        scores = scores.drop_duplicates(["run_id", "task", "depth"], ignore_index=True)
        _write(folder, "scores", scores)
    items = pd.concat([_items(one) for one in (folder, *also)], ignore_index=True)
    if len(items):
        items = items.drop_duplicates(["run_id", "suite", "task", "item"], ignore_index=True)
        items.to_parquet(folder / "items.parquet", index=False)
    runs.attrs["beside"] = {
        name: len(frame) for name, frame in (("scores", scores), ("items", items)) if len(frame)
    }
    dictionary = [
        {"table": name, "column": column.name, "type": column.kind, "meaning": column.meaning}
        for name, columns in (("runs", RUNS), ("depths", DEPTHS), ("scores", SCORES), ("items", ITEMS))
        for column in columns
    ]
    pd.DataFrame(dictionary).to_csv(folder / "dictionary.csv", index=False)
    return runs, depths


def _tables(folder: Path, target: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of one sweep, read anew where its tables are not newer than a run."""
    import pandas as pd

    found = _runs(folder)
    if not found:
        return _collected(folder)
    known = _known(folder) if folder == target else {}
    before = _collected(folder) if known else None
    runs: Rows = []
    depths: Rows = []
    kept: list[str] = []
    ids = []
    for run in found:
        ids.append(run.run_id)
        if (
            run.run_id in known
            and run.is_there()
            and (run.path / "record.json").stat().st_mtime_ns < known[run.run_id]
        ):
            kept.append(run.run_id)
            continue
        runs.append(_row(run))
        if runs[-1]["status"] == "done":
            depths.extend(json.loads(run.depth_curve.read_text()))
    runs_table, depths_table = _frame(runs, RUNS), _frame(depths, DEPTHS)
    if before is not None:
        runs_table = pd.concat([before[0][before[0]["run_id"].isin(kept)], runs_table])
        depths_table = pd.concat([before[1][before[1]["run_id"].isin(kept)], depths_table], ignore_index=True)
    runs_table = runs_table.set_index("run_id", drop=False).loc[pd.Index(ids)]
    taken = dict(zip(ids, runs_table["trunk_steps"], strict=True))
    if any(taken.values()) and (shares := trunk_shares(read_ledger(folder), folder, taken)):
        fresh = pd.Series(shares).reindex(runs_table.index)
        runs_table["trunk_share_flops"] = fresh.fillna(runs_table["trunk_share_flops"])
    return runs_table.reset_index(drop=True), depths_table


def trunk_shares(ledger: Ledger, folder: Path, trunk_steps: Mapping[str, int]) -> dict[str, float]:
    """Return, for every run that took steps over, its share of what its trunk's segments executed.

    What a segment cost is divided equally among all that have started from it, directly or further on, so
    that the runs' costs add up to what was executed. A run with a segment that was deleted is left out, also
    where that one is planned anew.
    """
    lineages = {run: ledger.lineage(run) for run in ledger.parents if trunk_steps[run]}
    users = Counter(name for lineage in lineages.values() for name in lineage)
    there = [segment for name in users if (segment := RunFolder(folder / name)).status().state == "done"]
    rows = {segment.run_id: segment.record() for segment in there}
    costs = {name: row["executed_flops"] - row["trunk_flops"] for name, row in rows.items()}
    return {
        run: sum(costs[name] / users[name] for name in lineage)
        for run, lineage in lineages.items()
        if costs.keys() >= set(lineage)
    }


def _scores(folder: Path) -> pd.DataFrame:
    """Return what the runs of one sweep scored on tasks, from their folders or from its collected table."""
    import pandas as pd

    if runs := _runs(folder):
        return _frame((row for run in runs for row in read_scores(run)), SCORES)
    path = folder / "scores.parquet"
    return conform(pd.read_parquet(path), SCORES) if path.exists() else _frame([], SCORES)


def _items(folder: Path) -> pd.DataFrame:
    """Return what the runs of one sweep answered, item by item, from their folders or its collected table."""
    import pandas as pd

    paths = [folder / "items.parquet"] if (folder / "items.parquet").exists() else []
    if runs := _runs(folder):
        paths = [path for run in runs for path in items_files(run)]
    frames = [conform(pd.read_parquet(path), ITEMS) for path in paths]
    return pd.concat(frames, ignore_index=True) if frames else _frame([], ITEMS)


def _known(folder: Path) -> dict[str, int]:
    """Return the finished runs of the tables in `folder`, with the time that those were written."""
    import pandas as pd

    path = folder / "runs.parquet"
    if not (path.exists() and (folder / "depths.parquet").exists()):
        return {}
    written = path.stat().st_mtime_ns
    frame = pd.read_parquet(path)
    if "schema_version" not in frame or not (frame["schema_version"] == SCHEMA_VERSION).all():
        return {}
    done = frame[(frame["status"] == "done") & (frame["sweep"] == folder.name)]
    return dict.fromkeys(done["run_id"], written)


def _runs(folder: Path) -> list[RunFolder]:
    """Return the runs of a sweep's ledger, of a folder without one those that lie there."""
    if (folder / "sweep.json").exists():
        return read_ledger(folder).runs(folder)
    return [RunFolder(path.parent) for path in sorted(folder.glob("*/identity.json"))]


def _collected(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    import pandas as pd

    if not (folder / "runs.parquet").exists():
        raise ConfigError(
            f"{folder} is no sweep: it holds no sweep.json, no run and no collected runs.parquet"
        )
    runs = conform(pd.read_parquet(folder / "runs.parquet"), RUNS)
    return runs, conform(pd.read_parquet(folder / "depths.parquet"), DEPTHS)


def _row(run: RunFolder) -> dict[str, Any]:
    state = run.status()
    return run.record() | {"status": str(state), "attempts": state.attempts}


def _frame(rows: Iterable[dict[str, Any]], columns: tuple[Column, ...]) -> pd.DataFrame:
    import pandas as pd

    rows = list(rows)
    return conform(pd.DataFrame(rows, columns=None if rows else [c.name for c in columns]), columns)


def _write(folder: Path, name: str, frame: pd.DataFrame) -> None:
    for suffix, write in ((".parquet", frame.to_parquet), (".csv", frame.to_csv)):
        temporary = folder / f".{name}{suffix}"
        write(temporary, index=False)
        temporary.replace(folder / f"{name}{suffix}")
