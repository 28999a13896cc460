"""Distribution of matrices over processes: one owner each, and the exchange of rows with the owners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from harness.distributed.process_group import Ranks


def assign_owners(sizes: Mapping[str, int], world: int) -> dict[str, int]:
    """Return the owner of every matrix: the largest first, each to the process with the smallest load."""
    load = [0] * world
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner = min(range(world), key=lambda rank: (load[rank], rank))
        owners[name] = owner
        load[owner] += sizes[name]
    return owners


def row_range(rows: int, rank: int, world: int) -> tuple[int, int]:
    """Return start and stop of the rows of a sharded tensor on `rank`, as torch.chunk splits them."""
    size = -(-rows // world)
    return min(rank * size, rows), min((rank + 1) * size, rows)


@dataclass(frozen=True, kw_only=True)
class MatrixExchange:
    """Move matrices of the given shapes between their owners and all processes, in one message each way."""

    shapes: Mapping[str, torch.Size]
    owners: Mapping[str, int]
    ranks: Ranks

    @property
    def mine(self) -> list[str]:
        """Return the names of the matrices of this process."""
        return self.owned_by(self.ranks.rank)

    def owned_by(self, rank: int) -> list[str]:
        """Return the names of the matrices of process `rank`."""
        return [name for name, owner in self.owners.items() if owner == rank]

    def gather_rows(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Send this process's rows to their owners and return the matrices that it owns, whole."""
        others = range(self.ranks.world)
        mine = [name for name in self.mine if name in rows]
        sent = [[rows[name] for name in self.owned_by(rank) if name in rows] for rank in others]
        shapes = [[self._rows_shape(name, rank) for name in mine] for rank in others]
        parts = _exchange(sent, shapes, next(iter(rows.values())))
        return {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(mine)}

    def scatter_rows(self, matrices: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """Send the rows of this process's matrices back and return its own rows of all matrices."""
        others = range(self.ranks.world)
        sent = [[matrices[name][slice(*self._range(name, rank))] for name in self.mine] for rank in others]
        names = [self.owned_by(rank) for rank in others]
        shapes = [[self._rows_shape(name, self.ranks.rank) for name in owned] for owned in names]
        parts = _exchange(sent, shapes, like)
        return {
            n: t for owned, part in zip(names, parts, strict=True) for n, t in zip(owned, part, strict=True)
        }

    def broadcast(self, matrices: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """Send this process's matrices, whole, to all processes and return those of the others."""
        others = range(self.ranks.world)
        own = [matrices[name] for name in self.mine]
        sent = [[] if rank == self.ranks.rank else own for rank in others]
        names = [[] if rank == self.ranks.rank else self.owned_by(rank) for rank in others]
        parts = _exchange(sent, [[self.shapes[name] for name in owned] for owned in names], like)
        return {
            n: t for owned, part in zip(names, parts, strict=True) for n, t in zip(owned, part, strict=True)
        }

    def _range(self, name: str, rank: int) -> tuple[int, int]:
        return row_range(self.shapes[name][0], rank, self.ranks.world)

    def _rows_shape(self, name: str, rank: int) -> torch.Size:
        start, stop = self._range(name, rank)
        return torch.Size([stop - start, *self.shapes[name][1:]])


def _exchange(
    sent: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[torch.Size]], like: Tensor
) -> list[list[Tensor]]:
    """Send the tensors sent[r] to process r and return what each r sent, tensors of shapes[r]."""
    outgoing = [sum(tensor.numel() for tensor in tensors) for tensors in sent]
    incoming = [sum(shape.numel() for shape in group) for group in shapes]
    buffer = like.new_empty(sum(incoming))
    flat = _flat((tensor for tensors in sent for tensor in tensors), like)
    dist.all_to_all_single(buffer, flat, incoming, outgoing)
    groups = buffer.split(incoming)
    return [
        [part.view(shape) for part, shape in zip(group.split([s.numel() for s in of]), of, strict=True)]
        for group, of in zip(groups, shapes, strict=True)
    ]


def _flat(tensors: Iterable[Tensor], like: Tensor) -> Tensor:
    flat = [tensor.reshape(-1) for tensor in tensors]
    return torch.cat(flat) if flat else like.new_empty(0)
