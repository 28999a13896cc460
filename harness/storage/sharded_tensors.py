"""Named tensors in several files, each file a process's rows of them; any rows can be read back from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Index = dict[str, dict[str, Any]]  # name -> shape, and files [file, first row, rows]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows `first_row`, `first_row` + 1, ... of a tensor of `shape`; all of them by default."""

    tensor: Tensor
    first_row: int
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Count the rows; a scalar counts as one."""
        return self.tensor.shape[0] if self.shape else 1


def whole(tensor: Tensor) -> Piece:
    """Give all of a tensor as one piece."""
    return Piece(tensor=tensor, first_row=0, shape=tuple(tensor.shape))


def write_pieces(path: Path, pieces: Mapping[str, Piece]) -> Index:
    """Write one file of pieces; returns its part of the index. Pieces without rows are left out."""
    kept = {name: piece for name, piece in pieces.items() if piece.rows}
    save_file({name: piece.tensor.detach().contiguous() for name, piece in kept.items()}, path)
    return {
        name: {"shape": list(piece.shape), "files": [[path.name, piece.first_row, piece.rows]]}
        for name, piece in kept.items()
    }


def merged(parts: Iterable[Index]) -> Index:
    """Join the parts of an index that several processes wrote."""
    index: Index = {}
    for part in parts:
        for name, entry in part.items():
            index.setdefault(name, {"shape": entry["shape"], "files": []})["files"] += entry["files"]
    return index


class PieceReader:
    """Read tensors, or rows of them, out of the files of an index; nothing is ever unpickled."""

    def __init__(self, folder: Path, index: Index) -> None:
        self._folder, self._index = folder, index
        self._open: dict[str, Any] = {}

    def names(self) -> list[str]:
        """List the tensors."""
        return list(self._index)

    def whole(self, name: str) -> Tensor:
        """Read one tensor."""
        shape = self._index[name]["shape"]
        if not shape:
            return self._file(self._index[name]["files"][0][0]).get_tensor(name)
        return self.rows(name, 0, shape[0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read rows start..stop - 1 of a tensor. Raises KeyError for a name or rows that no file holds."""
        entry = self._index[name]
        found = []
        for file, first, count in sorted(entry["files"], key=lambda item: item[1]):
            begin, end = max(start, first), min(stop, first + count)
            if begin < end:
                found.append(self._file(file).get_slice(name)[begin - first : end - first])
        if sum(len(part) for part in found) != stop - start:
            raise KeyError(f"{name}: rows {start} to {stop} are not all there")
        if not found:
            return torch.empty([0, *entry["shape"][1:]])
        return found[0] if len(found) == 1 else torch.cat(found)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self._folder / name, framework="pt")
        return self._open[name]


UNREADABLE = (SafetensorError, KeyError, OSError)  # what reading a damaged file or index raises
