"""The parametric surface L = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, approach 3).

It is fitted to the log loss with a Huber cost (delta 1e-3 by default). Starts come from variable projection
over a grid of exponents. Damped Newton steps take each of them to an optimum, and the fit reports how many
agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from analysis.config import Array, Counts
from analysis.laws.newton import Fit
from analysis.laws.objective import (
    Objective,
    log_terms,
    minimise,
    minimise_resamples,
    predict,
)

PARAMETERS = ("E", "A", "B", "alpha", "beta")
STARTS = 8
# Bounds of (log E, log A, log B, alpha, beta) with N and D centred on their geometric means.
LOW = np.array([-4.0, -16.0, -16.0, 0.01, 0.01])
HIGH = np.array([4.0, 8.0, 8.0, 4.0, 4.0])


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A fitted surface; `fit.parameters` [resamples, 5] are (log E, log A', log B', alpha, beta).

    A' and B' are the amplitudes for N and D over their geometric means.
    """

    fit: Fit = field(repr=False)
    objective: Objective = field(repr=False)
    log_params_mean: float
    log_tokens_mean: float
    starts: int
    starts_agreeing: int

    def coefficients(self, resample: int = 0) -> dict[str, float]:
        """Return E, A, B, alpha and beta of the uncentred law."""
        e, a, b, alpha, beta = (float(v) for v in self.fit.parameters[resample])
        scale_n, scale_d = alpha * self.log_params_mean, beta * self.log_tokens_mean
        values = (np.exp(e), np.exp(a + scale_n), np.exp(b + scale_d), alpha, beta)
        return {name: float(value) for name, value in zip(PARAMETERS, values, strict=True)}

    def exponents(self) -> Array:
        """Return (alpha, beta) [resamples, 2]."""
        return self.fit.parameters[:, 3:]

    def amplitudes(self) -> Array:
        """Return (E, p, r) of the form that `isoflop.geometry.log_optimum` takes [resamples, 1, 3]."""
        e, a, b, alpha, beta = self.fit.parameters.T
        return np.stack([np.exp(e), alpha * np.exp(a), beta * np.exp(b)], -1)[:, None, :]

    def predict(self) -> Array:
        """Return the predicted losses of the fitted points in nats [points]."""
        return predict(self.objective.terms, self.fit.parameters[:1])[0]

    def jacobian(self) -> Array:
        """Return the derivatives of the log losses of the fitted points by the parameters [points, 5]."""
        logs, slopes = log_terms(self.objective.terms, self.fit.parameters[:1])
        share = np.exp(logs[0])
        return np.asarray(np.einsum("tn,tnp->np", share / share.sum(0), slopes))

    def losses(self, log_params: Array, log_tokens: Array) -> Array:
        """Return the losses at log N and log D in nats [resamples, points]."""
        e, a, b, alpha, beta = self.fit.parameters.T[..., None]
        u, v = log_params - self.log_params_mean, log_tokens - self.log_tokens_mean
        return np.asarray(np.exp(e) + np.exp(a - alpha * u) + np.exp(b - beta * v))


def features(u: Array, v: Array) -> Array:
    """Return the law's features [3, points, 5] for centred log N and log D."""
    zero, one = np.zeros_like(u), np.ones_like(u)
    return np.stack(
        [
            np.stack([one, zero, zero, zero, zero], -1),
            np.stack([zero, one, zero, -u, zero], -1),
            np.stack([zero, zero, one, zero, -v], -1),
        ]
    )


def fit_surface(log_params: Array, log_tokens: Array, losses: Array, delta: float = 1e-3) -> Surface:
    """Fit the surface to losses [points] in nats from several starts and return the best fit.

    Parameters
    ----------
    log_params, log_tokens : log N and log D [points].
    delta : of the Huber cost on the log loss.
    """
    means = float(log_params.mean()), float(log_tokens.mean())
    u, v = log_params - means[0], log_tokens - means[1]
    objective = Objective(terms=features(u, v), delta=delta)
    starts = projected_starts(u, v, losses)
    tried = minimise(objective, np.repeat(losses[None], len(starts), 0), starts, (LOW, HIGH))
    return Surface(
        fit=tried.row(tried.best),
        objective=objective,
        log_params_mean=means[0],
        log_tokens_mean=means[1],
        starts=len(starts),
        starts_agreeing=tried.agreeing,
    )


def refit(surface: Surface, losses: Array, weights: Counts | None = None) -> Surface:
    """Fit resampled losses or weights, both [resamples, points], starting from the optimum of the data."""
    start = surface.fit.parameters[0]
    return replace(surface, fit=minimise_resamples(surface.objective, losses, start, (LOW, HIGH), weights))


def projected_starts(u: Array, v: Array, losses: Array) -> Array:
    """Return starts [starts, 5]: the best exponents of a grid with their least-squares amplitudes."""
    grid = np.geomspace(0.05, 2.0, 12)
    candidates = []
    for alpha in grid:
        for beta in grid:
            columns = np.stack([np.ones_like(u), np.exp(-alpha * u), np.exp(-beta * v)], -1)
            amplitudes = np.linalg.lstsq(columns, losses, rcond=None)[0]
            # A negative amplitude has no logarithm: start from a small positive one.
            amplitudes = np.maximum(amplitudes, 1e-3 * losses.mean())
            error = float(np.square(np.log(columns @ amplitudes) - np.log(losses)).sum())
            candidates.append((error, [*np.log(amplitudes), alpha, beta]))
    candidates.sort(key=lambda item: item[0])
    return np.array([start for _, start in candidates[:STARTS]])
