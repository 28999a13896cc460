"""Checkpoints: written atomically, with checksums; loading executes no code.

A checkpoint is a folder of safetensors files and `state.json`, which holds the step, the counters, a checksum
of every file and an index of tensors. Each process of a run writes its own shards. Readers get whole tensors
or any rows of them, independent of the number of processes that wrote them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.distributed.process_group import ALONE, Ranks
from harness.storage.files import read_text, write_json
from harness.storage.sharded_tensors import (
    READ_ERRORS,
    Index,
    ShardReader,
    TensorShard,
    merge_indices,
    unsharded,
    write_shards,
)
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

    def copied(self) -> Checkpoint:
        """Return the same state in host memory of its own."""
        model, optimizer = _host_copies(self.model), _host_copies(self.optimizer)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the copies were only begun
        return replace(self, model=model, optimizer=optimizer)


@dataclass(frozen=True, kw_only=True)
class OpenCheckpoint:
    """An intact checkpoint on disk, whose tensors are read on demand."""

    step: int
    model: ShardReader
    optimizer: ShardReader
    counters: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PendingSave:
    """A checkpoint whose files a thread writes; it is none until `publish` has returned."""

    target: Path
    temporary: Path
    step: int
    counters: dict[str, Any]
    written: Future[tuple[dict[str, Index], dict[str, str]]]  # indices by part, checksums by file
    keep: int
    marked: Collection[int]
    ranks: Ranks

    def is_written(self) -> bool:
        """Return True once this process's files are on disk, or could not be written."""
        return self.written.done()

    def publish(self) -> Path:
        """Wait for the files and make the checkpoint the newest. Every process of the run must call it."""
        written = self.ranks.all_gather(self.written.result())
        state = {
            "step": self.step,
            "counters": self.counters,
            "world": self.ranks.world,
            "sha256": {name: digest for _, digests in written for name, digest in digests.items()},
            **{part: merge_indices(index[part] for index, _ in written) for part in PARTS},
        }
        self.ranks.once(lambda: _publish(self.temporary, self.target, state, self.keep, self.marked))
        return self.target


def save(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    keep: int,
    marked: Collection[int] = (),
    ranks: Ranks = ALONE,
) -> Path:
    """Write `checkpoint` to `folder`/step_<n> and return its path. Every process of the run must call it.

    Parameters
    ----------
    keep : number of newest checkpoints that are kept; older ones are deleted.
    marked : steps whose checkpoints are always kept, and not counted in `keep`.
    """
    return begin_save(folder, checkpoint, keep=keep, marked=marked, ranks=ranks).publish()


def begin_save(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    keep: int,
    marked: Collection[int] = (),
    ranks: Ranks = ALONE,
) -> PendingSave:
    """Begin to write `checkpoint` in a thread; like `save`, which waits.

    Its tensors may not change before they are written: pass `copied()` to go on with the training.
    """
    target = folder / f"step_{checkpoint.step:08d}"
    temporary = folder / f".{target.name}.partial"
    ranks.once(lambda: _clear(folder, temporary))
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
    written = thread.submit(_write_shards, temporary, checkpoint, ranks)
    thread.shutdown(wait=False)
    return PendingSave(
        target=target,
        temporary=temporary,
        step=checkpoint.step,
        counters=checkpoint.counters,
        written=written,
        keep=keep,
        marked=marked,
        ranks=ranks,
    )


def keep_only(folder: Path, steps: Collection[int]) -> None:
    """Delete all checkpoints under `folder` except those of these steps."""
    kept = {f"step_{step:08d}" for step in steps}
    for path in checkpoint_folders(folder):
        if path.name not in kept:
            shutil.rmtree(path)


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


def _host_copies(tensors: Tensors) -> Tensors:
    return {
        name: replace(each, tensor=_host_copy(each.tensor))
        if isinstance(each, TensorShard)
        else _host_copy(each)
        for name, each in tensors.items()
    }


def _host_copy(tensor: Tensor) -> Tensor:
    on_gpu = tensor.device.type == "cuda"
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
    return copy.copy_(tensor.detach(), non_blocking=on_gpu)


def _clear(folder: Path, temporary: Path) -> None:
    for torn in folder.glob(".step_*"):
        shutil.rmtree(torn)
    folder.mkdir(exist_ok=True)  # not its parents: a run's folder that is gone is not made anew
    temporary.mkdir()


def _write_shards(
    folder: Path, checkpoint: Checkpoint, ranks: Ranks
) -> tuple[dict[str, Index], dict[str, str]]:
    """Write this process's shards; return the index of each part and the checksums of the files."""
    suffix = "" if ranks.world == 1 else f"_{ranks.rank:05d}_of_{ranks.world:05d}"
    indices, sums = {}, {}
    for part in PARTS:
        tensors: Tensors = getattr(checkpoint, part)
        shards = {name: t if isinstance(t, TensorShard) else unsharded(t) for name, t in tensors.items()}
        path = folder / f"{part}{suffix}.safetensors"
        indices[part] = write_shards(path, shards)
        sums[path.name] = _sha256(path)
        _sync(path)
    return indices, sums


def _publish(
    temporary: Path, target: Path, state: dict[str, Any], keep: int, marked: Collection[int]
) -> None:
    write_json(temporary / "state.json", state)
    _sync(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    _sync(target.parent)
    # A checkpoint after this step was corrupt, and the run resumed from one before it.
    usable = [path for path in checkpoint_folders(target.parent) if path.name <= target.name]
    permanent = {target.with_name(f"step_{step:08d}") for step in marked}
    recent = [path for path in usable if path not in permanent]
    kept = {*recent[-keep:], *(path for path in usable if path in permanent)}
    for path in checkpoint_folders(target.parent):
        if path not in kept:
            shutil.rmtree(path)


def _check_sums(folder: Path, expected: dict[str, str]) -> None:
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: _sha256(folder / name), expected)
        for name, digest in zip(expected, digests, strict=True):
            if digest != expected[name]:
                raise CheckpointError(f"checkpoint {folder} is corrupt: {name} does not match its checksum")


def _sha256(path: Path) -> str:
    if path.exists() and not path.is_file():  # to open a pipe would wait for ever
        raise CheckpointError(f"checkpoint {path.parent} is corrupt: {path.name} is no regular file")
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:  # read errors do not name the file
        raise type(error)(error.errno, error.strerror, str(path)) from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
