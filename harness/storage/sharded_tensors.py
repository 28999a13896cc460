"""Named tensors stored in several files, each with one process's rows; any range of rows can be read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Index = dict[str, dict[str, Any]]  # name -> {"shape": [...], "files": [[file, first row, rows], ...]}


@dataclass(frozen=True, kw_only=True)
class TensorShard:
    """Rows of a tensor of `shape`, from `first_row` on."""

    tensor: Tensor
    first_row: int
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Return the number of rows; a scalar counts as one."""
        return self.tensor.shape[0] if self.shape else 1


def unsharded(tensor: Tensor) -> TensorShard:
    """Return a shard that holds the whole tensor."""
    return TensorShard(tensor=tensor, first_row=0, shape=tuple(tensor.shape))


def write_shards(path: Path, shards: Mapping[str, TensorShard]) -> Index:
    """Write shards to one file and return its part of the index. Shards without rows are left out."""
    kept = {name: shard for name, shard in shards.items() if shard.rows}
    path.touch()
    mode = path.stat().st_mode
    save_file({name: shard.tensor.detach().contiguous() for name, shard in kept.items()}, path)
    path.chmod(mode)  # safetensors makes files that their owner alone may read, whatever the umask
    return {
        name: {"shape": list(shard.shape), "files": [[path.name, shard.first_row, shard.rows]]}
        for name, shard in kept.items()
    }


def merge_indices(parts: Iterable[Index]) -> Index:
    """Return the index of all files from the parts that the processes wrote."""
    index: Index = {}
    for part in parts:
        for name, entry in part.items():
            index.setdefault(name, {"shape": entry["shape"], "files": []})["files"] += entry["files"]
    return index


class ShardReader:
    """Read tensors, or rows of them, from the safetensors files of an index.

    They are copied to memory that torch allocates. In a file they lie at any address, and a matrix product
    may end in other bits where its operands are not aligned: a resumed run would not be the same.
    """

    def __init__(self, folder: Path, index: Index) -> None:
        self._folder, self._index = folder, index
        self._open: dict[str, Any] = {}

    def names(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._index)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor. Raises KeyError if a row of it is in no file."""
        shape = self._index[name]["shape"]
        if not shape:
            return self._file(self._index[name]["files"][0][0]).get_tensor(name).clone()
        return self.rows(name, 0, shape[0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows start to stop - 1 of a tensor. Raises KeyError for a name or row that is in no file."""
        entry = self._index[name]
        parts = []
        for file, first, count in sorted(entry["files"], key=lambda item: item[1]):
            begin, end = max(start, first), min(stop, first + count)
            if begin < end:
                parts.append(self._file(file).get_slice(name)[begin - first : end - first])
        if sum(len(part) for part in parts) != stop - start:
            raise KeyError(f"{name}: rows {start} to {stop} are missing from the files")
        if not parts:
            return torch.empty([0, *entry["shape"][1:]])
        return parts[0].clone() if len(parts) == 1 else torch.cat(parts)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self._folder / name, framework="pt")
        return self._open[name]


# What reading a damaged file or index raises.
READ_ERRORS = (SafetensorError, KeyError, IndexError, TypeError, AttributeError, FileNotFoundError)
