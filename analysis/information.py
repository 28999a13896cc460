"""How narrow an interval any choice of cells would give, to first order: what a search ranks choices by.

The shared-shape fit is linearised at the noise-free fit of a law over all candidate cells. Amplitudes of a
budget are eliminated (Schur complement), so that a budget enters by what it says of the two shared exponents
and of its own optimum, and adding a cell changes one budget only. The Student factor of the noise level's
degrees of freedom is part of the interval. First order is good for ranking, not for reporting: whatever is
chosen is simulated afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

from analysis.frontier import Path, optimum, response
from analysis.generator import Generator
from analysis.geometry import Geometry
from analysis.isoflop import EDGE_SHARE, MIN_SWEPT
from analysis.powerlaw import MIN_BUDGETS
from analysis.projection import BOX, SharedShape, fit_shared_shape

Array = np.ndarray[Any, np.dtype[np.float64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]  # runs [budgets, recurrences]
INSIDE = 0.95  # wanted chance that all minima lie inside; falling short of it costs PENALTY per unit
PENALTY = 4.0
HOPELESS = 20.0  # log width of a study that gives no interval


@dataclass(frozen=True, kw_only=True)
class Information:
    """Derivatives of the loss in the parameters of the fit at all candidate cells, under some laws.

    x [laws, budgets, recurrences, 2] in the shared exponents, z [.., 3] in a budget's amplitudes; `optima`
    [laws, budgets] with their derivatives `in_exponents` [.., 2] and `in_amplitudes` [.., 3].
    """

    budgets_flops: Array
    recurrences: Array
    sd_nats: float
    target_flops: float | None  # None: the interval of the exponent, else that of the log optimum there
    x: Array
    z: Array
    optima: Array
    in_exponents: Array
    in_amplitudes: Array

    def widths(self, counts: Counts, *, penalised: bool = True) -> Array:
        """Return log widths of the 95 % interval [laws], the penalty for minima off the grid added."""
        penalty = PENALTY if penalised else 0.0
        information, lever, own = self._pieces(counts)
        ends, freedom = self._swept(counts), self._freedom(counts)
        return self._assembled(information, lever, own, ends, freedom, penalty)

    def widths_with_one_more(self, counts: Counts) -> Array:
        """Return those of every choice of one more run [laws, budgets, recurrences]."""
        budgets, choices = counts.shape
        base = self._pieces(counts)
        swept = self._swept(counts)
        more = counts[:, None, :] + np.eye(choices, dtype=counts.dtype)  # [budgets, choices, recurrences]
        found = np.empty((len(self.x), budgets, choices))
        for k in range(budgets):
            added = self._pieces_of(k, more[k])
            wider = np.stack([self._ends(row) for row in more[k]])
            pieces = [np.repeat(piece[:, None], choices, 1) for piece in base]
            for piece, own in zip(pieces, added, strict=True):
                piece[:, :, k] = own
            ends = np.repeat(swept[None], choices, 0)
            ends[:, k] = wider
            freedom = np.array(
                [self._freedom(np.concatenate([counts[:k], row[None], counts[k + 1 :]])) for row in more[k]]
            )
            found[:, k] = self._assembled(pieces[0], pieces[1], pieces[2], ends, freedom)
        return found

    def _pieces(self, counts: Counts) -> tuple[Array, Array, Array]:
        parts = [self._pieces_of(k, counts[k][None]) for k in range(len(counts))]
        information, lever, own = (np.stack([part[i][:, 0] for part in parts], 1) for i in range(3))
        return information, lever, own

    def _pieces_of(self, k: int, rows: Counts) -> tuple[Array, Array, Array]:
        """Return what budget k says, for choices `rows` [choices, recurrences] of its runs.

        The information on the shared exponents [laws, choices, 2, 2], the derivative of its optimum in them
        once its amplitudes follow [laws, choices, 2], and the variance of the optimum at known exponents.
        A budget with fewer than four recurrences is not fitted and says nothing.
        """
        x, z = self.x[:, k], self.z[:, k]
        zz = np.einsum("cm,lmi,lmj->lcij", rows, z, z)
        xz = np.einsum("cm,lmi,lmj->lcij", rows, x, z)
        xx = np.einsum("cm,lmi,lmj->lcij", rows, x, x)
        fitted = (rows > 0).sum(-1) >= MIN_SWEPT
        scale = np.sqrt(np.maximum(np.diagonal(zz, axis1=-2, axis2=-1), 1e-300))
        unit = zz / (scale[..., :, None] * scale[..., None, :])
        unit[:, ~fitted] = np.eye(3)
        inverse = np.linalg.inv(unit) / (scale[..., :, None] * scale[..., None, :])
        slope = self.in_amplitudes[:, k, None, :]
        through = np.einsum("lcij,lcjk->lcik", xz, inverse)
        information = xx - np.einsum("lcik,lcjk->lcij", through, xz)
        lever = self.in_exponents[:, k, None, :] - np.einsum("lcik,lxk->lci", through, slope)
        own = np.einsum("lxi,lcij,lxj->lc", slope, inverse, slope)
        information[:, ~fitted], lever[:, ~fitted], own[:, ~fitted] = 0.0, 0.0, 0.0
        return information, lever, own

    def _assembled(
        self,
        information: Array,
        lever: Array,
        own: Array,
        ends: Array,
        freedom: Any,
        penalty: float = PENALTY,
    ) -> Array:
        """Return log widths from the pieces, budgets on the axis after the choices' (if any)."""
        vague = (BOX[1] - BOX[0]) ** 2 / 12  # the fit keeps its exponents in a box
        total = information.sum(-3) / self.sd_nats**2 + np.eye(2) / vague
        covariance = np.linalg.inv(total)
        optima = self.optima if lever.ndim == 3 else self.optima[:, None]
        spread = np.einsum("...ki,...ij,...kj->...k", lever, covariance, lever) + own * self.sd_nats**2
        low, high = ends[..., 0], ends[..., 1]
        with np.errstate(invalid="ignore", divide="ignore"):  # a budget without runs has no spread
            sd = np.sqrt(spread)
            chance = ndtr((high - optima) / sd) - ndtr((low - optima) / sd)
        fitted = own > 0
        used = fitted & (optima > low) & (optima < high)
        chance = np.where(fitted, chance, 1.0).prod(-1)
        weight, enough = self._weights(used)
        gradient = np.einsum("...k,...ki->...i", weight, lever)
        variance = np.einsum("...i,...ij,...j->...", gradient, covariance, gradient)
        variance = variance + (weight**2 * own).sum(-1) * self.sd_nats**2
        known = np.maximum(np.asarray(freedom, float), 1.0)
        width = np.log(2 * stdtrit(known, 0.975) * np.sqrt(np.maximum(variance, 1e-300)))
        hopeless = ~enough | (np.asarray(freedom) < 1)
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

    def _swept(self, counts: Counts) -> Array:
        return np.stack([self._ends(row) for row in counts])

    def _ends(self, row: Counts) -> Array:
        """Return the logs between which a minimum is believed, given the runs of its budget."""
        values = np.log(self.recurrences[row > 0]) if row.any() else np.zeros(1)
        margin = EDGE_SHARE * (values.max() - values.min())
        return np.array([values.min() + margin, values.max() - margin])

    def _freedom(self, counts: Counts) -> float:
        """Return the degrees of freedom of the noise level: of replicates where there are any."""
        replicates = int(np.maximum(counts - 1, 0).sum())
        if replicates:
            return float(replicates)
        fitted = (counts > 0).sum(-1) >= MIN_SWEPT
        return float(counts[fitted].sum() - 3 * fitted.sum() - 2)


def information(
    laws: list[Generator],
    shape: Geometry,
    budgets_flops: Array,
    recurrences: Array,
    sd_nats: float,
    target_flops: float | None = None,
) -> Information:
    """Linearise the shared-shape fit under every law over all budgets and recurrences."""
    budgets_flops, recurrences = np.asarray(budgets_flops, float), np.asarray(recurrences, float)
    flops, depth = (axis.ravel() for axis in np.meshgrid(budgets_flops, recurrences, indexing="ij"))
    tokens = shape.tokens(depth, flops)
    u, v = np.log(shape.params(depth)), np.log(tokens)
    index = np.repeat(np.arange(len(budgets_flops)), len(recurrences))
    losses = np.stack([law.loss(depth, tokens) for law in laws])
    fit = fit_shared_shape(u, v, losses, index)
    path = Path(shape=shape, budgets_flops=budgets_flops, middle=float(np.log(recurrences).mean()))
    return _linearised(fit, path, u, v, recurrences, sd_nats, target_flops)


def _linearised(
    fit: SharedShape,
    path: Path,
    u: Array,
    v: Array,
    recurrences: Array,
    sd_nats: float,
    target_flops: float | None,
) -> Information:
    budgets = len(path.budgets_flops)
    means = (fit.log_params_mean, fit.log_tokens_mean)
    u, v = ((values - mean).reshape(budgets, -1) for values, mean in zip((u, v), means, strict=True))
    a, b = fit.exponents[:, 0, None, None], fit.exponents[:, 1, None, None]
    _, p, r = np.moveaxis(fit.amplitudes, -1, 0)
    size, data = -np.expm1(-a * u) / a, -np.expm1(-b * v) / b
    by_a = -p[..., None] * (u * np.exp(-a * u) - size) / a
    by_b = -r[..., None] * (v * np.exp(-b * v) - data) / b
    s = optimum(path, fit.exponents, fit.amplitudes, means)
    at = np.where(np.isfinite(s), s, path.middle)
    more, in_a, in_b = response(path, at, fit.exponents, means)
    return Information(
        budgets_flops=path.budgets_flops,
        recurrences=recurrences,
        sd_nats=sd_nats,
        target_flops=target_flops,
        x=np.stack([by_a, by_b], -1),
        z=np.stack([np.ones_like(size), -size, -data], -1),
        optima=np.where(np.isnan(s), np.inf, s),
        in_exponents=np.stack([in_a, in_b], -1),
        in_amplitudes=np.stack([0 * more, more / p, -more / r], -1),
    )
