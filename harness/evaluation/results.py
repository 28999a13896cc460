"""Results of a model on one task, item by item, and the file that stores them; imports no torch."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from harness.evaluation.bundle import Task
from harness.storage.files import exclusive, new_file

Array = np.ndarray
FORMAT = 1  # of the file and of the prompts; a new number invalidates all stored results
_DAMAGED = (
    *(FileNotFoundError, EOFError, zipfile.BadZipFile, ValueError, KeyError, TypeError, RecursionError),
    TokenError,  # by numpy, where the header of an array is cut
)
_BY_DEPTH = ("correct", "log_prob", "margin")


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task at D depths with one few-shot seed, N items in evaluation order."""

    task: Task
    seed: int
    depths: tuple[int, ...]
    correct: Array  # [D, N]
    log_prob: Array  # [D, N], of the gold answer, in nats per byte of its scored text
    margin: Array  # [D, N], log_prob minus the mean of the other options'; NaN without other options
    options: Array  # [N], number of options
    cropped: int  # items of which some tokens did not fit the context

    @property
    def chance(self) -> float:
        """Return the accuracy of guessing evenly among the options; 0 where the answer is generated."""
        return float(np.where(self.options > 1, 1 / self.options, 0.0).mean())

    @property
    def baseline(self) -> float:
        """Return the official random baseline of the task, or `chance` where it has none."""
        return self.chance if self.task.baseline is None else self.task.baseline

    def at_depths(self, depths: Sequence[int]) -> TaskResult:
        """Return the result at some of its depths."""
        rows = [self.depths.index(depth) for depth in depths]
        parts = {name: getattr(self, name)[rows] for name in _BY_DEPTH}
        return TaskResult(**{**vars(self), **parts, "depths": tuple(depths)})

    def merge(self, other: TaskResult) -> TaskResult:
        """Return the result with the additional depths of `other`, a result of the same task and seed."""
        new = other.at_depths([depth for depth in other.depths if depth not in self.depths])
        parts = {name: np.concatenate([getattr(self, name), getattr(new, name)]) for name in _BY_DEPTH}
        depths = self.depths + new.depths
        return TaskResult(**{**vars(self), **parts, "depths": depths}).at_depths(sorted(depths))


def predictions(nats: Array, exact: Array, tokens: Array) -> Array:
    """Return the predicted option of each item.

    Parameters
    ----------
    nats, exact : [D, N, K], as in `harness.evaluation.scoring.OptionScores`.
    tokens : [N, K], number of scored tokens.

    Returns
    -------
    int [D, N]: the option with the lowest mean nats per token, the first of equals. With a single option, 1
    where it is exact and 0 elsewhere.

    Notes
    -----
    An option without a scored token has no mean. It is predicted where it comes first and nowhere else, as in
    the reference implementation, which compares with Python's `min`.
    """
    if nats.shape[2] == 1:
        return exact[:, :, 0].astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = nats / tokens
    missing = np.isnan(means)
    predicted = np.argmin(np.where(missing, np.inf, means), axis=2)
    return np.where(missing[:, :, 0], 0, predicted)


def grade(
    nats: Array, exact: Array, tokens: Array, text_bytes: Array, golds: Array, options: Array
) -> dict[str, Array]:
    """Return `correct`, `log_prob` and `margin` [D, N] of a `TaskResult`.

    Parameters
    ----------
    nats, exact : [D, N, K], as in `harness.evaluation.scoring.OptionScores`.
    tokens, text_bytes : [N, K], scored tokens and the bytes of their text.
    golds, options : [N], index of the gold option and number of options.
    """
    predicted = predictions(nats, exact, tokens)
    expected = np.where(options == 1, 1, golds)
    with np.errstate(invalid="ignore", divide="ignore"):
        per_byte = np.where(text_bytes > 0, -nats / text_bytes, np.nan)  # [D, N, K]
    item = np.arange(len(golds))
    gold = per_byte[:, item, golds]
    others = per_byte.copy()
    others[:, item, golds] = np.nan
    counted = np.isfinite(others).sum(axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        margin = gold - np.nansum(others, axis=2) / np.where(counted, counted, np.nan)
    return {"correct": predicted == expected, "log_prob": gold, "margin": margin}


def result_key(task: Task, **dependencies: Any) -> str:
    """Return 16 hex digits that identify everything a task's result depends on."""
    fields = {"format": FORMAT, "task": asdict(task), **dependencies}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def result_file(folder: Path, task: Task, seed: int, key: str) -> Path:
    """Return the path of a stored result."""
    return folder / f"{task.label}-seed{seed}-{key}.npz"


def save_result(path: Path, result: TaskResult) -> None:
    """Add a result to the depths stored in `path`; atomic, and safe with concurrent writers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.parent / "results.lock", wait=True):
        stored = load_result(path, result.task)
        _write(path, result if stored is None else stored.merge(result))


def _write(path: Path, result: TaskResult) -> None:
    arrays = {name: getattr(result, name) for name in (*_BY_DEPTH, "options")}
    about = {"seed": result.seed, "depths": result.depths, "cropped": result.cropped}
    with new_file(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(handle, about=json.dumps(about), **arrays)


def load_result(path: Path, task: Task) -> TaskResult | None:
    """Return the stored result at all its depths; None if the file is missing or damaged."""
    try:
        with np.load(path) as stored:
            about = json.loads(str(stored["about"]))
            arrays = {name: stored[name] for name in (*_BY_DEPTH, "options")}
        seed, depths, cropped = about["seed"], tuple(about["depths"]), about["cropped"]
    except _DAMAGED:
        return None
    return TaskResult(task=task, seed=seed, depths=depths, cropped=cropped, **arrays)
