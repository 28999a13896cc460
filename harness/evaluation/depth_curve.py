"""The depth curve of a folder: validation loss of a run, an export or a published model at T = 1, 2, ..."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from harness.data.dataset import Dataset
from harness.data.tokenizer_file import open_tokenizer, read_tokenizer_file
from harness.evaluation.weights import load_weights, tokenizer_file
from harness.run.config import RunConfig
from harness.run.folder import RunFolder
from harness.run.record import Evaluation
from harness.training.validation import evaluate
from model.config_validation import ConfigError
from model.transformer import LoopedTransformer


def evaluate_folder(
    path: Path,
    cache: Path,
    *,
    data: Path | None = None,
    blocks: int | None = None,
    max_depth: int | None = None,
) -> Evaluation:
    """Evaluate the newest intact checkpoint of a run, an export or a published checkpoint; read-only.

    Parameters
    ----------
    path : run folder, export or published checkpoint.
    cache : folder of the data sets.
    data : run whose validation data, packing and settings are used; by default the run at `path`.
    blocks, max_depth : override those of that run.

    Raises
    ------
    ConfigError : `path` has no checkpoint, or its tokenizer is not that of the data.
    CheckpointError : all checkpoints are corrupt.
    DataError : the data set is not under `cache`.
    """
    run, model, dataset = open_with_data(path, cache, data)
    own = run.evaluation
    settings = dataclasses.replace(own, blocks=blocks or own.blocks, max_depth=max_depth or own.max_depth)
    return evaluate(model, model.config, dataset, settings, training=run.training)


def open_with_data(
    path: Path, cache: Path, data: Path | None
) -> tuple[RunConfig, LoopedTransformer, Dataset]:
    """Return the run whose data is used, the model at `path`, and the data set."""
    folder = RunFolder(data or path)
    run, model = folder.check(), load_weights(path)
    if data is not None:
        _same_tokenizer(tokenizer_file(path, cache), tokenizer_file(data, cache))
    return run, model, folder.dataset(cache)


def _same_tokenizer(mine: Path, other: Path) -> None:
    if _encoding(mine) != _encoding(other):
        raise ConfigError(f"{mine} differs from {other}: the token ids of that data stand for other text")


def _encoding(file: Path) -> dict[str, Any]:
    """Return what a tokenizer does to text; what it puts around a text is not used."""
    tokenizer: dict[str, Any] = json.loads(open_tokenizer(read_tokenizer_file(file), file).to_str())
    return {key: value for key, value in tokenizer.items() if key != "post_processor"}
