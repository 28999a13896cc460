"""Noise for parametric bootstraps, shared by all estimators so that their differences can be judged.

A bootstrap over a handful of seeds is far too narrow (two seeds: 51 % coverage of a 95 % interval), and so
is one over plain residuals. Resamples are therefore drawn around the fitted curve with normal errors of
the estimated noise level, and spread afterwards by the chi-squared law of that estimate: intervals widen
as Student's do when degrees of freedom are few.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import chdtri

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """A standard deviation in nats, the degrees of freedom behind it and where it comes from."""

    sd_nats: float
    degrees_of_freedom: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Standard normal errors [resamples, runs] and one uniform per resample for the noise level."""

    normal: Array = field(repr=False)
    uniform: Array = field(repr=False)

    def noise(self, level: NoiseLevel, columns: Any = slice(None)) -> Array:
        """Return errors in nats [resamples, runs]."""
        return level.sd_nats * self.normal[:, columns]

    def factor(self, level: NoiseLevel) -> Array:
        """Return by how much each resample would have misjudged the noise level [resamples]."""
        freedom = level.degrees_of_freedom
        return np.asarray(np.sqrt(chdtri(freedom, self.uniform) / freedom))


def draws(resamples: int, runs: int, seed: int, label: str) -> Draws:
    """Draw the noise of one group; `label` keeps the groups' streams apart and independent of their order."""
    generator = np.random.default_rng([seed, zlib.crc32(label.encode())])
    return Draws(normal=generator.standard_normal((resamples, runs)), uniform=generator.random(resamples))


def studentised(samples: Array, factor: Array) -> Array:
    """Spread samples about their median as Student's t does, by each resample's factor of the noise level."""
    known = samples[np.isfinite(samples)]
    if not len(known):
        return samples
    middle = float(np.median(known))
    return np.asarray(middle + (samples - middle) / factor)


def interval(samples: Array, confidence: float) -> tuple[float | None, float | None]:
    """Return the percentile interval of `samples`, NaN left out; None for an end that is not finite."""
    known = np.sort(samples[~np.isnan(samples)])
    if not len(known):
        return None, None
    tail = (1 - confidence) / 2
    # Interpolating between infinities would give NaN, so the ends are order statistics.
    low, high = np.quantile(known, [tail, 1 - tail], method="closest_observation")
    return (float(low) if np.isfinite(low) else None), (float(high) if np.isfinite(high) else None)


def resampling_weights(
    how: str, points: int, labels: np.ndarray[Any, Any] | None, resamples: int, seed: int
) -> Array:
    """Return how often each point enters each resample [resamples, points].

    "pairs" draws points: right for independent noise. "stratified" draws within each label (a budget), so
    that every budget stays as large as it was: only for noise that is independent of the label. "block"
    draws whole labels: for runs that share a seed, a trunk or a budget's effect; below ten blocks it is
    too narrow. Raises ValueError for another name, or for labels that are missing.
    """
    generator = np.random.default_rng(seed)
    if how == "pairs":
        return generator.multinomial(points, np.full(points, 1 / points), size=resamples).astype(float)
    if how not in ("stratified", "block"):
        raise ValueError(f"resampling {how!r} is unknown: choose pairs, stratified or block")
    if labels is None:
        raise ValueError(f"resampling {how!r} needs a label for every point")
    names, place = np.unique(labels, return_inverse=True)
    if how == "block":
        blocks = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        return np.asarray(blocks[:, place], dtype=np.float64)
    weights = np.zeros((resamples, points))
    for index in range(len(names)):
        rows = np.flatnonzero(place == index)
        weights[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
    return weights
