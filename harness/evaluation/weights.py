"""Trained models with their tokenizers, from run folders, exports and published checkpoints."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.data.dataset import token_bytes
from harness.data.tokenizer import adding_bos, find_bos, vocabulary_size
from harness.data.tokenizer_file import open_tokenizer, read_tokenizer_file
from harness.distributed.process_group import ALONE, Ranks
from harness.run.folder import RunFolder
from harness.training.checkpoint import load_newest
from harness.training.device import device_named, prepare_process
from model.config_validation import ConfigError
from model.published.checkpoint import Layout, check_weights, export_model, load_model
from model.published.transformers_layout import write_tokenizer_files
from model.transformer import LoopedTransformer, model_from_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class TokenizedModel:
    """A model on its device with its tokenizer, ready to be scored on text."""

    model: LoopedTransformer
    tokenizer: Tokenizer
    bos: int
    token_bytes: np.ndarray  # bytes of text behind each token id
    digest: str  # of weights, configuration and tokenizer

    @property
    def own_depth(self) -> int:
        """Return T = mean recurrence, the depth of a score where none is asked for."""
        return self.model.config.own_depth


def load_tokenized(path: Path, cache: Path, *, device: str = "auto", ranks: Ranks = ALONE) -> TokenizedModel:
    """Load a model and its tokenizer on this process's device.

    Parameters
    ----------
    path : run folder, export or published checkpoint.
    cache : folder of the data sets, which hold the tokenizers of runs.

    Raises
    ------
    ConfigError : `path` holds no model, or the tokenizer is not the model's.
    """
    model, file = load_weights(path), tokenizer_file(path, cache)
    text = tokenizer_text(file, model)
    place = device_named(device, ranks)
    prepare_process(place)
    return TokenizedModel(
        model=model.to(place),
        tokenizer=open_tokenizer(text, file),
        bos=_bos(path, cache),
        token_bytes=token_bytes(text),
        digest=_digest(model, text),
    )


def tokenizer_text(file: Path, model: LoopedTransformer) -> str:
    """Return the text of a model's tokenizer.json.

    Raises
    ------
    DataError : it is damaged or not byte-level.
    ConfigError : it has more tokens than the model.
    """
    text = read_tokenizer_file(file)
    if (tokens := vocabulary_size(text)) > model.config.vocabulary_size:
        raise ConfigError(
            f"{file} has {tokens} tokens, the model only {model.config.vocabulary_size}: this is not its "
            "tokenizer"
        )
    return text


def _digest(model: LoopedTransformer, tokenizer_json: str) -> str:
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for name, value in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    digest.update(tokenizer_json.encode())
    return digest.hexdigest()[:16]


def load_run(folder: RunFolder) -> LoopedTransformer:
    """Build the model of a run with the weights of its newest intact checkpoint.

    Raises
    ------
    ConfigError : the run has no checkpoint.
    CheckpointError : all its checkpoints are corrupt.

    Warns
    -----
    UserWarning : the run has not finished.
    """
    run = folder.check()
    checkpoint = load_newest(folder.checkpoints, weights_only=True)
    if checkpoint is None:
        raise ConfigError(f"{folder.path} has no checkpoint: train it first")
    check_weights(run.model, checkpoint.model, str(folder.checkpoints))
    model = model_from_weights(run.model, checkpoint.model)
    if checkpoint.step != run.steps:
        warnings.warn(f"{folder.path.name} stands at step {checkpoint.step} of {run.steps}", stacklevel=2)
    return model


def load_weights(path: Path) -> LoopedTransformer:
    """Load the model of a run folder, an export or a published checkpoint.

    Raises
    ------
    ConfigError : `path` holds no model.
    ValueError : the weights do not fit the model's config.json.
    """
    check_model(path)
    return load_run(RunFolder(path)) if is_run(path) else load_model(path)


def own_depth(path: Path) -> int:
    """Return T = mean recurrence of the model at `path`."""
    return load_weights(path).config.own_depth


def check_model(path: Path) -> None:
    """Raise ConfigError unless `path` is a run or holds a model's config.json."""
    if not is_run(path) and not (path / "config.json").exists():
        raise ConfigError(f"{path} holds no model: neither a run nor a config.json beside weights")


def is_run(path: Path) -> bool:
    """Return True if `path` is the folder of a run, or will be."""
    return RunFolder(path).is_run()


def tokenizer_file(path: Path, cache: Path) -> Path:
    """Return the tokenizer.json of a model: of its run's data set, or beside its weights.

    Raises
    ------
    ConfigError : there is no tokenizer.json beside the weights.
    DataError : the run's data set is not under `cache`.
    """
    if is_run(path):
        folder = RunFolder(path)
        folder.dataset(cache)
        return cache / folder.data_digest() / TOKENIZER
    if not (path / TOKENIZER).exists():
        raise ConfigError(f"{path} has no {TOKENIZER}: put the one that the model was trained with there")
    return path / TOKENIZER


def export(path: Path, folder: Path, *, cache: Path, layout: Layout = "loopscale") -> None:
    """Write config.json, model.safetensors and the tokenizer of the model at `path` into `folder`.

    Raises
    ------
    ConfigError, ValueError : the published layout cannot express the model; nothing is written.
    """
    model, tokenizer = load_weights(path), tokenizer_file(path, cache)
    bos = _bos(path, cache) if layout == "transformers" else None
    export_model(model, folder, layout=layout)
    if bos is None:
        shutil.copyfile(tokenizer, folder / TOKENIZER)
        return
    text = adding_bos(read_tokenizer_file(tokenizer), bos)
    (folder / TOKENIZER).write_text(text, encoding="utf-8")
    token = open_tokenizer(text, tokenizer).id_to_token(bos) or ""
    write_tokenizer_files(folder, model.config, bos, token)


def _bos(path: Path, cache: Path) -> int:
    """Return the token that begins documents, of a run's data or of the tokenizer beside the weights."""
    if is_run(path):
        return RunFolder(path).dataset(cache).bos
    return find_bos(read_tokenizer_file(tokenizer_file(path, cache)), None)
