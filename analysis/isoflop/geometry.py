"""Parameters, FLOPs and tokens along an isoFLOP curve, at any real mean recurrence.

Effective parameters and FLOPs per token are affine in the mean recurrence once the backpropagated share of
the loops is fixed, so a group of runs is described by four constants (source: DESIGN's FLOP contract;
PAPER (c.2)). A study of plain transformers is the case N = x and f = 6 x, with the size x as the swept
variable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.config import Array, Mask, ParameterCount
from analysis.tables.schema import TableError


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """N(mu) = static + looped * mu and f(mu) = fixed + slope * mu, with mu * backprop_share loops of
    gradient.
    """

    static_params: float
    looped_params: float
    flops_fixed: float  # FLOPs per token
    flops_slope: float  # FLOPs per token and mean recurrence
    backprop_share: float  # backprop_depth / mean_recurrence on the continuous curve

    def params(self, mean_recurrence: Array | float) -> Array:
        """Return the effective number of parameters with the loops unrolled (PAPER (d))."""
        return self.static_params + self.looped_params * np.asarray(mean_recurrence, float)

    def flops_per_token(self, mean_recurrence: Array | float) -> Array:
        """Return training FLOPs per token on the continuous curve f(mu, backprop_share * mu)."""
        return self.flops_fixed + self.flops_slope * np.asarray(mean_recurrence, float)

    def tokens(self, mean_recurrence: Array | float, flops: Array | float) -> Array:
        """Return the tokens that a budget of `flops` buys."""
        return np.asarray(flops, float) / self.flops_per_token(mean_recurrence)


# A plain transformer under C = 6 N D, swept over its size.
SIZES = Geometry(static_params=0.0, looped_params=1.0, flops_fixed=0.0, flops_slope=6.0, backprop_share=1.0)


FLOPS_PER_PARAM = 6.0  # forward and backward, per token


def geometry(looped: pd.DataFrame, parameter_count: ParameterCount) -> Geometry:
    """Return the constants that all looped runs of a group share.

    Raises TableError when runs of one group disagree on them.
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
    """Return what N counts outside and per loop, from the FLOPs per token where it counts those."""
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
    """Return what the released accounting counts per token beyond the paper's.

    Paper: the unembedding in, value-embedding tables out; released: the other way round (PAPER c.2).
    """
    tables, unembedding = (_shared(runs, f"n_params_{name}") for name in ("value_embedding", "embedding"))
    return FLOPS_PER_PARAM * (tables - unembedding)


def backprop_share(looped: pd.DataFrame) -> float:
    """Return the common backprop_depth / mean_recurrence, or 1/2 where it is the staircase ceil(mu / 2)."""
    shares = (looped["backprop_depth"] / looped["mean_recurrence"]).to_numpy(float)
    return float(shares[0]) if np.allclose(shares, shares[0]) else 0.5


def on_curve(looped: pd.DataFrame, share: float) -> Mask:
    """Mark the cells whose FLOPs lie on the continuous curve; odd mu with ceil(mu / 2) do not, nor does mu
    = 1.
    """
    depth, backprop = looped["mean_recurrence"].to_numpy(float), looped["backprop_depth"].to_numpy(float)
    return np.asarray(np.isclose(backprop, share * depth) & (depth > 1))


def _shared(frame: pd.DataFrame, column: str) -> float:
    values = frame[column].to_numpy(float)
    if not np.allclose(values, values[0], rtol=1e-9):
        raise TableError(f"{column} differs within one group: {values.min():g} and {values.max():g}")
    return float(values[0])
