"""Scores of tasks and suites, and what a finished run stores of them.

Scores are accuracies, centred and chance-corrected scores, log-probabilities and their standard errors. A run
stores rows of the scores and items tables, and Core in its record. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluation.bundle import data_digest
from harness.evaluation.results import Array, TaskResult
from harness.run.folder import RunFolder
from harness.storage.files import exclusive, new_file, read_json, write_json

FOLDER = "evaluation"  # of a run, where results and scores are stored
_SCORES = "scores.json"
_IN_RECORD = ("core", "core_extended")  # suites whose score is a column of the runs table


@dataclass(frozen=True, kw_only=True)
class Score:
    """One task, or the mean over a suite's tasks, at one depth.

    Notes
    -----
    `centred` is 0 at the official random baseline and 1 with every item correct. `chance_corrected` uses the
    number of options in the file instead. Log-probabilities are of the gold answer, in nats per byte.
    """

    task: str
    depth: int
    tasks: str  # number of the suite's tasks that are covered, e.g. "21 of 22 tasks"; "" for one task
    items: int
    seeds: int
    accuracy: float | None = None  # None for a suite
    chance: float | None = None
    baseline: float | None = None  # from eval_meta_data.csv
    centred: float
    chance_corrected: float
    se: float  # binomial over items, of the accuracy; for a suite, of the centred score
    seeds_se: float | None = None  # over few-shot seeds; None with one seed
    chance_corrected_se: float
    log_prob_per_byte: float
    log_prob_se: float
    margin_per_byte: float | None = None  # None without options
    margin_se: float | None = None
    cropped: float = 0.0  # share of the items of which some tokens did not fit the context

    def row(self) -> dict[str, Any]:
        """Return the score as a row of the scores table."""
        return vars(self).copy()


def centre(accuracy: float, baseline: float) -> float:
    """Return (accuracy - baseline) / (1 - baseline)."""
    return (accuracy - baseline) / (1 - baseline)


def task_score(results: Sequence[TaskResult], at: int) -> Score:
    """Return the score of one task.

    Parameters
    ----------
    results : one per few-shot seed.
    at : index of the depth.
    """
    first = results[0]
    items, seeds = len(first.options), len(results)
    by_seed = np.array([result.correct[at].mean() for result in results])
    accuracy, chance, baseline = float(by_seed.mean()), first.chance, first.baseline
    se = math.sqrt(accuracy * (1 - accuracy) / items)
    log_prob, log_prob_se = _mean(np.mean([result.log_prob[at] for result in results], axis=0))
    margin, margin_se = _mean(np.mean([result.margin[at] for result in results], axis=0))
    return Score(
        task=first.task.label,
        depth=first.depths[at],
        tasks="",
        items=items,
        seeds=seeds,
        accuracy=accuracy,
        chance=chance,
        baseline=baseline,
        centred=centre(accuracy, baseline),
        chance_corrected=centre(accuracy, chance),
        se=se,
        seeds_se=float(by_seed.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else None,
        chance_corrected_se=se / (1 - chance),
        log_prob_per_byte=log_prob,
        log_prob_se=log_prob_se,
        margin_per_byte=None if math.isnan(margin) else margin,
        margin_se=None if math.isnan(margin) else margin_se,
        cropped=sum(result.cropped for result in results) / (seeds * items),
    )


def suite_score(name: str, size: int, results: Sequence[Sequence[TaskResult]], at: int) -> Score:
    """Return the mean score over the tasks of a suite.

    Parameters
    ----------
    size : number of tasks of the suite, absent ones included.
    results : per task, one result per few-shot seed.
    at : index of the depth.
    """
    scores = [task_score(task, at) for task in results]
    count, seeds = len(scores), len(results[0])
    by_seed = [
        float(np.mean([task_score([task[seed]], at).centred for task in results])) for seed in range(seeds)
    ]
    margins = [score for score in scores if score.margin_per_byte is not None]
    return Score(
        task=name,
        depth=scores[0].depth,
        tasks=f"{count} of {size} tasks",
        items=sum(score.items for score in scores),
        seeds=seeds,
        centred=math.fsum(score.centred for score in scores) / count,
        chance_corrected=math.fsum(score.chance_corrected for score in scores) / count,
        se=_mean_se([score.se / (1 - (score.baseline or 0.0)) for score in scores]),
        seeds_se=float(np.std(by_seed, ddof=1)) / math.sqrt(seeds) if seeds > 1 else None,
        chance_corrected_se=_mean_se([score.chance_corrected_se for score in scores]),
        log_prob_per_byte=math.fsum(score.log_prob_per_byte for score in scores) / count,
        log_prob_se=_mean_se([score.log_prob_se for score in scores]),
        margin_per_byte=float(np.mean([s.margin_per_byte for s in margins])) if margins else None,
        margin_se=_mean_se([s.margin_se or 0.0 for s in margins]) if margins else None,
        cropped=sum(score.cropped * score.items for score in scores) / sum(score.items for score in scores),
    )


def _mean(values: Array) -> tuple[float, float]:
    """Return mean and standard error over the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return math.nan, math.nan
    deviation = float(finite.std(ddof=1)) if len(finite) > 1 else 0.0
    return float(finite.mean()), deviation / math.sqrt(len(finite))


def _mean_se(errors: Sequence[float]) -> float:
    """Return the standard error of the mean of independent numbers with these standard errors."""
    return math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)


def resample_suite(results: Sequence[Sequence[TaskResult]], resamples: int, seed: int = 0) -> Array:
    """Return a suite's centred score over resampled items [resamples, D]; all depths share the items."""
    draw = np.random.default_rng(seed)
    total = 0.0
    for task in results:
        correct = np.mean([result.correct for result in task], axis=0)  # [D, N], averaged over seeds
        items = correct.shape[1]
        counts = draw.multinomial(items, np.full(items, 1 / items), resamples)
        baseline = task_score(task, 0).baseline or 0.0
        total = total + (counts @ correct.T / items - baseline) / (1 - baseline)
    return np.asarray(total / len(results))


def save_scores(run: RunFolder, scores: Iterable[Score]) -> None:
    """Enter scores on all items into a finished run's scores.json, and Core into its record.

    A run that has not finished stores none, because its weights still change.
    """
    if run.status().state != "done":
        return
    fresh = {(score.task, score.depth): score for score in scores}  # suites share tasks; each is stored once
    own_depth = run.config().model.own_depth
    columns: dict[str, Any] = {}
    for (task, depth), score in fresh.items():
        if task in _IN_RECORD and depth == own_depth:
            columns |= {task: score.centred, f"{task}_tasks": int(score.tasks.split()[0])}
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    with exclusive(folder / "scores.lock", wait=True):
        rows = [row for row in read_scores(run) if (row["task"], row["depth"]) not in fresh]
        rows += [_json_row({"run_id": run.run_id} | score.row()) for score in fresh.values()]
        write_json(folder / _SCORES, {"rows": rows})
        if columns:
            run.set_record(run.record() | columns)


def save_items(run: RunFolder, suite: str, results: Sequence[Sequence[TaskResult]], bundle: Path) -> None:
    """Store a finished run's answers at T = mean recurrence, if that depth was evaluated.

    Parameters
    ----------
    results : per task of the suite, one result per few-shot seed.
    """
    import pandas as pd

    depth = run.config().model.own_depth
    if run.status().state != "done" or depth not in results[0][0].depths:
        return
    frames = []
    for seeds in results:
        first = seeds[0]
        at = first.depths.index(depth)
        frames.append(
            pd.DataFrame(
                {
                    "run_id": run.run_id,
                    "suite": suite,
                    "task": first.task.label,
                    "item": range(len(first.options)),
                    "data_digest": data_digest(bundle, first.task),
                    "baseline": first.baseline,
                    "correct": np.mean([result.correct[at] for result in seeds], axis=0),
                }
            )
        )
    path = run.path / FOLDER / f"items-{suite}.parquet"
    path.parent.mkdir(exist_ok=True)
    with new_file(path) as temporary:
        pd.concat(frames, ignore_index=True).to_parquet(temporary, index=False)


def items_files(run: RunFolder) -> list[Path]:
    """Return the files with the run's rows of the items table, one per suite."""
    return sorted((run.path / FOLDER).glob("items-*.parquet"))


def read_scores(run: RunFolder) -> list[dict[str, Any]]:
    """Return the run's rows of the scores table; empty if it has not been evaluated on tasks."""
    path = run.path / FOLDER / _SCORES
    return list(read_json(path)["rows"]) if path.exists() else []


def _json_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with None for numbers that are not finite, which JSON cannot hold."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
