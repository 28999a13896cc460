"""Trained weights wherever they lie: run folders, our exports, published checkpoints."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from harness.run.folder import RunFolder
from harness.training.checkpoint import load_newest
from model.config_validation import ConfigError
from model.published.checkpoint import export_model, load_model
from model.transformer import LoopedTransformer, build_model

TOKENIZER = "tokenizer.json"


def load_run(folder: RunFolder) -> LoopedTransformer:
    """Build the model of a run folder with the weights of its newest whole checkpoint.

    Warns when the run has not ended yet.

    Raises ConfigError for a folder without a checkpoint, CheckpointError when none is whole.
    """
    run = folder.check()
    checkpoint = load_newest(folder.checkpoints, weights_only=True)
    if checkpoint is None:
        raise ConfigError(f"{folder.path} has no checkpoint: train it first")
    model = build_model(run.model, seed=run.seed)
    model.load_state_dict(checkpoint.model)
    if checkpoint.step != run.steps:
        warnings.warn(f"{folder.path.name} stands at step {checkpoint.step} of {run.steps}", stacklevel=2)
    return model


def load_weights(path: Path) -> LoopedTransformer:
    """Load a run folder, one of our exports, or a published checkpoint (config.json beside its weights).

    Raises ConfigError for a folder that is none of them, ValueError for weights that do not fit.
    """
    check_model(path)
    return load_run(RunFolder(path)) if is_run(path) else load_model(path)


def check_model(path: Path) -> None:
    """Raise ConfigError unless a run or a model's config.json lies at `path`."""
    if not is_run(path) and not (path / "config.json").exists():
        raise ConfigError(f"{path} holds no model: neither a run nor a config.json beside weights")


def is_run(path: Path) -> bool:
    """Tell whether `path` is the folder of a run, or will be."""
    return RunFolder(path).is_run()


def tokenizer_file(path: Path, cache: Path) -> Path:
    """Find the tokenizer.json of a model: its run's data set under `cache`, or the file beside its weights.

    Raises ConfigError where there is none, DataError when the run's data is not under `cache`.
    """
    if is_run(path):
        folder = RunFolder(path)
        folder.dataset(cache)
        return cache / folder.data_digest() / TOKENIZER
    if not (path / TOKENIZER).exists():
        raise ConfigError(f"{path} has no {TOKENIZER}: put the one that the model was trained with there")
    return path / TOKENIZER


def export(path: Path, folder: Path, *, cache: Path, published: bool) -> None:
    """Write config.json, model.safetensors and the tokenizer of the model at `path` into `folder`.

    Raises ConfigError or ValueError when `published` cannot express the model; nothing is written then.
    """
    model, tokenizer = load_weights(path), tokenizer_file(path, cache)
    export_model(model, folder, published=published)
    shutil.copyfile(tokenizer, folder / TOKENIZER)
