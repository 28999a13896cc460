"""Writing of checkpoints: atomic, by a thread if the training is to go on, by all processes together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.distributed.process_group import ALONE, Ranks
from harness.storage.files import write_json
from harness.storage.sharded_tensors import Index, TensorShard, merge_indices, unsharded, write_shards
from harness.training.checkpoint import PARTS, Checkpoint, Tensors, checkpoint_folders, sha256_of


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
        """Wait for the files and make the checkpoint the newest. Every process of the run must call it.

        An error of one process is raised in all: none would else know why the others are gone.
        """
        written = []
        for outcome in self.ranks.all_gather(self.written.exception() or self.written.result()):
            if isinstance(outcome, BaseException):
                raise outcome
            written.append(outcome)
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

    Its tensors may not change before they are written: pass `host_copy` of it to go on with the training.
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


def host_copy(checkpoint: Checkpoint) -> Checkpoint:
    """Return the same state in host memory of its own."""
    model, optimizer = _host_copies(checkpoint.model), _host_copies(checkpoint.optimizer)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # the copies were only begun
    return replace(checkpoint, model=model, optimizer=optimizer)


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
        sums[path.name] = sha256_of(path)
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
