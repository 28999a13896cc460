"""Checkpoints and how they are read: verified by checksums; loading executes no code.

A checkpoint is a folder of safetensors files and `state.json`, which holds the step, the counters, a checksum
of every file and an index of tensors. Each process of a run writes its own shards. Readers get whole tensors
or any rows of them, independent of the number of processes that wrote them. `checkpoint_writer` writes them.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.distributed.process_group import ALONE, Ranks
from harness.storage.files import read_text
from harness.storage.sharded_tensors import READ_ERRORS, ShardReader, TensorShard
from model.config_validation import ConfigError

Tensors = Mapping[str, Tensor | TensorShard]  # a TensorShard where a process has only some rows
PARTS = ("model", "optimizer")


class CheckpointError(ConfigError):
    """A checkpoint, or every checkpoint of a run, is corrupt."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after `step` optimiser steps: whole when loaded, a process's own shards when saved."""

    step: int
    model: Tensors
    optimizer: Tensors
    counters: dict[str, Any]  # JSON values


@dataclass(frozen=True, kw_only=True)
class OpenCheckpoint:
    """An intact checkpoint on disk, whose tensors are read on demand."""

    step: int
    model: ShardReader
    optimizer: ShardReader
    counters: dict[str, Any]


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the checkpoints under `folder`, oldest first, intact or not."""
    return sorted(folder.glob("step_*"))


def load(path: Path, *, weights_only: bool = False) -> Checkpoint:
    """Load a checkpoint.

    Raises
    ------
    CheckpointError : a file is missing, truncated or altered.
    OSError : a file cannot be read, for want of a permission or by an error of the file system.
    """
    stored = open_checkpoint(path)
    try:
        model = {name: stored.model.tensor(name) for name in stored.model.names()}
        names = [] if weights_only else stored.optimizer.names()
        optimizer = {name: stored.optimizer.tensor(name) for name in names}
    except READ_ERRORS as error:
        raise CheckpointError(f"checkpoint {path} is corrupt: {error!r}") from error
    return Checkpoint(step=stored.step, model=model, optimizer=optimizer, counters=stored.counters)


def load_newest(folder: Path, *, weights_only: bool = False) -> Checkpoint | None:
    """Load the newest intact checkpoint; None if there are no checkpoints.

    Raises
    ------
    CheckpointError : all checkpoints are corrupt; they are kept.

    Warns
    -----
    UserWarning : a corrupt checkpoint is skipped.
    """
    path = newest_intact(folder)
    return None if path is None else load(path, weights_only=weights_only)


def open_newest(folder: Path, ranks: Ranks = ALONE) -> OpenCheckpoint | None:
    """Open the newest intact checkpoint in every process, verified by the first; else like `load_newest`."""
    path = ranks.once(lambda: newest_intact(folder))
    return None if path is None else open_checkpoint(path, check=False)


def newest_intact(folder: Path) -> Path | None:
    """Return the path of the newest intact checkpoint; warns and raises like `load_newest`."""
    paths = checkpoint_folders(folder)
    for path in reversed(paths):
        try:
            open_checkpoint(path)
        except CheckpointError as error:
            if path == paths[0]:
                raise CheckpointError(
                    f"{error}; no other is intact: delete {folder} to start again"
                ) from error
            warnings.warn(f"{error}; the one before it is used", stacklevel=2)
        else:
            return path
    return None


def open_checkpoint(path: Path, *, check: bool = True) -> OpenCheckpoint:
    """Open a checkpoint after verifying its checksums; raises like `load`."""
    try:
        state = json.loads(read_text(path / "state.json"))
        if check:
            _check_sums(path, state["sha256"])
        return OpenCheckpoint(
            step=state["step"],
            model=ShardReader(path, state["model"]),
            optimizer=ShardReader(path, state["optimizer"]),
            counters=state["counters"],
        )
    except CheckpointError:
        raise
    except (FileNotFoundError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} is corrupt: {error!r}") from error


def _check_sums(folder: Path, expected: dict[str, str]) -> None:
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: sha256_of(folder / name), expected)
        for name, digest in zip(expected, digests, strict=True):
            if digest != expected[name]:
                raise CheckpointError(f"checkpoint {folder} is corrupt: {name} does not match its checksum")


def sha256_of(path: Path) -> str:
    """Return the checksum of a file; raises CheckpointError for what is no regular file."""
    if path.exists() and not path.is_file():  # to open a pipe would wait for ever
        raise CheckpointError(f"checkpoint {path.parent} is corrupt: {path.name} is no regular file")
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:  # read errors do not name the file
        raise type(error)(error.errno, error.strerror, str(path)) from None
