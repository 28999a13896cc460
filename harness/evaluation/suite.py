"""Evaluate a model on the tasks of a suite: task by task, kept as it goes, spread over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from harness.distributed.process_group import ALONE, Ranks
from harness.evaluation.bundle import Item, Suite, Task, data_digest, read_items
from harness.evaluation.prompts import FEWSHOT_SEED, encode, shuffled
from harness.evaluation.results import (
    TaskResult,
    judge,
    keep_result,
    load_result,
    result_file,
    result_key,
)
from harness.evaluation.scores import Score, suite_score, task_score
from harness.evaluation.scoring import score_options
from harness.evaluation.subject import Subject

Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a suite is scored. Three `seeds`, as in the paper, are 1234, 2345 and 3456."""

    depths: tuple[int, ...]
    seeds: tuple[int, ...] = (FEWSHOT_SEED,)  # of the few-shot draws and of h_0
    limit: int | None = None  # items per task; None: all
    bfloat16: bool = False
    token_budget: int | None = None


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """A suite's results: per task one for each seed, item by item."""

    suite: Suite
    results: tuple[tuple[TaskResult, ...], ...]

    def scores(self) -> list[Score]:
        """Return the scores of all tasks at all depths and, of more than one task, their mean."""
        depths = range(len(self.results[0][0].depths))
        scores = [task_score(task, at) for task in self.results for at in depths]
        if self.suite.size > 1:
            scores += [suite_score(self.suite.name, self.suite.size, self.results, at) for at in depths]
        return scores


def evaluate_suite(
    subject: Subject,
    bundle: Path,
    suite: Suite,
    protocol: Protocol,
    folder: Path,
    *,
    ranks: Ranks = ALONE,
    progress: Progress = lambda stage, fraction: None,
) -> SuiteResult:
    """Score a suite's tasks, each kept in `folder` once done; depths that are there are not done again.

    Every process calls this; each scores its share of a task's items, and all get the result.
    """
    work = [(task, seed) for task in suite.tasks for seed in protocol.seeds]
    total = sum(_weight(bundle, task) for task, _ in work)
    results: list[TaskResult] = []
    done = 0.0
    for task, seed in work:
        within = partial(_report, progress, suite.name, done / total, _weight(bundle, task) / total)
        results.append(_evaluate_task(subject, bundle, task, seed, protocol, folder, ranks, within))
        done += _weight(bundle, task)
        within(1.0)
    seeds = len(protocol.seeds)
    by_task = (tuple(results[first : first + seeds]) for first in range(0, len(results), seeds))
    return SuiteResult(suite=suite, results=tuple(by_task))


def _report(progress: Progress, stage: str, before: float, share: float, fraction: float) -> None:
    progress(stage, before + share * fraction)


def _weight(bundle: Path, task: Task) -> float:
    """Guess the work of a task from the bytes of its prompts."""
    return (bundle / "eval_data" / task.file).stat().st_size * (task.shots + 1.0)


def _evaluate_task(
    subject: Subject,
    bundle: Path,
    task: Task,
    seed: int,
    protocol: Protocol,
    folder: Path,
    ranks: Ranks,
    progress: Callable[[float], None],
) -> TaskResult:
    key = result_key(
        task,
        model=subject.digest,
        data=data_digest(bundle, task),
        seed=seed,
        limit=protocol.limit,
        bfloat16=protocol.bfloat16,
    )
    path = result_file(folder, task, seed, key)
    kept = ranks.once(lambda: load_result(path, task))
    depths = tuple(depth for depth in protocol.depths if kept is None or depth not in kept.depths)
    if kept is not None and not depths:
        return kept.at(protocol.depths)
    items = shuffled(read_items(bundle, task))
    own = range(ranks.rank, len(items[: protocol.limit]), ranks.world)
    missing = replace(protocol, depths=depths)
    result = _joined(
        task, seed, depths, ranks.all_gather(_score_items(subject, task, items, own, seed, missing, progress))
    )
    if ranks.first:
        keep_result(path, result)
    return (result if kept is None else kept.joined(result)).at(protocol.depths)


def _score_items(
    subject: Subject,
    task: Task,
    items: Sequence[Item],
    indices: Sequence[int],
    seed: int,
    protocol: Protocol,
    progress: Callable[[float], None],
) -> dict[str, np.ndarray]:
    """Score the items at `indices` in this process; arrays by name, the item their last dimension."""
    encoded = encode(
        task,
        items,
        indices,
        subject.tokenizer,
        bos=subject.bos,
        context=subject.model.config.sequence_length,
        seed=seed,
    )
    total, done = sum(max(len(option.ids) for option in item) for item in encoded), 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(min(1.0, done / max(total, 1)))

    scores = score_options(
        subject.model,
        encoded,
        protocol.depths,
        seed=seed,
        token_budget=protocol.token_budget,
        bfloat16=protocol.bfloat16,
        done=advance,
    )
    text_bytes = np.zeros(scores.tokens.shape, np.int64)
    for row, item in enumerate(encoded):
        text_bytes[row, : len(item)] = [subject.token_bytes[one.ids[one.start :]].sum() for one in item]
    options = np.array([items[i].options for i in indices])
    golds = np.array([items[i].gold for i in indices], np.int64)
    judged = judge(scores.nats, scores.exact, scores.tokens, text_bytes, golds, options)
    cropped = np.array([any(one.cropped for one in item) for item in encoded])
    return {**judged, "options": options, "cropped": cropped}


def _joined(
    task: Task, seed: int, depths: tuple[int, ...], parts: Sequence[dict[str, np.ndarray]]
) -> TaskResult:
    """Put the items of all processes, dealt in turn, back in order."""
    whole = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        joined = np.concatenate(arrays, axis=-1)
        for rank, array in enumerate(arrays):
            joined[..., rank :: len(parts)] = array
        whole[name] = joined
    cropped = int(whole.pop("cropped").sum())
    return TaskResult(task=task, seed=seed, depths=depths, cropped=cropped, **whole)
