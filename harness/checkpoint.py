"""Checkpoints that are whole or absent: written aside, synced, renamed, checksummed; loading runs no code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.files import write_json
from model.checked import ConfigError

Tensors = dict[str, Tensor]


class CheckpointError(ConfigError):
    """No checkpoint of the run can be read."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after `step` optimiser steps; `counters` are JSON values that resume needs beside the tensors."""

    step: int
    model: Tensors
    optimizer: Tensors
    counters: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `checkpoint` to `folder`/step_<n> and delete all but the newest `keep`; returns its path."""
    target = folder / f"step_{checkpoint.step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    for torn in folder.glob(".step_*"):
        shutil.rmtree(torn)
    temporary.mkdir(parents=True)
    save_file(checkpoint.model, temporary / "model.safetensors")
    save_file(checkpoint.optimizer, temporary / "optimizer.safetensors")
    sums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
    for name in sums:
        _sync(temporary / name)
    write_json(
        temporary / "state.json", {"step": checkpoint.step, "sha256": sums, "counters": checkpoint.counters}
    )
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    _sync(folder)
    # One past this step was passed over as corrupt when the run resumed before it.
    whole = [path for path in found(folder) if path.name <= target.name]
    for path in found(folder):
        if path not in whole[-keep:]:
            shutil.rmtree(path)
    return target


def found(folder: Path) -> list[Path]:
    """Return the checkpoints under `folder`, oldest first, whole or not."""
    return sorted(folder.glob("step_*"))


def load(path: Path, *, weights_only: bool = False) -> Checkpoint:
    """Read one checkpoint; raises CheckpointError when a file is missing, torn or altered."""
    try:
        state = json.loads((path / "state.json").read_text())
        for name, expected in state["sha256"].items():
            if _sha256(path / name) != expected:
                raise CheckpointError(f"checkpoint {path} is corrupt: {name} does not match its checksum")
        return Checkpoint(
            step=state["step"],
            model=load_file(path / "model.safetensors"),
            optimizer={} if weights_only else load_file(path / "optimizer.safetensors"),
            counters=state["counters"],
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"checkpoint {path} is corrupt: {error!r}") from error


def load_newest(folder: Path, *, weights_only: bool = False) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None where there is none at all.

    A corrupt one is passed over with a warning; when all are corrupt, raises CheckpointError and leaves them.
    """
    paths = found(folder)
    for path in reversed(paths):
        try:
            return load(path, weights_only=weights_only)
        except CheckpointError as error:
            if path == paths[0]:
                raise CheckpointError(
                    f"{error}; no other is whole: delete {folder} to start again"
                ) from error
            warnings.warn(f"{error}; the one before it is used", stacklevel=2)
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
