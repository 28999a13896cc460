"""Where a law that saturates in parameters and in tokens is least on an isoFLOP curve.

With L = E - p (1 - e^(-a u))/a - r (1 - e^(-b v))/b the slope along a path is zero where
p e^(-a u) u' = r e^(-b v) (-v'). Its logarithm rises along the path, so bisection finds the one root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.geometry import Geometry

Array = np.ndarray[Any, np.dtype[np.float64]]
REACH = 6.0  # e-foldings beyond the middle of the path that are searched on either side


@dataclass(frozen=True, kw_only=True)
class Path:
    """isoFLOP curves over s, the log of the swept variable, with budgets along the last axis of s."""

    shape: Geometry
    budgets_flops: Array
    middle: float

    def log_params(self, s: Array) -> Array:
        """Return log N(mu)."""
        return np.asarray(np.log(self.shape.params(np.exp(s))))

    def log_tokens(self, s: Array) -> Array:
        """Return log (C / f(mu))."""
        return np.asarray(np.log(self.shape.tokens(np.exp(s), self.budgets_flops)))

    def log_slopes(self, s: Array) -> tuple[Array, Array]:
        """Return the logs of N1 mu / N and f1 mu / f."""
        depth = np.exp(s)
        looped, slope = self.shape.looped_params * depth, self.shape.flops_slope * depth
        return (
            np.log(looped / self.shape.params(depth)),
            np.log(slope / self.shape.flops_per_token(depth)),
        )


def optimum(path: Path, exponents: Array, amplitudes: Array, means: tuple[float, float]) -> Array:
    """Return the log of the optimum for every resample and budget [resamples, budgets].

    exponents [resamples, 2] = (a, b); amplitudes [resamples, budgets or 1, 3] = (E, p, r); `means` are the
    centres of log N and log D. NaN: no minimum; -inf or inf: the curve rises or falls over the whole reach.
    """
    a, b = exponents[:, 0, None], exponents[:, 1, None]
    p, r = amplitudes[..., 1], amplitudes[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.log(r) - np.log(p)

    def slope(s: Array) -> Array:
        log_du, log_dv = path.log_slopes(s)
        return (
            log_ratio
            - b * (path.log_tokens(s) - means[1])
            + log_dv
            + a * (path.log_params(s) - means[0])
            - log_du
        )

    width = np.shape(path.log_tokens(np.zeros((1, 1))))[-1]
    low = np.full((len(exponents), width), path.middle - REACH)
    high = np.full_like(low, path.middle + REACH)
    falls, rises = slope(high) < 0, slope(low) > 0
    for _ in range(45):
        centre = (low + high) / 2
        above = slope(centre) > 0
        low, high = np.where(above, low, centre), np.where(above, centre, high)
    found = (low + high) / 2
    found = np.where(
        falls | ((p > 0) & (r <= 0)), np.inf, np.where(rises | ((p <= 0) & (r > 0)), -np.inf, found)
    )
    return np.where((p <= 0) & (r <= 0), np.nan, found)


def response(
    path: Path, s: Array, exponents: Array, means: tuple[float, float]
) -> tuple[Array, Array, Array]:
    """Return how an optimum [rows, budgets] answers to log p - log r, to a and to b [rows, budgets] each.

    The optimum solves h(s) = 0 with h the log ratio of the two slopes, so ds/dtheta = -h_theta / h_s.
    """
    log_du, log_dv = path.log_slopes(s)
    step = 1e-5
    ahead, behind = path.log_slopes(s + step), path.log_slopes(s - step)
    bend = ((ahead[1] - ahead[0]) - (behind[1] - behind[0])) / (2 * step)
    slope = exponents[:, :1] * np.exp(log_du) + exponents[:, 1:] * np.exp(log_dv) + bend
    u, v = path.log_params(s) - means[0], path.log_tokens(s) - means[1]
    return 1 / slope, -u / slope, v / slope
