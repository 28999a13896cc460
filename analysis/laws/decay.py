"""A floor and one term that decays with depth, fitted to many curves over the same depths at once.

Floor and amplitude are linear and projected out (variable projection), so a fit is a search over the rate
alone: a grid, refined around its best point. The term is that of a registered law of depth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from analysis.config import Array
from analysis.laws.law import Law
from analysis.laws.objective import log_terms

RATES = 300
CHUNK = 2**22  # elements of one array, 32 MiB
FLOOR, RATE = "L_inf", "z"


@dataclass(frozen=True, kw_only=True)
class Decay:
    """Curves [curves, depths] over the same ascending depths, and the law to fit to each of them.

    `weights` [curves or 1, depths] are those of the squared residuals; 0 leaves a depth out.
    """

    law: Law
    depths: Array
    values: Array
    weights: Array

    @cached_property
    def rates(self) -> Array:
        """Return the grid of rates: from a straight line to a single point off a plateau."""
        return np.geomspace(0.02 / np.ptp(self.depths), 30.0 / np.diff(self.depths).min(), RATES)

    def project(self, shape: Array) -> tuple[Array, Array, Array]:
        """Return the best floor, the best amplitude and the weighted squared error [curves, shapes].

        `shape` is what the amplitude multiplies [curves or 1, shapes, depths].
        """
        weight = (self.weights / self.weights.sum(1, keepdims=True))[:, None]
        values = self.values[:, None]
        mean_shape, mean = (np.sum(weight * part, -1, keepdims=True) for part in (shape, values))
        if FLOOR not in (parameter.name for parameter in self.law.parameters):
            mean_shape, mean = np.zeros_like(mean_shape), np.zeros_like(mean)
        centred = shape - mean_shape
        size = np.maximum(np.sum(weight * centred**2, -1), 1e-300)
        amplitude = np.sum(weight * centred * (values - mean), -1) / size
        floor = mean[..., 0] - amplitude * mean_shape[..., 0]
        residual = floor[..., None] + amplitude[..., None] * shape - values
        return floor, amplitude, np.sum(self.weights[:, None] * residual**2, -1)

    def at(self, rates: Array) -> tuple[Array, Array, Array]:
        """Return `project` at `rates` [curves or 1, rates], with the amplitude at the first depth."""
        shape = decay(self.law, self.depths, rates.ravel(), relative=True)[0]
        return self.project(shape.reshape(*rates.shape, -1))

    @cached_property
    def grid_errors(self) -> Array:
        """Return the squared error on the grid of rates [curves, rates]."""
        rows = max(1, CHUNK // (RATES * len(self.depths)))
        parts = [slice(first, first + rows) for first in range(0, len(self.values), rows)]
        weights = np.broadcast_to(self.weights, self.values.shape)
        curves = [replace(self, values=self.values[part], weights=weights[part]) for part in parts]
        return np.concatenate([part.at(part.rates[None])[2] for part in curves])

    def fitted(self, rates: Array) -> tuple[Array, Array, Array, Array]:
        """Return floor, amplitude at the first depth, squared error [curves] and values [curves, depths]."""
        term = decay(self.law, self.depths, rates, relative=True)[0]
        floor, amplitude, error = (part[:, 0] for part in self.project(term[:, None]))
        return floor, amplitude, error, floor[:, None] + amplitude[:, None] * term

    def best_rates(self) -> Array:
        """Return the rate of least error [curves]."""
        grid, rows = np.log(self.rates), np.arange(len(self.values))
        best = np.argmin(self.grid_errors, 1)
        low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, RATES - 1)]
        for _ in range(13):  # each divides the bracket by four
            points = low[:, None] + (high - low)[:, None] * np.linspace(0.0, 1.0, 9)
            best = np.argmin(self.at(np.exp(points))[2], 1)
            low, high = points[rows, np.maximum(best - 1, 0)], points[rows, np.minimum(best + 1, 8)]
        return np.asarray(np.exp(points[rows, best]))

    def crossings(self, rates: Array, limits: Array) -> tuple[Array, Array]:
        """Return the first rates below and above the best ones at which the error exceeds `limits` [curves].

        They are nan where the grid has none.
        """
        grid, middle, rows = np.log(self.rates), np.log(rates), np.arange(len(rates))
        above, ends = self.grid_errors > limits[:, None], []
        for side in (-1, 1):
            beyond = above & (side * (grid - middle[:, None]) > 0)
            nearest = np.argmax(beyond[:, ::side], 1)
            nearest = nearest if side > 0 else RATES - 1 - nearest
            outer = grid[nearest]
            inner = np.clip(grid[np.clip(nearest - side, 0, RATES - 1)], *np.sort([middle, outer], 0))
            for _ in range(10):  # each divides the bracket by eight
                points = inner[:, None] + (outer - inner)[:, None] * np.linspace(0.0, 1.0, 9)
                out = self.at(np.exp(points))[2][:, 1:-1] > limits[:, None]
                first = np.argmax(np.append(out, np.ones_like(out[:, :1]), 1), 1)
                inner, outer = points[rows, first], points[rows, first + 1]
            ends.append(np.where(beyond.any(1), np.exp(outer), np.nan))
        return ends[0], ends[1]


def decay(law: Law, depths: Array, rates: Array, relative: bool = False) -> tuple[Array, Array]:
    """Return the decaying term at amplitude 1 [rates, depths] and the slope of its log in the rate [depths].

    With `relative` the term is 1 at the first depth: it does not underflow on curves that start late.
    """
    place = [parameter.name for parameter in law.parameters].index(RATE)
    theta = np.zeros((len(rates), len(law.parameters)))
    theta[:, place] = rates
    logs, slopes = log_terms(law.terms({"depth": np.asarray(depths, float)}), theta)
    logs = logs[:, -1]
    return np.exp(logs - logs[:, :1] if relative else logs), slopes[-1, :, place]
