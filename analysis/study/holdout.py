"""Held-out predictions: how well the laws predict runs and depths that they were not fitted to.

The surface, the iso-depth law and the unified law are refitted without one budget, one recurrence or one size
at a time, and without everything at and above each of the larger budgets. The law of one depth curve is
refitted without one depth at a time, and without the depths beyond the mean recurrence. Errors are in the
loss's unit and in per cent of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.config import MIN_SURFACE_RUNS, FitConfig
from analysis.format import error, number
from analysis.isoflop.estimator import Array
from analysis.isoflop.group import GroupFit
from analysis.laws.depth_curve import fit_depth_curves
from analysis.laws.fit import fit_law, projected_starts
from analysis.laws.newton import EXACT, Fit
from analysis.laws.objective import PUBLISHED_DELTA, Objective, minimise, predict
from analysis.laws.result import FLAT, LawFit
from analysis.study.cross_run_laws import CrossRunLaw
from analysis.study.depth import DepthStudy

Mask = np.ndarray[Any, np.dtype[np.bool_]]
LeftOut = tuple[str, Mask]  # its name, and the points
MIN_BUDGETS = 3  # below the extrapolated ones
FEW_POINTS = 1000  # below which a surface without some of its points is fitted from several starts


@dataclass(frozen=True, kw_only=True)
class HoldoutPrediction:
    """The errors of one prediction, at the runs or points that were left out of the fit."""

    group: str
    left_out: str
    points: int
    bias_nats: float | None = None  # mean of prediction minus loss
    error_nats: float | None = None  # mean absolute error
    error_percent: float | None = None
    refusal: str | None = None

    def summary(self) -> str:
        """Return the errors, or the refusal."""
        if self.bias_nats is None or self.error_nats is None or self.error_percent is None:
            return f"{self.left_out}: refused: {self.refusal}"
        errors = f"{error(self.bias_nats)}, {error(self.error_nats)} nats, {error(self.error_percent)} %"
        return f"{self.left_out}: {errors} ({self.points} points; {self.group})"


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """All held-out predictions of a study, by what was left out."""

    budgets: tuple[HoldoutPrediction, ...]
    recurrences: tuple[HoldoutPrediction, ...]
    sizes: tuple[HoldoutPrediction, ...]
    extrapolation: tuple[HoldoutPrediction, ...]
    one_depth: tuple[HoldoutPrediction, ...]
    depths: tuple[HoldoutPrediction, ...]

    def rows(self) -> list[tuple[str, HoldoutPrediction]]:
        """Return (kind, prediction) in order."""
        kinds = ("budget", "recurrence", "size", "larger budgets", "one depth", "depths beyond µ")
        of_runs = (self.budgets, self.recurrences, self.sizes, self.extrapolation)
        parts = (*of_runs, self.one_depth, self.depths)
        return [(kind, row) for kind, part in zip(kinds, parts, strict=True) for row in part]

    def summary(self) -> str:
        """Return all predictions as plain text, one line each."""
        lines = ["Prediction of what was left out (prediction minus loss, mean and mean size)"]
        lines += [f"  {kind}, {row.summary()}" for kind, row in self.rows()]
        return "\n".join(lines)


def holdout(
    groups: Sequence[GroupFit],
    config: FitConfig,
    depth: DepthStudy | None = None,
    depths: pd.DataFrame | None = None,
    laws: Sequence[CrossRunLaw] = (),
) -> Holdout:
    """Predict every budget, recurrence, size and depth of a study from the others."""
    budgets: list[HoldoutPrediction] = []
    recurrences: list[HoldoutPrediction] = []
    extrapolation: list[HoldoutPrediction] = []
    for group in groups:
        cells, flops = group.cells, group.cells.budgets_flops[group.cells.budget]
        each, above = _budgets(flops)
        fit = _surface([group], config)
        budgets += _without(group.label, fit, each)
        extrapolation += _without(group.label, fit, above)
        if cells.variable == "mean_recurrence":
            recurrences += _without(group.label, fit, _recurrences(cells.values))
    for law in laws:
        if law.fit is None:
            continue
        label = f"{law.group}, {law.law} law"
        points = law.points.rename(columns={"mean_recurrence": "recurrence"})
        each, above = _budgets(points["budget_flops"].to_numpy(float))
        budgets += _without(label, law.fit, each)
        extrapolation += _without(label, law.fit, above)
        recurrences += _without(label, law.fit, _recurrences(points["recurrence"].to_numpy(float)))
    one_depth, beyond = ((), ()) if depth is None or depths is None else _depths(depth, depths, config)
    return Holdout(
        budgets=tuple(budgets),
        recurrences=tuple(recurrences),
        sizes=tuple(_sizes(groups, config)),
        extrapolation=tuple(extrapolation),
        one_depth=one_depth,
        depths=beyond,
    )


def _budgets(flops: Array) -> tuple[list[LeftOut], list[LeftOut]]:
    """Return the points of every budget, and those at and above each of the larger ones, with their names."""
    levels = np.unique(flops)
    each = [(f"{number(level)} FLOPs", flops == level) for level in levels]
    return each, [(f"{number(level)} FLOPs and above", flops >= level) for level in levels[MIN_BUDGETS:]]


def _recurrences(values: Array) -> list[LeftOut]:
    return [(f"µ = {level:g}", values == level) for level in np.unique(values)]


def _surface(groups: Sequence[GroupFit], config: FitConfig) -> LawFit | None:
    """Fit the surface to the isoFLOP cells of one group, or of several sizes; None for too few runs."""
    parts = [group.cells for group in groups]
    params, tokens, loss = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("params", "tokens", "loss_nats")
    )
    if len(loss) < MIN_SURFACE_RUNS:
        return None
    delta = config.huber_delta or PUBLISHED_DELTA
    return fit_law("surface", {"params": params, "tokens": tokens}, loss, delta=delta)


def _without(label: str, fit: LawFit | None, left_out: Sequence[LeftOut]) -> list[HoldoutPrediction]:
    """Fit a law without the marked points, each time from its fit to all, and predict them."""
    losses, predicted, reached = np.empty(0), np.empty((0, 0)), np.zeros(len(left_out), bool)
    if fit is not None and left_out:
        losses, weights = fit.losses, np.array([~mask for _, mask in left_out], float)
        refitted = _refit(fit, weights)
        predicted = predict(fit.model.terms(fit.data), refitted.parameters)
        reached = (refitted.gradient < FLAT) | (refitted.objective < EXACT)
    predictions = []
    for row, (name, mask) in enumerate(left_out):
        count, rest = int(mask.sum()), int((~mask).sum())
        if fit is None or (fit.law == "surface" and rest < MIN_SURFACE_RUNS):
            reason = f"{rest} runs are left to fit, at least {MIN_SURFACE_RUNS} are needed"
        elif reached[row]:
            predictions.append(_held_out(label, name, predicted[row, mask], losses[mask]))
            continue
        else:
            reason = "no optimum was reached: the rest does not determine the law"
        predictions.append(HoldoutPrediction(group=label, left_out=name, points=count, refusal=reason))
    return predictions


def _refit(fit: LawFit, weights: Array) -> Fit:
    """Fit a law again with each row of `weights` [fits, points], from its fit to all points.

    Few points may leave a surface several optima, and the least need not be next to that of all points. The
    starts of the fit are therefore tried as well.
    """
    terms, starts = fit.model.terms(fit.data), fit.fitted[None]
    if fit.law == "surface" and len(fit.losses) < FEW_POINTS:
        starts = np.concatenate([starts, projected_starts(fit.model, terms, fit.losses)])
    refitted = minimise(
        Objective(terms=terms, delta=fit.delta),
        np.repeat(fit.losses[None], len(weights) * len(starts), 0),
        np.tile(starts, (len(weights), 1)),
        fit.model.bounds,
        weights=np.repeat(weights, len(starts), 0),
    )
    best = refitted.objective.reshape(len(weights), len(starts)).argmin(1)
    return refitted.rows(np.arange(len(weights)) * len(starts) + best)


def _sizes(groups: Sequence[GroupFit], config: FitConfig) -> list[HoldoutPrediction]:
    """Predict one size at a time from the others, under each accounting that has several."""
    predictions: list[HoldoutPrediction] = []
    for accounting in sorted({group.accounting for group in groups}):
        mine = [group for group in groups if group.accounting == accounting]
        if len({group.scale for group in mine}) < 2:
            continue
        scale = np.repeat([group.scale for group in mine], [len(group.cells.rows) for group in mine])
        left_out = [(str(name), scale == name) for name in sorted(set(scale.tolist()))]
        predictions += _without(f"{accounting} FLOPs", _surface(mine, config), left_out)
    return predictions


def _depths(
    study: DepthStudy, depths: pd.DataFrame, config: FitConfig
) -> tuple[tuple[HoldoutPrediction, ...], tuple[HoldoutPrediction, ...]]:
    """Predict one depth of each curve at a time from its others, and the depths beyond mu from the rest.

    Returns
    -------
    Both kinds of predictions, by recurrence.
    """
    points = {str(run_id): frame for run_id, frame in depths.groupby("run_id")}
    one_depth: list[HoldoutPrediction] = []
    beyond: list[HoldoutPrediction] = []
    for row in study.by_recurrence:
        mu = row.mean_recurrence
        curves = [points[curve.run_id] for curve in study.curves if curve.mean_recurrence == mu]
        each = [(curve, np.eye(len(curve), dtype=bool)) for curve in curves]
        one_depth.append(_without_depths(each, f"each depth at µ = {mu:g}", "the others", config))
        past = [(curve, curve["depth"].to_numpy(float)[None] > mu) for curve in curves]
        beyond.append(_without_depths(past, f"T > {mu:g}", "the depths up to µ", config))
    return tuple(one_depth), tuple(beyond)


def _without_depths(
    curves: list[tuple[pd.DataFrame, Mask]], name: str, kept: str, config: FitConfig
) -> HoldoutPrediction:
    """Fit each curve without the depths that a row of its mask [fits, depths] marks, and predict them."""
    predicted, measured = [], []
    for curve, masks in curves:
        depth, loss, error = (
            curve[column].to_numpy(float) for column in ("depth", "val_loss_nats", "val_loss_se_nats")
        )
        fits = fit_depth_curves(depth, loss[None], ~masks, errors=error[None], confidence=config.confidence)
        for fit, out in zip(fits, masks, strict=True):
            if fit.rate is not None and out.any():
                predicted.append(fit.predict(depth[out]))
                measured.append(loss[out])
    if predicted:
        return _held_out("depth curves", name, np.concatenate(predicted), np.concatenate(measured))
    reason = f"none of {sum(len(masks) for _, masks in curves)} fits identifies its rate from {kept}"
    return HoldoutPrediction(group="depth curves", left_out=name, points=0, refusal=reason)


def _held_out(group: str, name: str, predicted: Array, measured: Array) -> HoldoutPrediction:
    gap = predicted - measured
    return HoldoutPrediction(
        group=group,
        left_out=name,
        points=len(gap),
        bias_nats=float(gap.mean()),
        error_nats=float(np.abs(gap).mean()),
        error_percent=float(100 * np.abs(gap / measured).mean()),
    )
