"""How many loops each sequence gets: the distributions of the depth, their moments, counter-based draws."""

from __future__ import annotations

import hashlib
import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from model.config import ModelConfig

if TYPE_CHECKING:
    import numpy as np

LOG_NORMAL_SIGMA = 0.5  # spread of log rate in the recurrent-depth models' sampler
_QUADRATURE_NODES = 96
_TAIL = 1e-18  # probability left out of a distribution's table


def counter_seed(*parts: int | str) -> int:
    """Return a 63-bit hash of the parts, the same in every process and on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _poisson(rate: float, count: int) -> float:
    return math.exp(count * math.log(rate) - rate - math.lgamma(count + 1))


@lru_cache(maxsize=256)
def _distribution(name: str, mean: float) -> tuple[float, ...]:
    """Return P(T = 1), P(T = 2), ..., cut where the rest is below rounding."""
    if name == "fixed":
        return (0.0,) * (int(mean) - 1) + (1.0,)
    rates, shift = [(mean, 1.0)], 0
    if name == "poisson_lognormal":
        rates, shift = _log_normal_rates(mean), 1
    longest = max(rate + 12 * math.sqrt(rate) + 30 for rate, weight in rates if weight > _TAIL)
    counts = [sum(weight * _poisson(rate, n) for rate, weight in rates) for n in range(math.ceil(longest))]
    # A clamped Poisson puts its zeros at one; the log-normal one adds one to every draw.
    table = counts if shift else [counts[0] + counts[1], *counts[2:]]
    total = math.fsum(table)
    return tuple(probability / total for probability in table)


def _log_normal_rates(mean: float) -> list[tuple[float, float]]:
    """Return Gauss-Hermite nodes (rate, weight) of a log-normal rate with this mean."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE_NODES)
    centre = math.log(mean) - LOG_NORMAL_SIGMA**2 / 2
    rates = np.exp(centre + LOG_NORMAL_SIGMA * nodes)
    return list(zip(rates.tolist(), (weights / weights.sum()).tolist(), strict=True))


def depth_probabilities(config: ModelConfig) -> tuple[float, ...]:
    """Return P(T = 1), P(T = 2), ... of one sequence's depth.

    poisson: max(1, Poisson(µ)), as published. stratified: the same for every sequence. fixed: always µ.
    poisson_lognormal: 1 + Poisson(exp(N(log µ - σ²/2, σ²))), σ = 1/2, as in the recurrent-depth models
    (arXiv 2502.05171); its mean is µ + 1. A plain transformer counts as depth 1.
    """
    if config.kind == "transformer":
        return _distribution("fixed", 1.0)
    name = "poisson" if config.depth_sampling == "stratified" else config.depth_sampling
    return _distribution(name, float(config.mean_recurrence))


@cache
def expected_depths(config: ModelConfig) -> tuple[float, float]:
    """Return E[T] and E[min(T, µ_bwd)], exact sums over the sampler's distribution."""
    limit = config.resolved_backprop_depth
    probabilities = depth_probabilities(config)
    loops = math.fsum(p * depth for depth, p in enumerate(probabilities, start=1))
    backprop = math.fsum(p * min(depth, limit) for depth, p in enumerate(probabilities, start=1))
    return loops, backprop


def draw_depths(config: ModelConfig, *, seed: int, step: int, batch: int) -> np.ndarray:
    """Draw the depths of a step's global batch, int64 [batch]; element i depends on (seed, step, i) alone.

    Ranks and micro-batches take slices of it, so neither changes a draw.
    """
    import numpy as np

    key = counter_seed("depth", seed, step)
    generator = np.random.Generator(np.random.Philox(key))
    if config.depth_per == "batch":
        uniform = np.full(batch, generator.random())
    elif config.depth_sampling == "stratified":
        uniform = _stratified_uniform(key, batch)
    else:
        uniform = generator.random(batch)
    cumulative = np.cumsum(depth_probabilities(config))
    cumulative[-1] = 1.0
    return np.searchsorted(cumulative, uniform, side="right").astype(np.int64) + 1


def _stratified_uniform(key: int, batch: int) -> np.ndarray:
    """Return Owen-scrambled van der Corput points, float64 [batch].

    Each point alone is uniform. Any aligned run of 2^m neighbours holds one point per 2^-m of the unit
    interval, so the sum of depths hardly varies between steps, nor between ranks or micro-batches that are
    such runs. Binary digit l of point i is bit l of i, flipped by a hash of the bits before it.
    """
    import numpy as np

    index = np.arange(batch, dtype=np.uint64)
    level = np.arange(53, dtype=np.uint64)[:, None]
    prefix = index & ((np.uint64(1) << level) - np.uint64(1))
    flip = _mix(_mix(prefix ^ np.uint64(key)) + level)
    digit = ((index >> level) ^ flip) & np.uint64(1)
    return (digit * 0.5 ** (level.astype(np.float64) + 1)).sum(axis=0)


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers (the finaliser of SplitMix64)."""
    import numpy as np

    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
