"""What the runs of a group say before any law: outliers, losses without a curve, noise over the budget.

All three follow from the residuals of the shared shape, which has no bias of form. Screening that finds
nothing leaves the runs, and with them every result, as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import fdtrc, stdtrit

from analysis.config import Array, Labels, Mask
from analysis.format import number, percent
from analysis.isoflop.curves import MIN_SWEPT, Curves
from analysis.laws.surface import PARAMETERS, fit_surface
from analysis.laws.variable_projection import fit_shared_shape, leverages
from analysis.stats.noise import CONSTANT, ROUNDING, NoiseTrend, noise_trend

OUTLIER_LEVEL = 0.01  # chance that a study without outliers has one (Bonferroni over its runs)
MAX_OUTLIERS = 0.1  # share of the runs; more are no outliers but noise of another law
CONFIRMED = 0.05  # chance that a run found by the surface lies as far off its own curve
PULLS = 0.5  # leverage above which a run determines most of its own curve
NO_CURVE = 0.05  # p value of the curves against one level per budget, above which there is no curve


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """A run far off its curve: its distance from the fit to the others, and in units of their noise."""

    run_id: str
    place: str  # on its curve
    distance_nats: float
    deviations: float

    def summary(self) -> str:
        """Return the run and its distance."""
        far = f"{abs(self.deviations):.0f} standard deviations ({number(self.distance_nats, 2)} nats)"
        return f"run {self.run_id} ({self.place}) lies {far} off its curve"


@dataclass(frozen=True, kw_only=True)
class Screening:
    """What was found: runs to keep [runs], outliers, how noise changes, and why there is no curve to fit."""

    kept: Mask = field(repr=False)
    outliers: tuple[Outlier, ...] = ()
    trend: NoiseTrend = CONSTANT
    no_curve: str | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Return what was found, one flag for each outlier, or one for all that are too many to leave out."""
        flags = [f"{outlier.summary()}: left out" for outlier in self.outliers]
        if self.outliers and self.kept.all():
            worst = max(self.outliers, key=lambda outlier: abs(outlier.deviations))
            count = f"more than {percent(MAX_OUTLIERS)} of the runs lie off their curves"
            flags = [f"{count}, which are no outliers: all are kept ({worst.summary()})"]
        return tuple(flags)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """The shared shape of some runs: residuals and leverages [runs], NaN at runs that were not fitted."""

    used: Mask
    residual: Array
    leverage: Array
    freedom: int
    sd_nats: float
    trend: NoiseTrend


def screen(cells: Curves, run_ids: Labels) -> Screening:
    """Look for outliers, for losses that are no more than noise, and for noise that changes with the budget.

    Parameters
    ----------
    run_ids : of the group's table.

    Notes
    -----
    The run with the largest studentised deleted residual is left out if that exceeds Student's quantile of
    `OUTLIER_LEVEL` over the number of runs, at the noise of its budget as the other runs show it; then the
    next (sequential test; Cook and Weisberg 1982, section 2.2). A run at the end of a curve pulls the curve
    to itself. Such a run is also left out if it exceeds that quantile off the surface, which it hardly
    pulls, and the quantile of a single run off its own curve.
    """
    kept = np.ones(len(cells.loss_nats), bool)
    outliers: list[Outlier] = []
    fit = _fit(cells, kept)
    while fit is not None:
        worst, tests = _suspect(cells, fit)
        if worst is None:
            break
        others = kept.copy()
        others[worst] = False
        rest = _fit(cells, others)
        if rest is None:
            break
        outlier = _outlier(cells, run_ids, fit, rest, worst)
        if abs(outlier.deviations) <= _limit(rest.freedom, tests):
            break
        outliers.append(outlier)
        if len(outliers) > max(1.0, MAX_OUTLIERS * len(kept)):
            return Screening(kept=np.ones_like(kept), outliers=tuple(outliers))
        kept, fit = others, rest
    reason = _equal(cells) or (_no_curve(cells, fit) if fit else None)
    trend = fit.trend if fit else CONSTANT
    return Screening(kept=kept, outliers=tuple(outliers), trend=trend, no_curve=reason)


def _fit(cells: Curves, kept: Mask) -> _Fit | None:
    """Fit the kept runs of curves with enough of them; None without a degree of freedom for the noise."""
    budgets = [
        k
        for k in range(len(cells.budgets_flops))
        if len(np.unique(cells.values[kept & (cells.budget == k)])) >= MIN_SWEPT
    ]
    used = kept & np.isin(cells.budget, budgets)
    freedom = int(used.sum()) - 3 * len(budgets) - 2
    if not budgets or freedom < 1:
        return None
    index = np.searchsorted(budgets, cells.budget[used])
    u, v, losses = np.log(cells.params[used]), np.log(cells.tokens[used]), cells.loss_nats[used]
    fit = fit_shared_shape(u, v, losses[None], index)
    residual, leverage = np.full((2, len(kept)), np.nan)
    for k in range(len(budgets)):
        at = index == k
        residual[np.flatnonzero(used)[at]] = losses[at] - fit.losses(k, u[at], v[at])[0]
    leverage[used] = leverages(fit, u, v, index)
    sd = float(np.sqrt(np.square(residual[used]).sum() / freedom))
    if sd <= ROUNDING * losses.mean():
        sd, trend = ROUNDING * float(losses.mean()), CONSTANT
    else:
        trend = noise_trend(residual[used], leverage[used], cells.budgets_flops[cells.budget[used]])
    return _Fit(used=used, residual=residual, leverage=leverage, freedom=freedom, sd_nats=sd, trend=trend)


def _suspect(cells: Curves, fit: _Fit) -> tuple[int | None, int]:
    """Return the run that may be an outlier, and among how many runs it was chosen for its residual."""
    runs = int(fit.used.sum())
    own = np.square(fit.residual) / np.maximum(1 - fit.leverage, 1e-9)
    others = np.maximum(fit.sd_nats**2 * fit.freedom - own, 1e-12 * own)
    studentised = np.sqrt(own / others * (fit.freedom - 1))  # deleted residuals, by linear theory
    worst = int(np.nanargmax(studentised))
    if studentised[worst] > _limit(fit.freedom - 1, runs):
        return worst, runs
    with np.errstate(invalid="ignore"):
        doubtful = (studentised > _limit(fit.freedom - 1, 1)) & (fit.leverage > PULLS)
    if doubtful.any() and runs >= len(PARAMETERS) + 3:
        off = np.where(doubtful, _off_surface(cells, fit.used), 0.0)
        worst = int(np.argmax(off))
        if off[worst] > _limit(runs - len(PARAMETERS) - 1, runs):
            return worst, 1
    return None, runs


def _off_surface(cells: Curves, used: Mask) -> Array:
    """Return the size of the deleted residuals of the surface over the noise of the others [runs]."""
    u, v, losses = np.log(cells.params[used]), np.log(cells.tokens[used]), cells.loss_nats[used]
    squares = np.zeros(len(used))
    squares[used] = np.square(losses - fit_surface(u, v, losses).losses(u, v)[0])
    others = np.maximum(squares.sum() - squares, 1e-12 * squares.max())
    return np.asarray(np.sqrt(squares / others * (len(losses) - len(PARAMETERS) - 1)))


def _outlier(cells: Curves, run_ids: Labels, fit: _Fit, rest: _Fit, run: int) -> Outlier:
    """Return a run as an outlier from the fit to the rest, with the noise of its budget."""
    spare = max(1 - fit.leverage[run], 1e-9)
    distance = float(fit.residual[run] / spare)
    sd = rest.sd_nats * float(rest.trend.scale(cells.budgets_flops[cells.budget[run]]))
    deviations = distance * float(np.sqrt(spare)) / sd
    flops, value = float(cells.budgets_flops[cells.budget[run]]), number(float(cells.values[run]))
    swept = f"µ = {value}" if cells.variable == "mean_recurrence" else f"{value} parameters"
    return Outlier(
        run_id=str(run_ids[cells.rows[run]]),
        place=f"{swept}, {number(flops)} FLOPs",
        distance_nats=distance,
        deviations=deviations,
    )


def _limit(freedom: int, runs: int) -> float:
    """Return the limit of the largest of some studentised residuals, or of the one of a confirmation."""
    level = CONFIRMED if runs == 1 else OUTLIER_LEVEL
    return float(stdtrit(freedom, 1 - level / (2 * runs))) if freedom > 0 else np.inf


def _equal(cells: Curves) -> str | None:
    """Return that the losses of every budget are equal up to rounding, None if they are not."""
    for k in range(len(cells.budgets_flops)):
        losses = cells.loss_nats[cells.budget == k]
        if np.ptp(losses) > ROUNDING * losses.mean():
            return None
    return "the losses of each budget are all equal: there is no minimum to find"


def _no_curve(cells: Curves, fit: _Fit) -> str | None:
    """Return that one level per budget explains the losses as well as curves do (F test), None if not."""
    budget, losses = cells.budget[fit.used], cells.loss_nats[fit.used]
    counts = np.bincount(budget)
    means = np.bincount(budget, losses) / np.maximum(counts, 1)
    squares, level = fit.sd_nats**2 * fit.freedom, float(np.square(losses - means[budget]).sum())
    more = 2 * int((counts > 0).sum()) + 2
    chance = float(fdtrc(more, fit.freedom, max(0.0, level - squares) / more / fit.sd_nats**2))
    if chance <= NO_CURVE:
        return None
    return (
        f"no curve: the losses of a budget differ by no more than their noise of {number(fit.sd_nats, 2)} "
        f"nats explains (p = {chance:.2g})"
    )
