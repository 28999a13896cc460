"""Parameters, FLOPs and tokens along an isoFLOP curve, and where a law of the loss is least on it.

Effective parameters and FLOPs per token are affine in the mean recurrence if the backpropagated share of the
loops is fixed. Four constants therefore describe a group of runs. A study of plain transformers is the case
N = x and f = 6 x with the size x as the swept variable.

The minimum is that of L = E - p (1 - e^(-a u))/a - r (1 - e^(-b v))/b, with u and v the centred logs of N and
D. The slope along a curve is zero where p e^(-a u) u' = r e^(-b v) (-v'). The log of the ratio of both sides
rises along the curve, so it has one root, found by bisection and Newton steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.config import Array, Mask, ParameterCount
from analysis.tables.schema import TableError

MIN_SWEPT = 4  # values on a curve: a parabola has three parameters, through three points it has no error
MIN_BUDGETS = 3  # with an accepted optimum, for a power law
FLOPS_PER_PARAM = 6.0  # forward and backward, per token
REACH = 6.0  # e-foldings beyond the middle of the path that are searched on either side
BISECTIONS, NEWTON_STEPS = 8, 7  # bisection ends within 0.1 of the root, Newton at rounding


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """N(mu) = static + looped mu and f(mu) = fixed + slope mu, with backprop_share mu loops of gradient."""

    static_params: float
    looped_params: float
    flops_fixed: float  # FLOPs per token
    flops_slope: float  # FLOPs per token and mean recurrence
    backprop_share: float  # backprop_depth / mean_recurrence on the continuous curve

    def params(self, mean_recurrence: Array | float) -> Array:
        """Return the effective number of parameters, with the loops unrolled."""
        return self.static_params + self.looped_params * np.asarray(mean_recurrence, float)

    def flops_per_token(self, mean_recurrence: Array | float) -> Array:
        """Return training FLOPs per token on the continuous curve f(mu, backprop_share * mu)."""
        return self.flops_fixed + self.flops_slope * np.asarray(mean_recurrence, float)

    def tokens(self, mean_recurrence: Array | float, flops: Array | float) -> Array:
        """Return the tokens that a budget of `flops` buys."""
        return np.asarray(flops, float) / self.flops_per_token(mean_recurrence)

    def flops_of(self, params: Array, tokens: Array) -> Array:
        """Return the training FLOPs of runs of so many parameters and tokens, on the continuous curve."""
        return self.flops_per_token((params - self.static_params) / self.looped_params) * tokens


# A plain transformer under C = 6 N D, swept over its size.
PLAIN_TRANSFORMER = Geometry(
    static_params=0.0, looped_params=1.0, flops_fixed=0.0, flops_slope=6.0, backprop_share=1.0
)


def geometry(looped: pd.DataFrame, parameter_count: ParameterCount) -> Geometry:
    """Return the constants that all looped runs of a group share.

    Raises TableError if they differ between the runs.
    """
    columns = ("flops_per_token_fixed", "flops_per_token_per_loop", "flops_per_token_per_backprop_loop")
    fixed, per_loop, per_backprop = (_shared(looped, name) for name in columns)
    share = backprop_share(looped)
    slope = per_loop + share * per_backprop
    static, looped_params = _counted(looped, parameter_count, fixed, slope)
    return Geometry(
        static_params=static,
        looped_params=looped_params,
        flops_fixed=fixed,
        flops_slope=slope,
        backprop_share=share,
    )


def _counted(looped: pd.DataFrame, count: ParameterCount, fixed: float, slope: float) -> tuple[float, float]:
    """Return the parameters that N counts once and those it counts per loop."""
    if count == "flops_over_six":
        if (looped["accounting"] == "paper").all():
            fixed += released_gap(looped)
        return fixed / FLOPS_PER_PARAM, slope / FLOPS_PER_PARAM
    static = _shared(looped, "n_params_other")
    if count in ("no_token_embedding", "all"):
        static += _shared(looped, "n_params_value_embedding")
    if count == "all":
        static += _shared(looped, "n_params_embedding")
    return static, _shared(looped, "n_params_core")


def released_gap(runs: pd.DataFrame) -> float:
    """Return the FLOPs per token of the released accounting less those of the paper's.

    The paper counts the unembedding but not the value-embedding tables; the released code does the opposite.
    """
    tables, unembedding = (_shared(runs, f"n_params_{name}") for name in ("value_embedding", "embedding"))
    return FLOPS_PER_PARAM * (tables - unembedding)


def backprop_share(looped: pd.DataFrame) -> float:
    """Return the common backprop_depth / mean_recurrence, or 1/2 if it is the staircase ceil(mu / 2)."""
    shares = (looped["backprop_depth"] / looped["mean_recurrence"]).to_numpy(float)
    return float(shares[0]) if np.allclose(shares, shares[0]) else 0.5


def on_isoflop_curve(looped: pd.DataFrame, share: float) -> Mask:
    """Return a mask of the runs whose FLOPs lie on the continuous curve.

    Those of odd mu with ceil(mu / 2) loops of gradient do not, nor do those of mu = 1.
    """
    depth, backprop = looped["mean_recurrence"].to_numpy(float), looped["backprop_depth"].to_numpy(float)
    return np.asarray(np.isclose(backprop, share * depth) & (depth > 1))


def _shared(frame: pd.DataFrame, column: str) -> float:
    values = frame[column].to_numpy(float)
    if not np.allclose(values, values[0], rtol=1e-9):
        raise TableError(f"{column} differs within one group: {values.min():g} and {values.max():g}")
    return float(values[0])


@dataclass(frozen=True, kw_only=True)
class IsoflopPath:
    """isoFLOP curves over s, the log of the swept variable; the last axis of s holds the budgets."""

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


def log_optimum(path: IsoflopPath, exponents: Array, amplitudes: Array, means: tuple[float, float]) -> Array:
    """Return the log of the optimum for every resample and budget [resamples, budgets].

    Parameters
    ----------
    exponents : (a, b) [resamples, 2].
    amplitudes : (E, p, r) [resamples, budgets or 1, 3].
    means : of log N and log D, where the fit is centred.

    Returns
    -------
    NaN where there is no minimum, -inf or inf where the curve rises or falls over the whole searched range.
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
    root = (low + high) / 2
    for step in range(BISECTIONS + NEWTON_STEPS):
        value, rate = slope(root)
        low, high = np.where(value > 0, low, root), np.where(value > 0, root, high)
        middle = (low + high) / 2
        if step < BISECTIONS:
            root = middle
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            ahead = root - value / rate
        before, root = root, np.where((ahead >= low) & (ahead <= high), ahead, middle)
        if np.array_equal(root, before, equal_nan=True):
            break
    root = np.where(
        falls | ((p > 0) & (r <= 0)), np.inf, np.where(rises | ((p <= 0) & (r > 0)), -np.inf, root)
    )
    return np.where(((p <= 0) & (r <= 0)) | np.isnan(p), np.nan, root)


def optimum_slopes(
    path: IsoflopPath, s: Array, exponents: Array, means: tuple[float, float]
) -> tuple[Array, Array, Array]:
    """Return the derivatives of optima `s` [rows, budgets] by log p - log r, by a and by b, shaped as `s`.

    An optimum solves h(s) = 0 with h the log ratio of the two slopes, so ds/dtheta = -h_theta / h_s.
    """
    log_n, log_d, du, dv = path.at(s)
    slope = exponents[:, :1] * du + exponents[:, 1:] * dv + du - dv
    u, v = log_n - means[0], log_d - means[1]
    return 1 / slope, -u / slope, v / slope
