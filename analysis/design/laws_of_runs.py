"""The law that finished runs support: the surface fitted to them, and resamples of it."""

from __future__ import annotations

import numpy as np

from analysis.config import Array
from analysis.design.ground_truth import GroundTruth
from analysis.design.simulate import Grid
from analysis.laws.surface import fit_surface, refit


def laws_of_runs(grid: Grid, losses: Array, resamples: int, seed: int) -> tuple[list[GroundTruth], float]:
    """Return the surface fitted to `losses` [runs], resamples of it, and the sd of its residuals."""
    looped = grid.runs.iloc[grid.looped]
    u = np.log(grid.shape.params(looped["mean_recurrence"].to_numpy(float)))
    v, observed = np.log(looped["tokens"].to_numpy(float)), losses[grid.looped]
    surface = fit_surface(u, v, observed)
    base = surface.losses(u, v)[0]
    sd = float(np.sqrt(np.square(observed - base).sum() / max(len(observed) - 5, 1)))
    errors = np.random.default_rng(seed).standard_normal((resamples, len(observed)))
    resampled = refit(surface, base + sd * errors)
    laws = []
    for k, one in [(0, surface), *((k, resampled) for k in range(resamples))]:
        values = one.coefficients(k)
        laws.append(
            GroundTruth(
                name="law fitted to them, and resamples of it",
                floor_nats=values["E"],
                amplitude_params=values["A"],
                alpha=values["alpha"],
                amplitude_tokens=values["B"],
                beta=values["beta"],
                static_params=grid.shape.static_params,
                looped_params=grid.shape.looped_params,
            )
        )
    return laws, sd
