"""The records of sweeps as one table of runs, one of depths and one of task scores, in Parquet and CSV."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.tables.schema import DEPTHS, ITEMS, RUNS, SCHEMA_VERSION, SCORES, Column, conform
from harness.evaluation.scores import items_files, read_scores
from harness.run.folder import RunFolder
from harness.storage.files import new_file, read_json, read_text, write_json
from model.config_validation import ConfigError
from sweeps.state.ledger import Ledger, no_sweep, read_ledger

if TYPE_CHECKING:
    import pandas as pd

Rows = list[dict[str, Any]]
STAMPS = ".collected.json"  # what the tables were read from


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The tables of a sweep; those of task scores and of answers, item by item, may be empty."""

    runs: pd.DataFrame
    depths: pd.DataFrame
    scores: pd.DataFrame
    items: pd.DataFrame

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows of each table that was written, by its name."""
        counts = {name: len(table) for name, table in vars(self).items()}
        return {name: count for name, count in counts.items() if count or name in ("runs", "depths")}


def collect(folder: Path, also: Sequence[Path] = ()) -> Collected:
    """Write and return the tables of the sweep in `folder`, joined by those of `also`.

    Parameters
    ----------
    also : folders of other sweeps; each may lack its run folders and hold only collected tables.

    Notes
    -----
    Every run of a ledger has its row; the column `status` shows the unfinished and failed ones, whose results
    are missing. A run that several sweeps have appears once, from the sweep in which it is done. A run that
    was collected before is read again only if its record has changed.

    Files: runs and depths (.parquet and .csv), and dictionary.csv, which explains every column. If runs were
    evaluated on tasks, scores (.parquet and .csv) and items.parquet as well.
    """
    import pandas as pd

    stamps = {run.run_id: _stamp(run.path / "record.json") for run in _runs(folder)}  # before they are read
    parts = [_tables(folder, folder), *(_tables(other, folder) for other in also)]
    runs = pd.concat([runs for runs, _ in parts], ignore_index=True)
    depths = pd.concat([depths for _, depths in parts], ignore_index=True)
    if also:
        best = runs.assign(undone=runs["status"] != "done").sort_values("undone", kind="stable")
        runs = runs.loc[sorted(best.drop_duplicates("run_id").index)].reset_index(drop=True)
        depths = depths.drop_duplicates(["run_id", "depth"], ignore_index=True)
    _write(folder, "runs", runs)
    _write(folder, "depths", depths)
    done = set(runs.loc[runs["status"] == "done", "run_id"])
    kept = {run_id: stamp for run_id, stamp in stamps.items() if run_id in done}
    write_json(folder / STAMPS, {"tables": _stamp(folder / "runs.parquet"), "records": kept})
    scores = pd.concat([_scores(one) for one in (folder, *also)], ignore_index=True)
    if len(scores):
        scores = scores.drop_duplicates(["run_id", "task", "depth"], ignore_index=True)
        _write(folder, "scores", scores)
    items = pd.concat([_items(one) for one in (folder, *also)], ignore_index=True)
    if len(items):
        items = items.drop_duplicates(["run_id", "suite", "task", "item"], ignore_index=True)
        with new_file(folder / "items.parquet") as temporary:
            items.to_parquet(temporary, index=False)
    dictionary = [
        {"table": name, "column": column.name, "type": column.kind, "meaning": column.meaning}
        for name, columns in (("runs", RUNS), ("depths", DEPTHS), ("scores", SCORES), ("items", ITEMS))
        for column in columns
    ]
    with new_file(folder / "dictionary.csv") as temporary:
        pd.DataFrame(dictionary).to_csv(temporary, index=False)
    return Collected(runs=runs, depths=depths, scores=scores, items=items)


def _tables(folder: Path, target: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs and depths of one sweep; a run in the target's tables is read again if it changed."""
    import pandas as pd

    folders = _runs(folder)
    if not folders:
        return _collected(folder)
    known = _known(folder) if folder == target else {}
    before = _collected(folder) if known else None
    runs: Rows = []
    depths: Rows = []
    kept: list[str] = []
    ids = []
    for run in folders:
        if run.run_id in known and _stamp(run.path / "record.json") == known[run.run_id]:
            kept.append(run.run_id)
            ids.append(run.run_id)
            continue
        try:
            row = _row(run)
            curve = json.loads(read_text(run.depth_curve)) if row["status"] == "done" else []
            _check_types([row], RUNS, "record.json")
            _check_types(curve, DEPTHS, run.depth_curve.name)
        except (ValueError, FileNotFoundError, RecursionError) as error:
            warnings.warn(f"{run.run_id} is left out, it cannot be read: {error}", stacklevel=4)
            continue
        runs.append(row)
        depths.extend(curve)
        ids.append(run.run_id)
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


def _check_types(rows: Any, columns: tuple[Column, ...], name: str) -> None:
    """Raise ConfigError naming the file and the field if a value of a run is not of its column's type."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{name} is damaged: it holds no rows")
    known = {column.name for column in columns}
    for row in rows:
        if unknown := row.keys() - known:
            raise ConfigError(f"{name} has the unknown field {min(unknown)[:60]!r}")
        for column in columns:
            value, kind = row.get(column.name), str if column.kind == "string" else int | float
            if value is not None and not isinstance(value, kind):
                raise ConfigError(f"{name}: {column.name}={value!r} does not fit its column")


def trunk_shares(ledger: Ledger, folder: Path, trunk_steps: Mapping[str, int]) -> dict[str, float]:
    """Return each branched run's share of the FLOPs that its trunk's segments executed.

    The cost of a segment is divided equally among all runs that have started from it, directly or through
    further segments: the runs' costs add up to what was executed. A run with a deleted segment is left out,
    even if the segment is planned again.
    """
    lineages = {run: ledger.lineage(run) for run in ledger.parents if trunk_steps.get(run, 1)}
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


def _stamp(path: Path) -> list[int]:
    """Return what changes whenever a file is replaced, [] without the file. Clocks of nodes may differ."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return []
    return [found.st_mtime_ns, found.st_size, found.st_ino]


def _known(folder: Path) -> dict[str, list[int]]:
    """Return the stamps of the records that the tables in `folder` were read from, {} if they cannot serve.

    Tables of another version, torn ones and those of another process are not read again.
    """
    import pandas as pd

    try:
        stamps = read_json(folder / STAMPS)
        if stamps["tables"] != _stamp(folder / "runs.parquet"):
            return {}
        versions = pd.read_parquet(folder / "runs.parquet", columns=["schema_version"])["schema_version"]
        pd.read_parquet(folder / "depths.parquet", columns=["run_id"])
    except (FileNotFoundError, KeyError, ValueError, OSError):  # of pyarrow, ArrowInvalid is a ValueError
        return {}
    return dict(stamps["records"]) if (versions == SCHEMA_VERSION).all() else {}


def _runs(folder: Path) -> list[RunFolder]:
    """Return the runs of a sweep's ledger; in a folder without a ledger, the run folders in it."""
    if (folder / "sweep.json").exists():
        return read_ledger(folder).runs(folder)
    return [RunFolder(path.parent) for path in sorted(folder.glob("*/identity.json"))]


def _collected(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    import pandas as pd

    if not folder.exists():
        raise ConfigError(no_sweep(folder))
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
        with new_file(folder / f"{name}{suffix}") as temporary:  # several may collect at once
            write(temporary, index=False)


def gaps(frame: pd.DataFrame) -> str:
    """Return the runs that are not done as text, at most five of them by name."""
    missing = frame.loc[frame["status"] != "done", ["run_id", "status"]]
    if missing.empty:
        return "all runs done"
    named = ", ".join(f"{row.run_id} ({row.status})" for row in missing.head(5).itertuples())
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return f"{len(missing)} of {len(frame)} runs are not done: {named}{more}"
