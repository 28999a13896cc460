"""The depth curve of a folder: validation loss of a run, an export or a published model at T = 1, 2, ..."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from harness.data.tokenizer_file import open_tokenizer, read_tokenizer_file
from harness.evaluation.weights import load_weights, tokenizer_file
from harness.run.folder import RunFolder
from harness.run.record import Evaluation
from harness.training.validation import evaluate
from model.config_validation import ConfigError


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
    folder = RunFolder(data or path)
    run, model = folder.check(), load_weights(path)
    if data is not None:
        _same_tokenizer(tokenizer_file(path, cache), tokenizer_file(data, cache))
    own = run.evaluation
    settings = dataclasses.replace(own, blocks=blocks or own.blocks, max_depth=max_depth or own.max_depth)
    return evaluate(model, model.config, folder.dataset(cache), settings, training=run.training)


def _same_tokenizer(mine: Path, other: Path) -> None:
    if _encoding(mine) != _encoding(other):
        raise ConfigError(f"{mine} differs from {other}: the token ids of that data stand for other text")


def _encoding(file: Path) -> dict[str, Any]:
    """Return what a tokenizer does to text; what it puts around a text is not used."""
    tokenizer: dict[str, Any] = json.loads(open_tokenizer(read_tokenizer_file(file), file).to_str())
    return {key: value for key, value in tokenizer.items() if key != "post_processor"}
