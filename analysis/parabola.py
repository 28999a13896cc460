"""The isoFLOP parabola: a quadratic of the loss in the log of the swept variable (Hoffmann et al. 2022, approach 2).

It reproduces published numbers. Its minimum is biased where the curve is not centred on the optimum
(arXiv 2603.22339), so it is reported beside the other estimators and never alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def fit_parabola(x: Array, losses: Array) -> tuple[Array, Array]:
    """Fit one quadratic to every row of `losses` [..., points] over `x` [points], the log of the swept variable.

    Returns coefficients [..., 3] of (x - mean x)^2, (x - mean x) and 1, and the residuals [..., points].
    """
    centred = x - x.mean()
    columns = np.stack([centred**2, centred, np.ones_like(centred)], axis=-1)
    coefficients = losses @ np.linalg.pinv(columns).T
    return coefficients, losses - coefficients @ columns.T


def minimum(x: Array, coefficients: Array) -> tuple[Array, Array]:
    """Return where each parabola has its minimum, in units of `x`, and its value there; NaN without one."""
    curvature, slope, level = np.moveaxis(coefficients, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.where(curvature > 0, -slope / (2 * curvature), np.nan)
    return x.mean() + offset, level + slope * offset / 2


def predict(x: Array, coefficients: Array, at: Array) -> Array:
    """Return one parabola's loss at `at`, given the `x` that it was fitted to."""
    return np.asarray(np.polyval(coefficients, at - x.mean()))
