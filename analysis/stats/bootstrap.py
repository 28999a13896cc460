"""Noise for parametric bootstraps, shared by all estimators so that their differences can be judged.

A bootstrap over a handful of seeds is far too narrow (two seeds: 51 % coverage of a 95 % interval), and so
is one over plain residuals. Resamples are therefore drawn around the fitted curve with normal errors of
the estimated noise level, and spread afterwards by the chi-squared law of that estimate: intervals widen
as Student's do when degrees of freedom are few.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import chdtri, ndtri, stdtrit

from analysis.config import Array

FEW_BLOCKS = 10  # below this many, percentiles over resampled blocks cover far too seldom
REPLICATES, RESIDUALS = "replicate seeds", "residuals of this fit"


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """A standard deviation in nats, the degrees of freedom behind it and where it comes from."""

    sd_nats: float
    degrees_of_freedom: int
    source: str
    residual_sd_nats: float | None = None  # of the fit, where it was compared with replicate seeds
    misfit_sd_nats: float | None = None  # the same without the replicates' own scatter
    lack_of_fit: float | None = None  # chance that replicates' noise leaves a misfit as large

    @property
    def widened(self) -> bool:
        """Say whether replicate seeds are there but the residuals, being larger, were taken."""
        return self.lack_of_fit is not None and self.source == RESIDUALS


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Standard normal errors [resamples, runs] and one uniform per resample for the noise level.

    With `weights` [resamples, runs] runs are drawn instead of errors: how often each enters a resample.
    """

    normal: Array = field(repr=False)
    uniform: Array = field(repr=False)
    weights: Array | None = field(default=None, repr=False)
    independent: float = 1.0  # errors that are independent, per run; less where trunks are shared

    def noise(self, level: NoiseLevel, columns: Any = slice(None)) -> Array:
        """Return errors in nats [resamples, runs]."""
        return level.sd_nats * self.normal[:, columns]

    def factor(self, level: NoiseLevel) -> Array:
        """Return by how much each resample would have misjudged the noise level [resamples].

        One where runs are drawn: their scatter is in the resample already.
        """
        if self.weights is not None:
            return np.ones(len(self.uniform))
        freedom = level.degrees_of_freedom
        return np.asarray(np.sqrt(chdtri(freedom, self.uniform) / freedom))


def draws(
    resamples: int,
    runs: int,
    seed: int,
    label: str,
    trunks: np.ndarray[Any, Any] | None = None,
    share: float = 1.0,
) -> Draws:
    """Draw the noise of one group; `label` keeps the groups' streams apart and independent of their order.

    Runs of one trunk (`trunks` [runs]) have `share` of the variance of their errors in common.
    """
    generator = np.random.default_rng([seed, zlib.crc32(label.encode())])
    normal, uniform = generator.standard_normal((resamples, runs)), generator.random(resamples)
    labels = np.arange(runs) if trunks is None else trunks
    names, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    together = counts[place] > 1
    if not together.any() or not share:
        return Draws(normal=normal, uniform=uniform)
    common = generator.standard_normal((resamples, len(names)))[:, place]
    mixed = np.sqrt(share) * common + np.sqrt(1 - share) * normal
    independent = 1 - share**2 * (1 - len(names) / runs)
    return Draws(normal=np.where(together, mixed, normal), uniform=uniform, independent=independent)


def resample(
    drawn: Draws, how: str, strata: np.ndarray[Any, Any], blocks: np.ndarray[Any, Any], label: str, seed: int
) -> Draws:
    """Return draws of runs (`how` is pairs, stratified or block) in place of draws of errors ("noise").

    Raises ValueError for fewer than ten blocks: percentiles over so few cover far too seldom.
    """
    if how == "noise":
        return drawn
    count = len(np.unique(blocks))
    if how == "block" and count < FEW_BLOCKS:
        raise ValueError(
            f"resampling=block: {count} blocks are fewer than {FEW_BLOCKS}, so that percentiles over them "
            "cover too seldom; use resampling=noise"
        )
    labels = strata if how == "stratified" else blocks
    resamples, runs = drawn.normal.shape
    weights = resampling_weights(how, runs, labels, resamples, zlib.crc32(label.encode()) + seed)
    return replace(drawn, weights=weights)


def studentised(samples: Array, factor: Array) -> Array:
    """Spread samples about their median as Student's t does, by each resample's factor of the noise level."""
    known = samples[np.isfinite(samples)]
    if not len(known):
        return samples
    middle = float(np.median(known))
    return np.asarray(middle + (samples - middle) / factor)


def student_factor(freedom: float, confidence: float = 0.95) -> float:
    """Return how much wider Student's interval is than the normal one."""
    return float(stdtrit(freedom, (1 + confidence) / 2) / ndtri((1 + confidence) / 2))


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


def student_interval(value: Array, draws: Array, blocks: int, confidence: float) -> tuple[Array, Array]:
    """Return Student's interval about `value` [parameters] from a bootstrap over few blocks.

    The standard error of `draws` [resamples, parameters] is freed of its bias (a variance over k resampled
    blocks is (k - 1) / k of the true one) and taken with k - 1 degrees of freedom. Raises ValueError below
    three blocks, which tell next to nothing of their own scatter.
    """
    if blocks < 3:
        raise ValueError(f"{blocks} block{'s' * (blocks > 1)} cannot give an interval, at least 3 are needed")
    error = draws.std(0, ddof=1) * np.sqrt(blocks / (blocks - 1))
    half = float(stdtrit(blocks - 1, (1 + confidence) / 2)) * error
    return value - half, value + half
