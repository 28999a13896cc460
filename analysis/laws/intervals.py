"""Intervals of a law from its resamples, and where the data leave one open."""

from __future__ import annotations

import numpy as np

from analysis.config import Array
from analysis.laws.identifiability import held
from analysis.laws.law import Law
from analysis.laws.newton import Fit
from analysis.stats.bootstrap import FEW_BLOCKS, few_blocks, interval

Intervals = dict[str, tuple[float | None, float | None]]


def intervals(
    law: Law, slopes: Array, point: Fit, resampled: Fit, blocks: int, confidence: float
) -> Intervals:
    """Return percentile intervals, or Student's where few blocks were resampled (see `few_blocks`).

    An end is open (None) where more resamples than lie beyond it are held by a bound on that side: it would
    be the bound, not the data. Both are open where the fit itself is held (see `held`).
    """
    fitted, draws = point.parameters[0], resampled.parameters
    if 0 < blocks < FEW_BLOCKS:
        low, high = (law.public(end) for end in few_blocks(fitted, draws, blocks, confidence))
        found: Intervals = {name: (float(low[name][0]), float(high[name][0])) for name in low}
    else:
        found = {name: interval(value, confidence) for name, value in law.public(draws).items()}
    tail, nowhere = (1 - confidence) / 2, held(law, slopes, point.at_bound)[0]
    least, most = law.bounds
    by_amplitude = held(law, slopes, resampled.at_bound) & ~resampled.at_bound
    shares = [((draws <= least) | by_amplitude).mean(0), ((draws >= most) | by_amplitude).mean(0)]
    open_ends = [nowhere | (share > tail) for share in shares]
    return {
        name: (None if no_low else ends[0], None if no_high else ends[1])
        for (name, ends), no_low, no_high in zip(found.items(), *open_ends, strict=True)
    }


def band(values: Array, draws: Array, blocks: int, confidence: float) -> tuple[Array, Array]:
    """Return the pointwise interval about `values` [points] of `draws` [resamples, points].

    Raises ValueError where there are no resamples.
    """
    if not len(draws):
        raise ValueError("the law was fitted without resamples, so that it has no band: set bootstrap=1000")
    if 0 < blocks < FEW_BLOCKS:
        return few_blocks(values, draws, blocks, confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def told(bootstrap: int, resampling: str, seed: int, blocks: int) -> str:
    """Say how the intervals came about."""
    if not bootstrap:
        return "none"
    words = f"{bootstrap} resamples, {resampling}, seed {seed}"
    if not 0 < blocks < FEW_BLOCKS:
        return words
    freedom = f"{blocks - 1} degree{'s' * (blocks > 2)} of freedom"
    return f"{words}; {blocks} blocks are too few for percentiles: Student's t with {freedom}"
