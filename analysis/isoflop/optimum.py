"""Where a law that saturates in parameters and in tokens is least on an isoFLOP curve.

With L = E - p (1 - e^(-a u))/a - r (1 - e^(-b v))/b the slope along a path is zero where
p e^(-a u) u' = r e^(-b v) (-v'). Its logarithm rises along the path, so bisection finds the one root.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.config import Array
from analysis.isoflop.geometry import Geometry

REACH = 6.0  # e-foldings beyond the middle of the path that are searched on either side
BISECTIONS, NEWTON_STEPS = 8, 7  # the first bring a step within .1 of the root, the others to rounding


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

    def at(self, s: Array) -> tuple[Array, Array, Array, Array]:
        """Return log N, log D and the shares N1 mu / N and f1 mu / f, which are d log N and -d log D."""
        depth = np.exp(s)
        params, flops = self.shape.params(depth), self.shape.flops_per_token(depth)
        shares = self.shape.looped_params * depth / params, self.shape.flops_slope * depth / flops
        return np.log(params), np.log(self.budgets_flops / flops), *shares


def optimum(path: Path, exponents: Array, amplitudes: Array, means: tuple[float, float]) -> Array:
    """Return the log of the optimum for every resample and budget [resamples, budgets].

    exponents [resamples, 2] = (a, b); amplitudes [resamples, budgets or 1, 3] = (E, p, r); `means` are the
    centres of log N and log D. NaN: no minimum; -inf or inf: the curve rises or falls over the whole reach.
    """
    a, b = exponents[:, 0, None], exponents[:, 1, None]
    p, r = amplitudes[..., 1], amplitudes[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.log(r) - np.log(p)

    def slope(s: Array) -> tuple[Array, Array]:
        u, v, du, dv = path.at(s)
        value = log_ratio - b * (v - means[1]) + np.log(dv) + a * (u - means[0]) - np.log(du)
        return value, a * du + b * dv + du - dv  # (log du)' = 1 - du, and so for dv

    low = np.full((len(exponents), len(path.budgets_flops)), path.middle - REACH)
    high = np.full_like(low, path.middle + REACH)
    falls, rises = slope(high)[0] < 0, slope(low)[0] > 0
    found = (low + high) / 2
    for step in range(BISECTIONS + NEWTON_STEPS):
        value, rate = slope(found)
        low, high = np.where(value > 0, low, found), np.where(value > 0, found, high)
        middle = (low + high) / 2
        if step < BISECTIONS:
            found = middle
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            ahead = found - value / rate
        found = np.where((ahead >= low) & (ahead <= high), ahead, middle)
    found = np.where(
        falls | ((p > 0) & (r <= 0)), np.inf, np.where(rises | ((p <= 0) & (r > 0)), -np.inf, found)
    )
    return np.where(((p <= 0) & (r <= 0)) | np.isnan(p), np.nan, found)


def response(
    path: Path, s: Array, exponents: Array, means: tuple[float, float]
) -> tuple[Array, Array, Array]:
    """Return how an optimum [rows, budgets] answers to log p - log r, to a and to b [rows, budgets] each.

    The optimum solves h(s) = 0 with h the log ratio of the two slopes, so ds/dtheta = -h_theta / h_s.
    """
    log_n, log_d, du, dv = path.at(s)
    slope = exponents[:, :1] * du + exponents[:, 1:] * dv + du - dv
    u, v = log_n - means[0], log_d - means[1]
    return 1 / slope, -u / slope, v / slope
