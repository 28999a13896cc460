"""Differences of two arms at one scale: nats over shared cells, compute multiplier, exponents and phi.

Each comes with its interval, or with the reason why the runs do not carry it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.compare.compute_multiplier import log_equivalent_flops
from analysis.config import Array, FitConfig
from analysis.format import percent
from analysis.isoflop.curves import Optimum, Quantity
from analysis.isoflop.group import GroupFit
from analysis.laws.fit import fit_law
from analysis.laws.registry import LAWS
from analysis.stats.bootstrap import NoiseLevel, interval, studentised
from analysis.tables.arms import CELL_COLUMNS
from analysis.tables.schema import TableError

BEYOND = 0.025  # share of the resamples in which a loss may lie beyond the reference's and still be read off
LogMultiplier = tuple[float, Array]  # of the fit and of its resamples


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval, None for an end that is open, or the reason for its refusal."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    refusal: str | None = None

    def summary(self, form: str = "+.4f") -> str:
        """Return the number with its interval in brackets, or the refusal."""
        if self.value is None:
            return f"refused: {self.refusal}"
        low, high = ("open" if end is None else format(end, form) for end in (self.low, self.high))
        return f"{self.value:{form}} [{low}, {high}]"


def paired_cells(arm: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of one group that both arms trained: gap in nats, runs a side, shared trunk."""
    named = {"nats": ("val_loss_nats", "mean"), "runs": ("seed", "size"), "trunk": ("trunk_id", "first")}
    ours, theirs = (
        side.groupby(list(CELL_COLUMNS)).agg(**named).add_suffix(f"_{name}")
        for name, side in (("arm", arm), ("base", base))
    )
    both = ours.join(theirs, how="inner").reset_index()
    both["gap"] = both["nats_arm"] - both["nats_base"]
    trunks = both["trunk_arm"].astype(str) + both["trunk_base"].astype(str)
    both["block"] = np.where(trunks == "", both.index.astype(str), trunks)
    return both


def mean_difference(both: pd.DataFrame, level: NoiseLevel | None, config: FitConfig) -> Estimate:
    """Return the mean gap over cells with Student's interval.

    Notes
    -----
    Its noise is that of seeds or of the fitted curves: sd^2 times the sum over blocks of squared weights.
    Cells of one trunk are one block whose noise is common, the widest reading. Without a noise level the
    scatter of the blocks stands for it; it holds what truly differs between cells, too.
    """
    if both.empty:
        return Estimate(refusal="the arms share no cell: no recurrence was trained at the same FLOPs in both")
    gap, mean = both["gap"].to_numpy(float), float(both["gap"].mean())
    if level is None:
        blocks = both.groupby("block")["gap"].mean()
        freedom = len(blocks) - 1
        if freedom < 1:
            return Estimate(value=mean)
        error = float(blocks.std() / np.sqrt(len(blocks)))
    else:
        freedom = level.degrees_of_freedom
        squares = 0.0
        for side in ("arm", "base"):
            weight = 1 / np.sqrt(both[f"runs_{side}"].to_numpy(float)) / len(gap)
            squares += float(pd.Series(weight).groupby(both["block"].to_numpy()).sum().pow(2).sum())
        error = level.sd_nats * float(np.sqrt(squares))
    half = float(stdtrit(freedom, (1 + config.confidence) / 2)) * error
    return Estimate(value=mean, low=mean - half, high=mean + half)


def optimum_difference(ours: Optimum | None, theirs: Optimum | None, config: FitConfig) -> Estimate:
    if ours is None or theirs is None or ours.loss_nats is None or theirs.loss_nats is None:
        return Estimate(refusal="an arm has no accepted optimum here")
    drawn = _losses(ours) - _losses(theirs)
    low, high = interval(drawn, config.confidence)
    return Estimate(value=ours.loss_nats - theirs.loss_nats, low=low, high=high)


def _losses(optimum: Optimum) -> Array:
    """Return the resampled loss at an optimum, spread for the freedom of its noise level."""
    return studentised(optimum.loss_draws, optimum.factor)


def log_multiplier(
    ours: Mapping[float, Optimum], theirs: Mapping[float, Optimum], flops: float
) -> LogMultiplier | str:
    """Return the log of reference FLOPs over `flops` at the arm's optimal loss, with its resamples.

    The reference's optima are joined by monotone cubics in log C (see `between`). Returns why not, where
    the loss lies beyond them, or so close to an end that resamples do.
    """
    if flops not in ours:
        return "the arm has no accepted optimum here"
    if len(theirs) < 2:
        return f"the reference has {len(theirs)} accepted optima, at least 2 are needed"
    budgets = sorted(theirs)
    reference = np.array([[theirs[budget].loss_nats for budget in budgets]], float)
    loss = np.array([ours[flops].loss_nats], float)
    at = float(log_equivalent_flops(*between(reference, budgets, loss))[0])
    if np.isinf(at):
        side = "below" if at > 0 else "above"
        return f"the loss {loss[0]:.4f} lies {side} the reference's at its budgets"
    drawn = np.stack([_losses(theirs[budget]) for budget in budgets], -1)
    drawn = np.where(np.isnan(drawn), reference, drawn)  # a few resamples have no minimum at some budget
    mine = _losses(ours[flops])
    count = min(len(drawn), len(mine))
    logs = log_equivalent_flops(*between(drawn[:count], budgets, mine[:count]))
    logs = np.where(np.isnan(mine[:count]), np.nan, logs)
    beyond = float(np.isinf(logs).mean())
    if beyond > BEYOND:
        return f"in {percent(beyond)} of the resamples the loss is beyond the reference's"
    return at - float(np.log(flops)), np.where(np.isinf(logs), np.nan, logs) - float(np.log(flops))


def between(losses: Array, budgets: Sequence[float], reached: Array) -> tuple[Array, Array, Array]:
    """Return the arguments of `log_equivalent_flops` with losses [rows, budgets] filled in between budgets.

    Fritsch and Carlson's monotone cubic: straight lines overstate the loss of a convex curve, by which a
    multiplier of 1.3 between budgets a factor of two apart came out as 1.33.
    """
    from scipy.interpolate import PchipInterpolator

    logs = np.log(budgets)
    fine = np.interp(np.linspace(0, len(logs) - 1, 32 * (len(logs) - 1) + 1), np.arange(len(logs)), logs)
    return PchipInterpolator(logs, losses, axis=1)(fine), reached, np.exp(fine)


def multiplier(logs: Sequence[LogMultiplier], refusal: str, config: FitConfig) -> Estimate:
    """Return the geometric mean of multipliers over budgets."""
    if not logs:
        return Estimate(refusal=refusal)
    low, high = interval(np.mean([drawn for _, drawn in logs], axis=0), config.confidence)
    return Estimate(
        value=float(np.exp(np.mean([point for point, _ in logs]))),
        low=None if low is None else float(np.exp(low)),
        high=None if high is None else float(np.exp(high)),
    )


def exponent_difference(arm: GroupFit, base: GroupFit, quantity: Quantity, config: FitConfig) -> Estimate:
    ours, theirs = (fit.estimator().laws[quantity] for fit in (arm, base))
    for side, law in (("the arm", ours), ("the reference", theirs)):
        if law.exponent is None:
            return Estimate(refusal=f"{side} has no law: {law.refusal}")
    assert ours.exponent is not None and theirs.exponent is not None
    count = min(len(ours.draws), len(theirs.draws))
    low, high = interval(ours.draws[:count, 1] - theirs.draws[:count, 1], config.confidence)
    return Estimate(value=ours.exponent - theirs.exponent, low=low, high=high)


def phi_difference(arm: pd.DataFrame, base: pd.DataFrame, config: FitConfig) -> Estimate:
    """Return the difference of phi of the iso-depth law, over the cells that both arms have.

    Notes
    -----
    Each cell is one block of a bootstrap that draws the same cells in both arms: what a cell does to both
    alike cancels.
    """
    keys = ["group", "recurrence", "budget_flops"]
    values = [name for name in (*LAWS["iso_depth"].columns, "loss") if name not in keys]
    means = [side.groupby(keys)[values].mean() for side in (arm, base)]
    shared = means[0].index.intersection(means[1].index).sort_values()
    if len(means[1].loc[shared, ["params_once", "params_looped"]].drop_duplicates()) < 2:
        return Estimate(refusal="the arms share runs of one size alone, in which phi and alpha trade off")
    fitted = []
    for side, name in zip(means, ("the arm", "the reference"), strict=True):
        points = side.loc[shared].reset_index()
        try:
            fit = fit_law(
                "iso_depth",
                points,
                points["loss"].to_numpy(float),
                delta=config.huber_delta,
                bootstrap=config.bootstrap,
                resampling="block",
                labels=points.index.to_numpy(),
                seed=config.seed,
                confidence=config.confidence,
            )
        except TableError as error:
            return Estimate(refusal=str(error))
        if None in fit.intervals["phi"] or not fit.certificate.holds:
            return Estimate(refusal=f"the runs of {name} do not determine phi")
        fitted.append((fit.parameters["phi"], fit.model.public(fit.draws)["phi"]))
    (ours, drawn), (theirs, other) = fitted
    low, high = interval(drawn - other, config.confidence)
    return Estimate(value=ours - theirs, low=low, high=high)
