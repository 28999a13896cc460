"""What a model got on one task, item by item, and the file that keeps it; imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluation.bundle import Task
from harness.evaluation.scores import predictions
from harness.storage.locks import exclusive

Array = np.ndarray
FORMAT = 1  # of the file, and of how prompts are made: a new one makes every result anew


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task at D depths with one few-shot seed, N items in the order of the evaluation.

    log_prob [D, N] is that of the gold answer per byte of its scored text, in nats; margin [D, N] is how far
    it lies above the mean of the other options' (NaN without any). options [N] counts an item's options,
    cropped the items of which some tokens did not fit the context.
    """

    task: Task
    seed: int
    depths: tuple[int, ...]
    correct: Array
    log_prob: Array
    margin: Array
    options: Array
    cropped: int

    def at(self, depths: Sequence[int]) -> TaskResult:
        """Return the result at some of its depths."""
        rows = [self.depths.index(depth) for depth in depths]
        parts = {name: getattr(self, name)[rows] for name in ("correct", "log_prob", "margin")}
        return TaskResult(**{**vars(self), **parts, "depths": tuple(depths)})

    def joined(self, other: TaskResult) -> TaskResult:
        """Return the result with the depths that `other`, of the same question, has beyond it."""
        new = other.at([depth for depth in other.depths if depth not in self.depths])
        parts = {
            name: np.concatenate([getattr(self, name), getattr(new, name)])
            for name in ("correct", "log_prob", "margin")
        }
        depths = self.depths + new.depths
        return TaskResult(**{**vars(self), **parts, "depths": depths}).at(sorted(depths))


def judge(
    nats: Array, exact: Array, tokens: Array, text_bytes: Array, golds: Array, options: Array
) -> dict[str, Array]:
    """Return correct, log_prob and margin from what the options got.

    nats and exact are [D, N, K], tokens and text_bytes [N, K], golds and options [N].
    """
    chosen = predictions(nats, exact, tokens)
    wanted = np.where(options == 1, 1, golds)
    with np.errstate(invalid="ignore", divide="ignore"):
        per_byte = np.where(text_bytes > 0, -nats / text_bytes, np.nan)  # [D, N, K]
    item = np.arange(len(golds))
    gold = per_byte[:, item, golds]
    others = per_byte.copy()
    others[:, item, golds] = np.nan
    counted = np.isfinite(others).sum(axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        margin = gold - np.nansum(others, axis=2) / np.where(counted, counted, np.nan)
    return {"correct": chosen == wanted, "log_prob": gold, "margin": margin}


def result_key(task: Task, **what: Any) -> str:
    """Return 16 hex digits of everything that a task's result depends on."""
    fields = {"format": FORMAT, "task": asdict(task), **what}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def result_file(folder: Path, task: Task, seed: int, key: str) -> Path:
    """Return where a result is kept."""
    return folder / f"{task.label}-seed{seed}-{key}.npz"


def keep_result(path: Path, result: TaskResult) -> None:
    """Add a result to the depths that are there, whole or not at all, whoever else adds some."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.parent / "results.lock", wait=True):
        there = load_result(path, result.task)
        _save(path, result if there is None else result.joined(there))


def _save(path: Path, result: TaskResult) -> None:
    arrays = {name: getattr(result, name) for name in ("correct", "log_prob", "margin", "options")}
    about = {"seed": result.seed, "depths": result.depths, "cropped": result.cropped}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as handle:
        np.savez_compressed(handle, about=json.dumps(about), **arrays)
    temporary.replace(path)


def load_result(path: Path, task: Task) -> TaskResult | None:
    """Read a result at all its depths; None where there is no whole file."""
    try:
        with np.load(path) as stored:
            about = json.loads(str(stored["about"]))
            arrays = {name: stored[name] for name in ("correct", "log_prob", "margin", "options")}
    except (FileNotFoundError, zipfile.BadZipFile, ValueError, KeyError):
        return None
    return TaskResult(
        task=task, seed=about["seed"], depths=tuple(about["depths"]), cropped=about["cropped"], **arrays
    )
