"""The size at which a ladder's law reaches a loss, and the share of the gap between two sizes.

Both intervals are inverted tests, as in Fieller (1954): they hold the sizes, or shares, that the runs do not
reject. An end that the ladder's runs do not reject is open.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from analysis.compare.arm_differences import Estimate
from analysis.compare.ladder import LadderLaw
from analysis.config import Array, FitConfig
from analysis.format import number
from analysis.stats.bootstrap import NoiseLevel, draws

STEPS = 400  # sizes between the smallest and the largest at which the law is evaluated


def size_path(law: LadderLaw, tokens: float | None = None, flops: float | None = None) -> tuple[Array, Array]:
    """Return sizes within the ladder, ascending, and their tokens: the same for all, or those of equal FLOPs.

    Of equal FLOPs, sizes whose tokens lie outside those of the ladder's runs are left out.
    """
    params, seen = law.points["params"], law.points["tokens"]
    sizes = np.geomspace(params.min(), params.max(), STEPS)
    if flops is None:
        assert tokens is not None
        return sizes, np.full(STEPS, tokens)
    needed = flops / law.flops_per_token(sizes)
    inside = (needed >= 0.99 * seen.min()) & (needed <= 1.01 * seen.max())
    return sizes[inside], needed[inside]


def equal_size(
    law: LadderLaw,
    path: tuple[Array, Array],
    reached: float,
    runs: int,
    config: FitConfig,
    label: str,
) -> Estimate:
    """Return the least size on a path at which the law reaches a loss.

    Parameters
    ----------
    path : sizes ascending and their tokens (see `size_path`).
    reached : the mean loss of the model to be equalled.
    runs : of which it is the mean.
    label : names the random stream from which that mean's own noise is drawn.

    Notes
    -----
    At every size the resampled law less the resampled loss has an interval, spread for the freedom of the
    noise level. The interval of the size holds those at which it contains zero.
    """
    sizes, tokens = path
    if len(sizes) < 2:
        return Estimate(refusal="no size of the ladder was trained at about these tokens")
    fitted, drawn = law.losses(sizes, tokens)
    at = int(np.argmax(fitted <= reached))
    if fitted[at] > reached:
        lowest = int(np.argmin(fitted))
        return Estimate(
            refusal=f"{number(reached, 4)} is below the ladder, whose least is {number(fitted[lowest], 4)} "
            f"at {number(sizes[lowest])} parameters: "
            + ("larger sizes are needed" if lowest == len(sizes) - 1 else "no size reaches it")
        )
    if at == 0:
        return Estimate(
            refusal=f"{number(reached, 4)} is above the ladder, whose smallest model of "
            f"{number(sizes[0])} parameters has {number(fitted[0], 4)}: smaller sizes are needed"
        )
    own = draws(len(drawn), 1, config.seed, label).noise(law.level) / np.sqrt(runs)
    gap = drawn - reached - own
    tail = (1 - config.confidence) / 2
    low, high = np.quantile(law.spread(gap), [tail, 1 - tail], axis=0)
    logs = np.log(sizes)
    below, above = np.flatnonzero(low[:at] > 0), at + np.flatnonzero(high[at:] < 0)
    return Estimate(
        value=float(np.exp(_root(logs, fitted - reached, at - 1))),
        low=float(np.exp(_root(logs, low, int(below[-1])))) if len(below) else None,
        high=float(np.exp(_root(logs, high, int(above[0]) - 1))) if len(above) else None,
    )


def gap_share(
    means: Sequence[float], runs: Sequence[int], level: NoiseLevel | None, config: FitConfig
) -> Estimate:
    """Return the share of the gap from one size to the next larger that a model closes.

    Parameters
    ----------
    means : of the smaller size, of the larger and of the model.
    runs : of which they are the means.
    level : noise of one run; None: unknown, both ends are open.
    """
    smaller, larger, model = means
    closed, gap = smaller - model, smaller - larger
    if gap <= 0:
        return Estimate(refusal="the next larger size of the ladder is no better")
    share = closed / gap
    if level is None:
        return Estimate(value=share)
    once = [1 / count for count in runs]
    limit = (float(stdtrit(level.degrees_of_freedom, (1 + config.confidence) / 2)) * level.sd_nats) ** 2
    # (closed - s gap)^2 <= limit x variance is a quadratic in the share s.
    a = gap**2 - limit * (once[0] + once[1])
    b = closed * gap - limit * once[0]
    c = closed**2 - limit * (once[0] + once[2])
    if a <= 0:  # the noise does not reject a gap of zero, nor shares of any size
        return Estimate(value=share)
    half = float(np.sqrt(max(0.0, b**2 - a * c)))
    return Estimate(value=share, low=(b - half) / a, high=(b + half) / a)


def _root(x: Array, y: Array, left: int) -> float:
    """Return where the line through points `left` and `left + 1` is zero."""
    rise = y[left + 1] - y[left]
    return float(x[left] - y[left] * (x[left + 1] - x[left]) / rise) if rise else float(x[left])
