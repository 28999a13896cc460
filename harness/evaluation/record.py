"""What an evaluation leaves in a run's folder: rows of the scores and items tables, and Core in its record.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluation.bundle import data_digest
from harness.evaluation.results import TaskResult
from harness.evaluation.scores import Score, chance_level
from harness.files import read_json, write_json
from harness.runfolder import RunFolder

FOLDER, SCORES = "evaluation", "scores.json"
IN_RECORD = ("core", "core_extended")  # suites whose score is a column of the runs table


def keep_scores(run: RunFolder, scores: Iterable[Score]) -> None:
    """Enter scores on all items into a finished run's scores.json, and Core into its record.

    A run that has not ended keeps none: its weights still change.
    """
    if run.status().state != "done":
        return
    fresh = list(scores)
    path = run.path / FOLDER / SCORES
    replaced = {(score.task, score.depth) for score in fresh}
    rows = [row for row in read_scores(run) if (row["task"], row["depth"]) not in replaced]
    rows += [_plain({"run_id": run.run_id} | score.row()) for score in fresh]
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"rows": rows})
    record = run.record()
    columns: dict[str, Any] = {}
    for score in fresh:
        if score.task in IN_RECORD and score.depth == round(record["mean_recurrence"]):
            columns |= {score.task: score.centred, f"{score.task}_tasks": int(score.tasks.split()[0])}
    if columns:
        run.set_record(record | columns)


def keep_items(run: RunFolder, suite: str, results: Sequence[Sequence[TaskResult]], bundle: Path) -> None:
    """Keep a finished run's answers on a suite's items at T = mean recurrence, where that was evaluated.

    `results` holds each task's results, one per few-shot seed.
    """
    import pandas as pd

    depth = round(run.record()["mean_recurrence"])
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
    partial = path.with_suffix(".partial")
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
