"""Evaluation of a model on the tasks of a suite, task by task, shared between processes and resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from harness.data.dataset import Progress
from harness.distributed.process_group import ALONE, Ranks
from harness.evaluation.bundle import Item, Suite, Task, data_digest, read_items
from harness.evaluation.prompts import FEWSHOT_SEED, encode, shuffle
from harness.evaluation.results import (
    TaskResult,
    grade,
    load_result,
    result_file,
    result_key,
    save_result,
)
from harness.evaluation.scores import Score, suite_score, task_score
from harness.evaluation.scoring import score_options
from harness.evaluation.weights import TokenizedModel


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a suite is scored."""

    depths: tuple[int, ...]
    seeds: tuple[int, ...] = (FEWSHOT_SEED,)  # of the few-shot draws and of h_0
    limit: int | None = None  # items per task; None: all
    bfloat16: bool = False
    token_budget: int | None = None


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """Results on a suite: per task, one per few-shot seed."""

    suite: Suite
    results: tuple[tuple[TaskResult, ...], ...]

    def scores(self) -> list[Score]:
        """Return the scores of all tasks at all depths and, for a suite of several tasks, their mean."""
        depths = range(len(self.results[0][0].depths))
        scores = [task_score(task, at) for task in self.results for at in depths]
        if self.suite.size > 1:
            scores += [suite_score(self.suite.name, self.suite.size, self.results, at) for at in depths]
        return scores


def evaluate_suite(
    subject: TokenizedModel,
    bundle: Path,
    suite: Suite,
    protocol: Protocol,
    folder: Path,
    *,
    ranks: Ranks = ALONE,
    progress: Progress = lambda stage, fraction: None,
) -> SuiteResult:
    """Score a model on the tasks of a suite.

    Notes
    -----
    Each task's result is stored in `folder` as soon as it is complete. Stored depths are not scored again.
    Every process must call this; each scores its share of a task's items, and all return the whole result.
    """
    pairs = [(task, seed) for task in suite.tasks for seed in protocol.seeds]
    total = sum(_work(bundle, task) for task, _ in pairs) or 1.0  # of empty files, which are refused below
    results: list[TaskResult] = []
    done = 0.0
    for task, seed in pairs:
        within_task = partial(_report, progress, suite.name, done / total, _work(bundle, task) / total)
        results.append(_evaluate_task(subject, bundle, task, seed, protocol, folder, ranks, within_task))
        done += _work(bundle, task)
        within_task(1.0)
    seeds = len(protocol.seeds)
    by_task = (tuple(results[first : first + seeds]) for first in range(0, len(results), seeds))
    return SuiteResult(suite=suite, results=tuple(by_task))


def _report(progress: Progress, stage: str, before: float, share: float, fraction: float) -> None:
    progress(stage, before + share * fraction)


def _work(bundle: Path, task: Task) -> float:
    """Return the relative work of a task, estimated from the bytes of its prompts."""
    return (bundle / "eval_data" / task.file).stat().st_size * (task.shots + 1.0)


def _evaluate_task(
    subject: TokenizedModel,
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
    stored = ranks.once(lambda: load_result(path, task))
    depths = tuple(depth for depth in protocol.depths if stored is None or depth not in stored.depths)
    if stored is not None and not depths:
        return stored.at_depths(protocol.depths)
    items = shuffle(read_items(bundle, task))
    own = range(ranks.rank, len(items[: protocol.limit]), ranks.world)
    missing = replace(protocol, depths=depths)
    parts = ranks.all_gather(_score_items(subject, task, items, own, seed, missing, progress))
    result = _interleave(task, seed, depths, parts)
    if ranks.first:
        save_result(path, result)
    return (result if stored is None else stored.merge(result)).at_depths(protocol.depths)


def _score_items(
    subject: TokenizedModel,
    task: Task,
    items: Sequence[Item],
    indices: Sequence[int],
    seed: int,
    protocol: Protocol,
    progress: Callable[[float], None],
) -> dict[str, np.ndarray]:
    """Score the items at `indices` in this process; return arrays whose last dimension is the item."""
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
        on_batch=advance,
    )
    text_bytes = np.zeros(scores.tokens.shape, np.int64)
    for row, item in enumerate(encoded):
        text_bytes[row, : len(item)] = [subject.token_bytes[one.ids[one.start :]].sum() for one in item]
    options = np.array([items[i].options for i in indices])
    golds = np.array([items[i].gold for i in indices], np.int64)
    graded = grade(scores.nats, scores.exact, scores.tokens, text_bytes, golds, options)
    cropped = np.array([any(one.cropped for one in item) for item in encoded])
    return {**graded, "options": options, "cropped": cropped}


def _interleave(
    task: Task, seed: int, depths: tuple[int, ...], parts: Sequence[dict[str, np.ndarray]]
) -> TaskResult:
    """Return the items of all processes in evaluation order; process r has items r, r + world, ..."""
    arrays = {}
    for name in parts[0]:
        whole = np.concatenate([part[name] for part in parts], axis=-1)
        for rank, part in enumerate(parts):
            whole[..., rank :: len(parts)] = part[name]
        arrays[name] = whole
    cropped = int(arrays.pop("cropped").sum())
    return TaskResult(task=task, seed=seed, depths=depths, cropped=cropped, **arrays)
