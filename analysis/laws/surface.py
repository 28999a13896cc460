"""The surface law fitted for the isoFLOP estimator: with all its resamples, N and D over their means.

In these units the amplitudes are terms of the loss in the middle of the points, which bounds them well.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from analysis.config import Array, Counts
from analysis.laws.fit import projected_starts
from analysis.laws.identification import log_slopes
from analysis.laws.newton import Fit
from analysis.laws.objective import (
    PUBLISHED_DELTA,
    Objective,
    Terms,
    best_fit,
    minimise,
    minimise_resamples,
    minimise_scaled,
    predict,
    residuals,
)
from analysis.laws.registry import LAWS

LAW = LAWS["surface"]
STARTS = 8
PARAMETERS = tuple(parameter.name for parameter in LAW.parameters)
# Bounds of (log E, log A, log B, alpha, beta) with N and D over their geometric means.
LOW = np.array([-4.0, -16.0, -16.0, 0.01, 0.01])
HIGH = np.array([4.0, 8.0, 8.0, 4.0, 4.0])
LEAST_INSIDE = 0.1  # share of residuals within delta, below which the cost has hardly any curvature


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
        return log_slopes(self.objective.terms, self.fit.parameters[0])

    def losses(self, log_params: Array, log_tokens: Array) -> Array:
        """Return the losses at log N and log D in nats [resamples, points]."""
        u, v = log_params - self.log_params_mean, log_tokens - self.log_tokens_mean
        return predict(surface_terms(u, v), self.fit.parameters)


def surface_terms(log_params: Array, log_tokens: Array) -> Terms:
    """Return the log terms of the surface law at log N and log D [points]."""
    return LAW.terms({"params": np.exp(log_params), "tokens": np.exp(log_tokens)})


def fit_surface(log_params: Array, log_tokens: Array, losses: Array, delta: float | None = None) -> Surface:
    """Fit the surface to losses [points] in nats from several starts and return the best fit.

    Parameters
    ----------
    log_params, log_tokens : log N and log D [points].
    delta : of the Huber cost on the log loss. By default the published 1e-3. Where fewer than a tenth of the
        residuals lie within it, it is 1.345 times their scatter instead.
    """
    means = float(log_params.mean()), float(log_tokens.mean())
    terms = surface_terms(log_params - means[0], log_tokens - means[1])
    objective = Objective(terms=terms, delta=PUBLISHED_DELTA if delta is None else delta)
    starts = projected_starts(LAW, terms, losses)[:STARTS]
    tried = minimise(objective, np.repeat(losses[None], len(starts), 0), starts, (LOW, HIGH))
    if delta is None:
        away = np.abs(residuals(objective, losses, tried.parameters[tried.best]))
        if np.mean(away <= objective.delta) < LEAST_INSIDE:
            objective, tried = minimise_scaled(terms, losses, starts, (LOW, HIGH))
    return Surface(
        fit=best_fit(objective, losses, tried, (LOW, HIGH)),
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
