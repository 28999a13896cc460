"""What an evaluation leaves in a run's folder: rows of the scores and items tables, and Core in its record.

Imports no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluation.bundle import data_digest
from harness.evaluation.results import TaskResult
from harness.evaluation.scores import Score, chance_level
from harness.run.folder import RunFolder
from harness.storage.files import read_json, write_json
from harness.storage.locks import exclusive

FOLDER, SCORES = "evaluation", "scores.json"
IN_RECORD = ("core", "core_extended")  # suites whose score is a column of the runs table


def keep_scores(run: RunFolder, scores: Iterable[Score]) -> None:
    """Enter scores on all items into a finished run's scores.json, and Core into its record.

    A run that has not ended keeps none: its weights still change.
    """
    if run.status().state != "done":
        return
    fresh = {(score.task, score.depth): score for score in scores}  # suites share tasks: each is kept once
    own = run.config().model.own_depth
    columns: dict[str, Any] = {}
    for (task, depth), score in fresh.items():
        if task in IN_RECORD and depth == own:
            columns |= {task: score.centred, f"{task}_tasks": int(score.tasks.split()[0])}
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    with exclusive(folder / "scores.lock", wait=True):
        rows = [row for row in read_scores(run) if (row["task"], row["depth"]) not in fresh]
        rows += [_plain({"run_id": run.run_id} | score.row()) for score in fresh.values()]
        write_json(folder / SCORES, {"rows": rows})
        if columns:
            run.set_record(run.record() | columns)


def keep_items(run: RunFolder, suite: str, results: Sequence[Sequence[TaskResult]], bundle: Path) -> None:
    """Keep a finished run's answers on a suite's items at T = mean recurrence, where that was evaluated.

    `results` holds each task's results, one per few-shot seed.
    """
    import pandas as pd

    depth = run.config().model.own_depth
    if run.status().state != "done" or depth not in results[0][0].depths:
        return
    frames = []
    for seeds in results:
        first = seeds[0]
        at = first.depths.index(depth)
        chance = chance_level(first.options)
        frames.append(
            pd.DataFrame(
                {
                    "run_id": run.run_id,
                    "suite": suite,
                    "task": first.task.label,
                    "item": range(len(first.options)),
                    "data_digest": data_digest(bundle, first.task),
                    "baseline": chance if first.task.baseline is None else first.task.baseline,
                    "correct": np.mean([result.correct[at] for result in seeds], axis=0),
                }
            )
        )
    path = run.path / FOLDER / f"items-{suite}.parquet"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}")
    pd.concat(frames, ignore_index=True).to_parquet(partial, index=False)
    partial.replace(path)


def items_files(run: RunFolder) -> list[Path]:
    """Return the files of the run's rows of the items table, one per suite."""
    return sorted((run.path / FOLDER).glob("items-*.parquet"))


def read_scores(run: RunFolder) -> list[dict[str, Any]]:
    """Return the run's rows of the scores table; none where it has not been evaluated on tasks."""
    path = run.path / FOLDER / SCORES
    return list(read_json(path)["rows"]) if path.exists() else []


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row as JSON can hold it; what is not a number is None."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
