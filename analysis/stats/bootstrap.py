"""Resamples for bootstrap intervals: normal errors around a fit, or runs drawn again.

A bootstrap over two seeds covers the truth in 51 % of the cases where it should in 95 %, and one over plain
residuals is too narrow as well. By default resamples are therefore parametric: normal errors of the
estimated noise level around the fitted curve. They are then spread by the chi-squared distribution of that
estimate, which widens intervals as Student's t does when degrees of freedom are few. All estimators of a
group share the same draws, so their differences can be tested.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import chdtri, fdtrc, ndtri, stdtrit

from analysis.config import Array, Counts, Labels
from analysis.format import plural
from analysis.serialize import HIDDEN
from analysis.stats.noise import CONSTANT, NoiseFloor, NoiseTrend

FEW_BLOCKS = 10  # with fewer blocks, percentiles over resampled blocks cover too rarely
LACK_OF_FIT = 0.01  # p value of the test for lack of fit below which intervals use the residuals
REPLICATES, RESIDUALS = "replicate seeds", "residuals of this fit"


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """A standard deviation in nats, the degrees of freedom behind it and where it comes from."""

    sd_nats: float
    degrees_of_freedom: int
    source: str
    residual_sd_nats: float | None = None  # of the fit, where it was compared with replicate seeds
    misfit_sd_nats: float | None = None  # the same without the replicates' own scatter
    lack_of_fit: float | None = None  # p value: the noise of the replicates leaves a misfit as large
    trend: NoiseTrend = field(default=CONSTANT, metadata=HIDDEN)  # of the noise over the budget

    @property
    def widened(self) -> bool:
        """Return True if the residuals were taken because they exceed the noise of replicate seeds."""
        return self.lack_of_fit is not None and self.source == RESIDUALS


def noise_level(
    floor: NoiseFloor,
    squares: float,
    freedom: int,
    run_ids: Labels,
    *,
    independent: float = 1.0,
    trend: NoiseTrend = CONSTANT,
) -> NoiseLevel:
    """Return the noise level of the replicate seeds, or of the residuals where these exceed it.

    Parameters
    ----------
    squares : sum of the squared residuals of a fit in nats².
    freedom : their degrees of freedom.
    run_ids : of the runs that were fitted.
    independent : independent errors per run (see `Draws`).

    Notes
    -----
    The residuals are used without replicates, and where an F test for lack of fit rejects at 1 %: the
    residuals less the scatter of replicates among them, against the pooled replicates. The test treats
    runs as independent. For runs that share a trunk it rejects too often, which widens intervals. Only
    without replicates may the noise change with the budget: beside them, a change may be a wrong form's.
    """
    residual = NoiseLevel(
        sd_nats=float(np.sqrt(squares / freedom)),
        degrees_of_freedom=max(1, round(freedom * independent)),
        source=RESIDUALS,
    )
    if floor.sd_nats is None:
        return replace(residual, source=f"{residual.source}, training noise unknown", trend=trend)
    replicates = NoiseLevel(
        sd_nats=floor.sd_nats, degrees_of_freedom=floor.degrees_of_freedom, source=REPLICATES
    )
    pure, within = floor.replicates_among(run_ids)
    # A floor without cells is one of paired runs. It lacks the seed effects that residuals contain.
    if not floor.cells or not floor.sd_nats or freedom <= within:
        return replicates
    misfit = max(0.0, squares - pure) / (freedom - within)
    chance = float(fdtrc(freedom - within, floor.degrees_of_freedom, misfit / floor.sd_nats**2))
    larger = chance < LACK_OF_FIT and residual.sd_nats > floor.sd_nats
    return replace(
        residual if larger else replicates,
        residual_sd_nats=residual.sd_nats,
        misfit_sd_nats=float(np.sqrt(misfit)),
        lack_of_fit=chance,
    )


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Standard normal errors [resamples, runs] and one uniform number per resample for the noise level.

    With `weights` [resamples, runs], how often each run enters a resample, runs are drawn instead of errors.
    """

    normal: Array = field(repr=False)
    uniform: Array = field(repr=False)
    weights: Counts | None = field(default=None, repr=False)
    independent: float = 1.0  # independent errors per run; below 1 where runs share a trunk

    def noise(self, level: NoiseLevel, columns: Any = slice(None), flops: Array | None = None) -> Array:
        """Return errors in nats [resamples, runs]; with the runs' budgets `flops`, by the level's trend."""
        errors = level.sd_nats * self.normal[:, columns]
        return errors if flops is None or level.trend.is_constant else errors * level.trend.scale(flops)

    def factor(self, level: NoiseLevel) -> Array:
        """Return the estimated noise level of each resample over the true one [resamples].

        It is 1 where runs are drawn: the resamples contain their scatter already.
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
    """Draw the errors of one group of runs.

    Parameters
    ----------
    label : of the group; it seeds the stream, so groups are independent of each other and of their order.
    trunks : label of each run's trunk [runs]; runs of one trunk have `share` of their errors' variance in
        common.
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
    """Return `drawn` with runs drawn again (`how`: pairs, stratified, block), or unchanged for "noise".

    Parameters
    ----------
    strata, blocks : label of each run [runs], used by stratified and block resampling.

    Raises
    ------
    ValueError : block resampling of fewer than ten blocks, whose percentiles cover too rarely.
    """
    if how == "noise":
        return drawn
    count = len(np.unique(blocks))
    if how == "block" and count < FEW_BLOCKS:
        raise ValueError(
            f"resampling=block: {count} blocks are fewer than {FEW_BLOCKS}, and percentiles over so few "
            "cover too rarely; use resampling=noise"
        )
    labels = strata if how == "stratified" else blocks
    resamples, runs = drawn.normal.shape
    weights = resampling_weights(how, runs, labels, resamples, zlib.crc32(label.encode()) + seed)
    return replace(drawn, weights=weights)


def studentised(samples: Array, factor: Array) -> Array:
    """Return samples spread about their median by each resample's factor of the noise level.

    This turns normal intervals into those of Student's t.
    """
    known = samples[np.isfinite(samples)]
    if not len(known):
        return samples
    middle = float(np.median(known))
    return np.asarray(middle + (samples - middle) / factor)


def student_factor(freedom: float, confidence: float = 0.95) -> float:
    """Return the width of Student's interval over that of the normal one."""
    return float(stdtrit(freedom, (1 + confidence) / 2) / ndtri((1 + confidence) / 2))


def interval(samples: Array, confidence: float) -> tuple[float | None, float | None]:
    """Return the percentile interval of `samples`, NaN left out; None for an end that is not finite.

    Notes
    -----
    The ends are order statistics (interpolation between infinities would give NaN), equally many from either
    side: of n samples the r-th smallest and the r-th largest with r = floor((n + 1) (1 - confidence) / 2), at
    least 1. A further sample lies between them with at least the probability `confidence`, where n allows.
    """
    known = np.sort(samples[~np.isnan(samples)])
    if not len(known):
        return None, None
    rank = max(int((len(known) + 1) * (1 - confidence) / 2 + 1e-9), 1)  # the addend is for rounding alone
    low, high = known[rank - 1], known[-rank]
    return (float(low) if np.isfinite(low) else None), (float(high) if np.isfinite(high) else None)


def resampling_weights(
    how: str, points: int, labels: np.ndarray[Any, Any] | None, resamples: int, seed: int
) -> Counts:
    """Return how often each point enters each resample [resamples, points].

    Parameters
    ----------
    how : "pairs" draws points and is right for independent noise. "stratified" draws within each label (a
        budget), which keeps the size of every budget; the noise must be independent of the label. "block"
        draws whole labels, for runs that share a seed, a trunk or the effect of a budget; with fewer than
        ten blocks it is too narrow.
    labels : one for every point [points]; not used by "pairs".

    Raises
    ------
    ValueError : `how` is unknown, or labels are missing.
    """
    generator = np.random.default_rng(seed)
    if how == "pairs":
        return _counts(generator, points, resamples)
    if how not in ("stratified", "block"):
        raise ValueError(f"resampling {how!r} is unknown: choose pairs, stratified or block")
    if labels is None:
        raise ValueError(f"resampling {how!r} needs a label for every point")
    names, place = np.unique(labels, return_inverse=True)
    if how == "block":
        return _counts(generator, len(names), resamples)[:, place]
    weights = np.zeros((resamples, points), np.uint16)
    for index in range(len(names)):
        rows = np.flatnonzero(place == index)
        weights[:, rows] = _counts(generator, len(rows), resamples)
    return weights


def _counts(generator: np.random.Generator, items: int, resamples: int) -> Counts:
    """Return how often each of some items is drawn when as many are drawn again [resamples, items]."""
    chances, drawn = np.full(items, 1 / items), np.empty((resamples, items), np.uint16)
    for row in drawn:
        row[:] = generator.multinomial(items, chances)
    return drawn


def student_interval(
    value: Array, draws: Array, blocks: int, confidence: float, used: int = 1
) -> tuple[Array, Array]:
    """Return Student's interval about `value` [parameters] from a bootstrap over few blocks.

    The standard error of `draws` [resamples, parameters] is corrected for its bias (a variance over k
    resampled blocks is (k - 1) / k of the true one) and used with k - 1 degrees of freedom; with `used`
    parameters in place of the one. Raises ValueError for fewer than three blocks, which hardly determine
    their own scatter.
    """
    if blocks < 3:
        raise ValueError(f"{plural(blocks, 'block')} cannot give an interval, at least 3 are needed")
    error = draws.std(0, ddof=1) * np.sqrt(blocks / (blocks - used))
    half = float(stdtrit(blocks - used, (1 + confidence) / 2)) * error
    return value - half, value + half
