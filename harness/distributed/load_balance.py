"""Assignment of the sequences of a batch to processes: equal numbers and equal work. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from model.config import ModelConfig
from model.config_validation import ConfigError
from model.flops import flops_per_token


def check_divisible(batch_sequences: int, world: int) -> None:
    """Raise ConfigError unless the batch divides evenly over `world` processes."""
    if batch_sequences % world:
        near = max(world, round(batch_sequences / world) * world)
        raise ConfigError(
            f"training.batch_sequences={batch_sequences} does not divide over {world} processes: "
            f"use a multiple of {world}, such as {near}"
        )


def assign_sequences(model: ModelConfig, depths: Sequence[int], world: int) -> list[list[int]]:
    """Return the indices of the sequences of each process, ascending.

    Notes
    -----
    All processes get the same number. Sequences are taken from the deepest to the shallowest, `world` at a
    time, and the most expensive of them goes to the process with the least work so far. Work is the FLOPs at
    the sequence's own depth.
    """
    if world == 1:
        return [list(range(len(depths)))]
    flops = flops_per_token(model, "paper")
    limit = model.resolved_backprop_depth
    cost = [flops.at(depth, min(depth, limit)) for depth in depths]
    by_cost = sorted(range(len(depths)), key=lambda i: (-cost[i], i))
    assigned: list[list[int]] = [[] for _ in range(world)]
    load = [0.0] * world
    for start in range(0, len(by_cost), world):
        takers = sorted(range(world), key=lambda rank: (load[rank], rank))
        for index, rank in zip(by_cost[start : start + world], takers, strict=True):
            assigned[rank].append(index)
            load[rank] += cost[index]
    return [sorted(indices) for indices in assigned]
