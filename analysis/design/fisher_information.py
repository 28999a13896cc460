"""How narrow an interval any choice of cells would give, to first order: what a search ranks choices by.

The shared-shape fit is linearised at the noise-free fit of a law over all candidate cells. Amplitudes of a
budget are eliminated (Schur complement), so that a budget enters by what it says of the two shared exponents
and of its own optimum, and adding a cell changes one budget only. The Student factor of the noise level's
degrees of freedom is part of the interval. First order is good for ranking, not for reporting: whatever is
chosen is simulated afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

from analysis.config import Array, Mask
from analysis.design.ground_truth import GroundTruth
from analysis.isoflop.curves import EDGE_SHARE, Quantity
from analysis.isoflop.geometry import (
    MIN_BUDGETS,
    MIN_SWEPT,
    Geometry,
    IsoflopPath,
    log_optimum,
    optimum_slopes,
)
from analysis.laws.variable_projection import BOX, SharedShape, fit_shared_shape

Counts = np.ndarray[Any, np.dtype[np.int64]]  # runs [budgets, recurrences]
INSIDE = 0.95  # wanted chance that all minima lie inside; falling short of it costs PENALTY per unit
PENALTY = 4.0
HOPELESS = 20.0  # log width of a study that gives no interval


@dataclass(frozen=True, kw_only=True)
class FisherInformation:
    """Derivatives of the loss in the parameters of the fit at all candidate cells, under some laws.

    Kept as products [laws, budgets, recurrences, i, j] of those in the shared exponents, x, and in a budget's
    amplitudes, z; `optima` [laws, budgets] with their derivatives `in_exponents` [.., 2] and `in_amplitudes`
    [.., 3].
    """

    budgets_flops: Array
    recurrences: Array
    sd_nats: float
    target_flops: float | None  # None: the interval of the exponent, else that of the log optimum there
    xx: Array
    xz: Array
    zz: Array
    optima: Array
    in_exponents: Array
    in_amplitudes: Array
    eligible: Mask  # [budgets]: whose optimum the asked quantity may use
    worth: Array  # [laws, budgets]: change of the log of the asked quantity per change of the log optimum

    def widths(self, counts: Counts, *, penalised: bool = True) -> Array:
        """Return log widths of the 95 % interval [laws], the penalty for minima off the grid added."""
        pieces = self._pieces(counts[None])
        ends, freedom = self._ends(counts)[None], np.array([_freedom(counts)])
        return self._assembled(pieces, ends, freedom, PENALTY if penalised else 0.0)[:, 0]

    def widths_with_one_more(self, counts: Counts, *, penalised: bool = True) -> Array:
        """Return those of every choice of one more run [laws, budgets, recurrences]."""
        budgets, choices = counts.shape
        more = counts + np.eye(choices, dtype=counts.dtype)[:, None]  # [choices, budgets, recurrences]
        before, after = self._pieces(counts[None]), self._pieces(more)
        own = np.eye(budgets, dtype=bool)  # [budget that gains a run, budget]
        pieces = [
            np.where(_like(own, new), new[:, :, None], old[:, :, None])
            for old, new in zip(before, after, strict=True)
        ]
        flat = [piece.reshape(len(piece), choices * budgets, *piece.shape[3:]) for piece in pieces]
        ends = np.where(own[..., None], self._ends(more)[:, None], self._ends(counts)[None, None])
        freedom = np.array(
            [_freedom(np.where(own[k][:, None], row, counts)) for row in more for k in range(budgets)]
        )
        ends = ends.reshape(choices * budgets, budgets, 2)
        widths = self._assembled(flat, ends, freedom, PENALTY if penalised else 0.0)
        return np.swapaxes(widths.reshape(-1, choices, budgets), 1, 2)

    def _pieces(self, rows: Counts) -> list[Array]:
        """Return what each budget says, for choices `rows` [choices, budgets, recurrences] of its runs.

        The information on the shared exponents [laws, choices, budgets, 2, 2], the derivative of the optimum
        in them once the budget's amplitudes follow [.., 2], and its variance at known exponents in squares of
        the noise. A budget with fewer than four recurrences is not fitted and says nothing.
        """
        zz, xz, xx = (
            np.einsum("ckm,lkmij->lckij", rows, pair, optimize=True) for pair in (self.zz, self.xz, self.xx)
        )
        fitted = (rows > 0).sum(-1) >= MIN_SWEPT
        scale = np.sqrt(np.maximum(np.diagonal(zz, axis1=-2, axis2=-1), 1e-300))
        unit = zz / (scale[..., :, None] * scale[..., None, :])
        unit[:, ~fitted] = np.eye(3)
        inverse = np.linalg.inv(unit) / (scale[..., :, None] * scale[..., None, :])
        through = xz @ inverse
        slope = self.in_amplitudes[:, None, :, :, None]
        information = xx - through @ np.swapaxes(xz, -1, -2)
        lever = self.in_exponents[:, None] - (through @ slope)[..., 0]
        own = (np.swapaxes(slope, -1, -2) @ inverse @ slope)[..., 0, 0]
        information[:, ~fitted], lever[:, ~fitted], own[:, ~fitted] = 0.0, 0.0, 0.0
        return [information, lever, own]

    def _assembled(self, pieces: Sequence[Array], ends: Array, freedom: Array, penalty: float) -> Array:
        """Return log widths [laws, choices]; ends [choices, budgets, 2] and freedom [choices]."""
        information, lever, own = pieces
        vague = (BOX[1] - BOX[0]) ** 2 / 12  # the fit keeps its exponents in a box
        covariance = np.linalg.inv(information.sum(2) / self.sd_nats**2 + np.eye(2) / vague)
        spread = ((lever @ covariance) * lever).sum(-1) + own * self.sd_nats**2
        optima, (low, high) = self.optima[:, None], np.moveaxis(ends, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):  # a budget without runs has no spread
            sd = np.sqrt(spread)
            chance = ndtr((high - optima) / sd) - ndtr((low - optima) / sd)
        fitted = own > 0
        chance = np.where(fitted, chance, 1.0).prod(-1)
        weight, enough = self._weights(fitted & self.eligible & (optima > low) & (optima < high))
        weight = weight * self.worth[:, None]
        gradient = (weight[..., None] * lever).sum(-2)
        variance = ((gradient[..., None, :] @ covariance)[..., 0, :] * gradient).sum(-1)
        variance = variance + (weight**2 * own).sum(-1) * self.sd_nats**2
        student = stdtrit(np.maximum(freedom, 1.0), 0.975)
        width = np.log(2 * student * np.sqrt(np.maximum(variance, 1e-300)))
        hopeless = ~enough | (freedom < 1)
        return np.where(hopeless, HOPELESS, width) + penalty * np.maximum(0.0, INSIDE - chance)

    def _weights(self, used: Any) -> tuple[Array, Any]:
        """Return how the quantity is a sum over the optima of the used budgets."""
        x = np.log(self.budgets_flops)
        count = np.maximum(used.sum(-1, keepdims=True), 1)
        mean = (used * x).sum(-1, keepdims=True) / count
        centred = used * (x - mean)
        slope = centred / np.maximum((centred**2).sum(-1, keepdims=True), 1e-12)
        enough = used.sum(-1) >= MIN_BUDGETS
        if self.target_flops is None:
            return slope, enough
        return used / count + slope * (np.log(self.target_flops) - mean), enough

    def _ends(self, rows: Counts) -> Array:
        """Return the logs between which a minimum is believed [..., budgets, 2], given the runs there."""
        logs, there = np.log(self.recurrences), rows > 0
        low, high = np.where(there, logs, np.inf).min(-1), np.where(there, logs, -np.inf).max(-1)
        low, high = np.where(there.any(-1), low, 0.0), np.where(there.any(-1), high, 0.0)
        margin = EDGE_SHARE * (high - low)
        return np.stack([low + margin, high - margin], -1)


def _freedom(counts: Counts) -> float:
    """Return the degrees of freedom of the noise level: replicates where there are any, else residuals."""
    replicates = int(np.maximum(counts - 1, 0).sum())
    if replicates:
        return float(replicates)
    fitted = (counts > 0).sum(-1) >= MIN_SWEPT
    return float(counts[fitted].sum() - 3 * fitted.sum() - 2)


def _like(own: Any, piece: Array) -> Any:
    """Return the mask [budget, budget] with the trailing axes of a piece [laws, choices, budgets, ...]."""
    return own.reshape(*own.shape, *(1 for _ in piece.shape[3:]))


def fisher_information(
    laws: list[GroundTruth],
    shape: Geometry,
    budgets_flops: Array,
    recurrences: Array,
    sd_nats: float,
    target_flops: float | None = None,
    quantity: Quantity = "mean_recurrence",
    start: Array | None = None,
) -> FisherInformation:
    """Linearise the shared-shape fit under every law over all budgets and recurrences.

    The interval is that of `quantity`: of its exponent, or of its log optimum at `target_flops`. The fits
    descend from the exponents `start`, by default from the best of a grid.
    """
    budgets_flops, recurrences = np.asarray(budgets_flops, float), np.asarray(recurrences, float)
    flops, depth = (axis.ravel() for axis in np.meshgrid(budgets_flops, recurrences, indexing="ij"))
    tokens = shape.tokens(depth, flops)
    u, v = np.log(shape.params(depth)), np.log(tokens)
    index = np.repeat(np.arange(len(budgets_flops)), len(recurrences))
    losses = np.stack([law.loss(depth, tokens) for law in laws])
    fit = fit_shared_shape(u, v, losses, index, start=start)
    path = IsoflopPath(shape=shape, budgets_flops=budgets_flops, middle=float(np.log(recurrences).mean()))
    made = _linearised(fit, path, u, v, recurrences, sd_nats, target_flops)
    return made if quantity == "mean_recurrence" else replace(made, worth=_worth_in_tokens(path, made))


def _worth_in_tokens(path: IsoflopPath, information: FisherInformation) -> Array:
    """Return d log D* / d log mu* = -f1 mu / f at the optima [laws, budgets]."""
    s = np.where(np.isfinite(information.optima), information.optima, path.middle)
    return -path.at(s)[3]


def _linearised(
    fit: SharedShape,
    path: IsoflopPath,
    u: Array,
    v: Array,
    recurrences: Array,
    sd_nats: float,
    target_flops: float | None,
) -> FisherInformation:
    budgets = len(path.budgets_flops)
    means = (fit.log_params_mean, fit.log_tokens_mean)
    u, v = ((values - mean).reshape(budgets, -1) for values, mean in zip((u, v), means, strict=True))
    a, b = fit.exponents[:, 0, None, None], fit.exponents[:, 1, None, None]
    _, p, r = np.moveaxis(fit.amplitudes, -1, 0)
    size, data = -np.expm1(-a * u) / a, -np.expm1(-b * v) / b
    by_a = -p[..., None] * (u * np.exp(-a * u) - size) / a
    by_b = -r[..., None] * (v * np.exp(-b * v) - data) / b
    s = log_optimum(path, fit.exponents, fit.amplitudes, means)
    at = np.where(np.isfinite(s), s, path.middle)
    more, in_a, in_b = optimum_slopes(path, at, fit.exponents, means)
    x, z = np.stack([by_a, by_b], -1), np.stack([np.ones_like(size), -size, -data], -1)
    return FisherInformation(
        budgets_flops=path.budgets_flops,
        recurrences=recurrences,
        sd_nats=sd_nats,
        target_flops=target_flops,
        xx=x[..., :, None] * x[..., None, :],
        xz=x[..., :, None] * z[..., None, :],
        zz=z[..., :, None] * z[..., None, :],
        optima=np.where(np.isnan(s), np.inf, s),
        in_exponents=np.stack([in_a, in_b], -1),
        in_amplitudes=np.stack([0 * more, more / p, -more / r], -1),
        eligible=np.ones(budgets, bool),
        worth=np.ones_like(s),
    )
