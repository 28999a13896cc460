"""An optimiser whose work and state are distributed over the processes of a run.

Muon needs whole matrices, so each matrix has one owner: the process that keeps its momentum, orthogonalises
its update and sends the new weights to the others. AdamW acts on every weight alone, so each process updates
the rows that it holds. Both use the update rules of `harness.optim.optimizer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.distributed.parallel import Replica, local_rows, row_range
from harness.distributed.process_group import Ranks
from harness.optim.parameter_groups import describe_groups, optimizer_for, runs_under_muon
from harness.run.config import OptimizerConfig
from harness.storage.sharded_tensors import ShardReader, TensorShard, unsharded


class ShardedOptimizer:
    """Optimiser of a replica; every process calls every method.

    A single process owns everything, and this is the plain optimiser.
    """

    def __init__(self, replica: Replica, config: OptimizerConfig) -> None:
        ranks = self._ranks = replica.ranks
        self._sharded = replica.sharded
        self._parameters = dict(replica.model.named_parameters())
        self._shapes = {n: p.shape for n, p in self._parameters.items() if runs_under_muon(n, p, config)}
        owners = assign_owners({name: shape.numel() for name, shape in self._shapes.items()}, ranks.world)
        self._exchange = MatrixExchange(shapes=self._shapes, owners=owners, ranks=ranks)
        self._working = {
            name: self._working_tensor(name, parameter)
            for name, parameter in self._parameters.items()
            if owners.get(name, ranks.rank) == ranks.rank
        }
        self.refresh_matrices()
        self._inner = optimizer_for(self._working.items(), config, replica.model.config.width)

    def set_schedule(self, lr_factor: float, weight_decay_factor: float) -> None:
        """Set learning rates and weight decays to these multiples of their peaks."""
        self._inner.set_schedule(lr_factor, weight_decay_factor)

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights from their gradients and drop the gradients."""
        if self._sharded:
            self._gather_gradients()
        self._inner.step()
        if self._sharded:
            self._return_rows()
        elif self._shapes and self._ranks.world > 1:
            updated = self._exchange.broadcast(self._working, next(iter(self._working.values())))
            for name, matrix in updated.items():
                self._parameters[name].copy_(matrix)
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Set all gradients to None."""
        for parameter in (*self._parameters.values(), *self._working.values()):
            parameter.grad = None

    def describe_groups(self, *, names: bool = True) -> str:
        """Return a table of the parameter groups that this process works on."""
        return describe_groups(self._inner.param_groups, names=names)

    @torch.no_grad()
    def refresh_matrices(self) -> None:
        """Send the rows of sharded matrices to their owners; call it after the weights were replaced."""
        if self._sharded and self._shapes:
            rows = {name: local_rows(self._parameters[name]) for name in self._shapes}
            for name, matrix in self._exchange.gather_rows(rows).items():
                self._working[name].copy_(matrix)

    def shards(self) -> dict[str, TensorShard]:
        """Return the state that this process saves: its rows and matrices; the first also saves the rest."""
        return {
            key: self._shard(key, t) for key, t in self._inner.state_tensors().items() if self._saves(key)
        }

    def load(self, stored: ShardReader) -> None:
        """Restore a state bit for bit, saved by any number of processes.

        Raises ValueError if it is that of another optimiser.
        """
        own = self._inner.state_tensors()
        missing = sorted(own.keys() - set(stored.names()))
        if missing:
            raise ValueError(f"not the state of this optimiser: missing {missing}")
        self._inner.load_state_tensors({key: self._read(stored, key) for key in own})

    def _working_tensor(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        """Return what the inner optimiser updates: the parameter, this process's rows of it, or all rows."""
        if not self._sharded:
            return parameter
        rows = local_rows(parameter.detach())
        return nn.Parameter(rows.new_empty(parameter.shape) if name in self._shapes else rows)

    def _gather_gradients(self) -> None:
        gradients = {
            name: local_rows(parameter.grad)
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        rows = {name: gradients[name] for name in self._shapes if name in gradients}
        whole_matrices = self._exchange.gather_rows(rows) if rows else {}
        for name, parameter in self._working.items():
            parameter.grad = (whole_matrices if name in self._shapes else gradients).get(name)

    def _return_rows(self) -> None:
        # AdamW has updated the rows in place; only the matrices of Muon have to come back.
        if self._shapes:
            like = local_rows(next(iter(self._parameters.values())))
            for name, rows in self._exchange.scatter_rows(self._working, like).items():
                local_rows(self._parameters[name]).copy_(rows)

    def _saves(self, key: str) -> bool:
        name = key.rpartition(".")[0]
        return self._ranks.first or name in self._shapes or (self._sharded and name in self._parameters)

    def _rows(self, key: str) -> tuple[int, int] | None:
        """Return the range of rows that the state of a key covers, None if it covers all."""
        name = key.rpartition(".")[0]
        if not self._sharded or name in self._shapes or name not in self._parameters:
            return None
        return row_range(self._parameters[name].shape[0], self._ranks.rank, self._ranks.world)

    def _shard(self, key: str, tensor: Tensor) -> TensorShard:
        rows = self._rows(key)
        if rows is None:
            return unsharded(tensor)
        return TensorShard(
            tensor=tensor, first_row=rows[0], shape=tuple(self._parameters[key.rpartition(".")[0]].shape)
        )

    def _read(self, stored: ShardReader, key: str) -> Tensor:
        rows = self._rows(key)
        return stored.tensor(key) if rows is None else stored.rows(key, *rows)


def assign_owners(sizes: Mapping[str, int], world: int) -> dict[str, int]:
    """Return the owner of every matrix: the largest first, each to the process with the smallest load."""
    load = [0] * world
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner = min(range(world), key=lambda rank: (load[rank], rank))
        owners[name] = owner
        load[owner] += sizes[name]
    return owners


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
