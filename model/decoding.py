"""How tokens are decoded: to which depth, when they leave the loop, which keys and values are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig
from model.config_validation import ConfigError

ExitRule = Literal["fixed", "convergence", "entropy"]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The loops of a token and what it leaves behind for those after it.

    Parameters
    ----------
    depth : loops T, at most.
    kv_budget : loops whose keys and values are kept, the last k; None keeps all.
    exit : "convergence" leaves after the first loop that changes the state by less than `threshold`, relative
        to its norm; "entropy" after the first whose prediction has less than `threshold` nats; "fixed" never.

    Notes
    -----
    Under a budget, loop t reads the kept loop of earlier tokens that is nearest to it: max(t, T - k + 1),
    counted from 1; tokens that are read together read each other at every loop. A token that leaves after
    loop e has the keys and values of loop e in all later loops.

    Raises
    ------
    ConfigError : a budget beyond the depth, a negative threshold.
    """

    depth: int
    kv_budget: int | None = None
    exit: ExitRule = "fixed"
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError(f"depth={self.depth} must be at least 1")
        if self.kv_budget is not None and not 1 <= self.kv_budget <= self.depth:
            raise ConfigError(f"kv_budget={self.kv_budget} must be from 1 to the depth, {self.depth}")
        if not self.threshold >= 0:
            raise ConfigError(f"threshold={self.threshold} must be at least 0")

    @property
    def kept_loops(self) -> int:
        """Return how many loops keep keys and values of their own."""
        return self.kv_budget or self.depth

    def slot(self, loop: int) -> int:
        """Return which of the kept loops holds the keys and values of a loop, both counted from 0."""
        return max(0, loop - (self.depth - self.kept_loops))

    def cached_layers(self, config: ModelConfig) -> int:
        """Return how many layers of keys and values a token leaves behind, the core's once per kept loop."""
        return config.layers + (self.kept_loops - 1) * config.core_layers


def kv_bytes_per_token(config: ModelConfig, decoding: Decoding, *, element_bytes: int) -> int:
    """Return the bytes of keys and values that a token leaves behind."""
    return 2 * config.kv_width * decoding.cached_layers(config) * element_bytes
