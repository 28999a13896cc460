"""Profile intervals for what a fitted surface says of its optima.

Far from the data's reach the surface's parameters trade off against one another, and a percentile
bootstrap of an exponent misses too often (its width depends on the estimate). The profile does not: for a
target value of the functional, the objective is minimised over all surfaces that give that value, and the
interval holds the targets whose objective stays within the limit of the confidence level.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

from analysis.frontier import REACH, Path, optimum
from analysis.loglinear import minimise
from analysis.resample import NoiseLevel
from analysis.surface import HIGH, LOW, Surface

Array = np.ndarray[Any, np.dtype[np.float64]]
Ends = tuple[float | None, float | None]

STIFFNESS = 1e4  # of the penalty that holds a target, in units of the functional's information
# Targets on either side, in units of the interval that a linear law would give.
STEPS = np.array([0.25, 0.5, 0.75, 1.0, 1.3, 1.7, 2.3, 3.2, 5.0, 8.0])


@dataclass(frozen=True, kw_only=True)
class Optima:
    """Log optima of a surface at the budgets of `path`: recurrences, then tokens [rows, 2 budgets]."""

    surface: Surface = field(repr=False)
    path: Path

    def __call__(self, theta: Array) -> tuple[Array, Array]:
        """Return the log optima [rows, 2 budgets] and their gradients [rows, 2 budgets, 5].

        The optimum s solves h(s, theta) = 0 with h the log ratio of the two slopes, so ds/dtheta =
        -h_theta / h_s.
        """
        _, a, b, alpha, beta = (theta[:, i, None] for i in range(5))
        means = (self.surface.log_params_mean, self.surface.log_tokens_mean)
        amplitudes = np.stack([np.ones_like(a), alpha * np.exp(a), beta * np.exp(b)], -1)
        s = optimum(self.path, theta[:, 3:], amplitudes, means)
        s = np.clip(s, self.path.middle - REACH, self.path.middle + REACH)
        u, v = self.path.log_params(s) - means[0], self.path.log_tokens(s) - means[1]
        log_du, log_dv = self.path.log_slopes(s)
        step = 1e-5
        ahead, behind = self.path.log_slopes(s + step), self.path.log_slopes(s - step)
        bend = ((ahead[1] - ahead[0]) - (behind[1] - behind[0])) / (2 * step)
        slope = alpha * np.exp(log_du) + beta * np.exp(log_dv) + bend
        one = np.ones_like(s)
        rise = np.stack([np.zeros_like(s), -one, one, u - 1 / alpha, -v + 1 / beta], -1)
        gradient = -rise / slope[..., None]
        tokens = self.path.log_tokens(s)
        return np.concatenate([s, tokens], 1), np.concatenate(
            [gradient, -gradient * np.exp(log_dv)[..., None]], 1
        )


def profile_intervals(
    optima: Optima, losses: Array, weights: Array, level: NoiseLevel, confidence: float
) -> list[Ends]:
    """Return the interval of each linear combination `weights` [functionals, 2 budgets] of the log optima.

    losses [points] are those that the surface was fitted to; `level` is the noise in nats. An end is None
    where the profile stays within its limit as far as it was followed.
    """
    surface = optima.surface
    best = surface.fit.parameters[0]
    value, gradient = (part[0] for part in optima(best[None]))
    centres, directions = weights @ value, weights @ gradient
    spread, unit = _scales(surface, losses, level, directions)
    quantile = float(stdtrit(level.degrees_of_freedom, (1 + confidence) / 2))
    steps = np.concatenate([-STEPS[::-1], STEPS]) * quantile
    which = np.repeat(np.arange(len(weights)), len(steps))
    targets = (centres[:, None] + spread[:, None] * steps).ravel()
    stiffness = STIFFNESS * unit / spread[which] ** 2

    def penalty(theta: Array, rows: Any) -> tuple[Array, Array, Array]:
        found, slopes = optima(theta)
        chosen = weights[which[rows]]
        gap = (chosen * found).sum(-1) - targets[rows]
        slope = np.einsum("rk,rkp->rp", chosen, slopes)
        k = stiffness[rows]
        outer = slope[:, :, None] * slope[:, None, :]
        return k * gap**2 / 2, (k * gap)[:, None] * slope, k[:, None, None] * outer

    start = np.repeat(best[None], len(targets), 0)
    fit = minimise(
        surface.objective,
        np.repeat(losses[None], len(targets), 0),
        start,
        (LOW, HIGH),
        penalty=penalty,
        iterations=80,
    )
    # A held surface is the best one for the value that it reached, whatever its target was.
    reached = (weights[which] * optima(fit.parameters)[0]).sum(-1)
    excess = fit.objective - penalty(fit.parameters, np.arange(len(targets)))[0] - surface.fit.objective[0]
    deviance = np.sqrt(np.maximum(2 * excess / unit, 0.0))
    return [
        _ends(centres[f], reached[which == f], deviance[which == f], quantile) for f in range(len(weights))
    ]


def _scales(surface: Surface, losses: Array, level: NoiseLevel, directions: Array) -> tuple[Array, float]:
    """Return the linear standard error of each functional, and the objective's unit of deviance.

    For a Huber cost rho the deviance 2 (rho - rho_min) is in units of E psi^2 / E psi', here at normal
    errors.
    """
    prediction = surface.predict()
    noise = level.sd_nats / prediction
    jacobian = surface.jacobian() / noise[:, None]
    covariance = np.linalg.pinv(jacobian.T @ jacobian, hermitian=True)
    spread = np.sqrt(np.einsum("fp,pq,fq->f", directions, covariance, directions))
    cut = np.minimum(surface.objective.delta / noise, 40.0)
    within = 2 * ndtr(cut) - 1
    density = np.exp(-(cut**2) / 2) / np.sqrt(2 * np.pi)
    square = noise**2 * (within - 2 * cut * density + cut**2 * (1 - within))
    return np.maximum(spread, 1e-9), float(square.sum() / within.sum())


def _ends(centre: float, reached: Array, deviance: Array, limit: float) -> Ends:
    """Interpolate the signed root deviance at the limit on either side of the optimum."""
    ends: list[float | None] = []
    for side in (-1.0, 1.0):
        at = side * (reached - centre) > 0
        order = np.argsort(side * reached[at])
        x = np.concatenate([[centre], reached[at][order]])
        root = np.maximum.accumulate(np.concatenate([[0.0], deviance[at][order]]))
        if root[-1] <= limit:
            ends.append(None)
            continue
        beyond = int(np.argmax(root > limit))
        share = (limit - root[beyond - 1]) / (root[beyond] - root[beyond - 1])
        ends.append(float(x[beyond - 1] + share * (x[beyond] - x[beyond - 1])))
    return ends[0], ends[1]
