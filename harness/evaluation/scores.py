"""Scores of a task and of a suite from what its options got: accuracy, centrings, log-probabilities, errors.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


def predictions(nats: Array, exact: Array, tokens: Array) -> Array:
    """Return the chosen option of each item, int [D, N]; for one option alone, 1 where it was exact, else 0.

    Chosen is the option with the least mean nats per token, the first of equals. An option without a scored
    token has no mean: like the definition, which compares with `min`, it is chosen where it stands first and
    never elsewhere.
    """
    if nats.shape[2] == 1:
        return exact[:, :, 0].astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = nats / tokens
    missing = np.isnan(means)
    chosen = np.argmin(np.where(missing, np.inf, means), axis=2)
    return np.where(missing[:, :, 0], 0, chosen)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One task, or the mean over a suite's tasks, at one depth.

    `centred` is 0 for the official random baseline and 1 for every item right, `chance_corrected` 0 for
    guessing among the options that the file has. Standard errors: `se` is binomial over items, `seeds_se`
    over few-shot seeds (None with one). Log-probabilities are of the gold answer, in nats per byte.
    """

    task: str
    depth: int
    tasks: str  # how many of the suite's tasks it is of, e.g. "21 of 22 tasks"; "" for one task
    items: int
    seeds: int
    accuracy: float | None = None  # None for a suite
    chance: float | None = None
    baseline: float | None = None  # that of eval_meta_data.csv
    centred: float
    chance_corrected: float
    se: float  # of the accuracy; for a suite, of the centred score
    seeds_se: float | None = None
    chance_corrected_se: float
    log_prob_per_byte: float
    log_prob_se: float
    margin_per_byte: float | None = None  # None without options
    margin_se: float | None = None
    cropped: float = 0.0  # share of the items of which some tokens did not fit the context

    def row(self) -> dict[str, Any]:
        """Return the score as a row of a table."""
        return vars(self).copy()


def centre(accuracy: float, baseline: float) -> float:
    """Return the share of what lies between `baseline` and 1 that `accuracy` has reached."""
    return (accuracy - baseline) / (1 - baseline)


def chance_level(options: Array) -> float:
    """Return the accuracy of guessing evenly; 0 where the answer is to be produced."""
    return float(np.where(options > 1, 1 / options, 0.0).mean())


def task_score(results: Sequence[Any], at: int) -> Score:
    """Return the score of one task (a TaskResult per few-shot seed) at the depth of index `at`."""
    first = results[0]
    items, seeds = len(first.options), len(results)
    by_seed = np.array([result.correct[at].mean() for result in results])
    accuracy, chance = float(by_seed.mean()), chance_level(first.options)
    baseline = chance if first.task.baseline is None else first.task.baseline
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


def suite_score(name: str, size: int, results: Sequence[Sequence[Any]], at: int) -> Score:
    """Return the mean over the tasks of a suite of `size` tasks, those that are absent left out and counted.

    `results` holds each task's TaskResults, one per few-shot seed.
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
        se=_combined([score.se / (1 - (score.baseline or 0.0)) for score in scores]),
        seeds_se=float(np.std(by_seed, ddof=1)) / math.sqrt(seeds) if seeds > 1 else None,
        chance_corrected_se=_combined([score.chance_corrected_se for score in scores]),
        log_prob_per_byte=math.fsum(score.log_prob_per_byte for score in scores) / count,
        log_prob_se=_combined([score.log_prob_se for score in scores]),
        margin_per_byte=float(np.mean([s.margin_per_byte for s in margins])) if margins else None,
        margin_se=_combined([s.margin_se or 0.0 for s in margins]) if margins else None,
        cropped=sum(score.cropped * score.items for score in scores) / sum(score.items for score in scores),
    )


def _mean(values: Array) -> tuple[float, float]:
    """Return mean and standard error over the items that have a value; NaN where none has."""
    held = values[np.isfinite(values)]
    if not len(held):
        return math.nan, math.nan
    spread = float(held.std(ddof=1)) if len(held) > 1 else 0.0
    return float(held.mean()), spread / math.sqrt(len(held))


def _combined(errors: Sequence[float]) -> float:
    """Return the standard error of the mean of independent numbers with these standard errors."""
    return math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)


def resampled_suite(results: Sequence[Sequence[Any]], resamples: int, seed: int = 0) -> Array:
    """Return a suite's centred score over resampled items [resamples, D], all depths of an item together."""
    draw = np.random.default_rng(seed)
    total = 0.0
    for task in results:
        right = np.mean([result.correct for result in task], axis=0)  # [D, N], averaged over seeds
        counts = draw.multinomial(right.shape[1], np.full(right.shape[1], 1 / right.shape[1]), resamples)
        baseline = task_score(task, 0).baseline or 0.0
        total = total + (counts @ right.T / right.shape[1] - baseline) / (1 - baseline)
    return np.asarray(total / len(results))
