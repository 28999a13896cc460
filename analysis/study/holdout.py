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
from analysis.laws.fit import fit_law
from analysis.laws.newton import EXACT
from analysis.laws.objective import PUBLISHED_DELTA, Objective, minimise, predict
from analysis.laws.result import FLAT, columns
from analysis.study.cross_run_laws import CrossRunLaw
from analysis.study.depth import DepthStudy
from analysis.tables.schema import TableError

Mask = np.ndarray[Any, np.dtype[np.bool_]]
MIN_BUDGETS = 3  # below the extrapolated ones


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


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """The isoFLOP cells of one group, or of several sizes, as a surface is fitted to them."""

    label: str
    params: Array
    tokens: Array
    loss: Array
    delta: float

    def without(self, out: Mask, name: str) -> HoldoutPrediction:
        """Fit the surface without the marked cells and predict them."""
        count, rest = int(out.sum()), int((~out).sum())
        if rest < MIN_SURFACE_RUNS:
            reason = f"{rest} runs are left to fit, at least {MIN_SURFACE_RUNS} are needed"
            return HoldoutPrediction(group=self.label, left_out=name, points=count, refusal=reason)
        data = {"params": self.params, "tokens": self.tokens}
        try:
            kept = {column: values[~out] for column, values in data.items()}
            fitted = fit_law("surface", kept, self.loss[~out], delta=self.delta)
        except TableError as error:
            return HoldoutPrediction(group=self.label, left_out=name, points=count, refusal=str(error))
        predicted = fitted.predict({column: values[out] for column, values in data.items()})
        return _held_out(self.label, name, predicted, self.loss[out])


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
        cells, flops = _cells([group], group.label, config), group.cells.budgets_flops[group.cells.budget]
        levels = np.unique(flops)
        budgets += [cells.without(flops == level, f"{number(level)} FLOPs") for level in levels]
        extrapolation += [
            cells.without(flops >= level, f"{number(level)} FLOPs and above")
            for level in levels[MIN_BUDGETS:]
        ]
        if group.cells.variable == "mean_recurrence":
            values = group.cells.values
            recurrences += [cells.without(values == level, f"µ = {level:g}") for level in np.unique(values)]
    for law in laws:
        if law.fit is None:
            continue
        points = law.points.rename(columns={"mean_recurrence": "recurrence"})
        flops, values = points["budget_flops"].to_numpy(float), points["recurrence"].to_numpy(float)
        levels, label = np.unique(flops), f"{law.group}, {law.law} law"
        each = [(f"{number(level)} FLOPs", flops == level) for level in levels]
        above = [(f"{number(level)} FLOPs and above", flops >= level) for level in levels[MIN_BUDGETS:]]
        recurrence = [(f"µ = {level:g}", values == level) for level in np.unique(values)]
        budgets += _law_without(label, law, each)
        extrapolation += _law_without(label, law, above)
        recurrences += _law_without(label, law, recurrence)
    one_depth, beyond = ((), ()) if depth is None or depths is None else _depths(depth, depths, config)
    return Holdout(
        budgets=tuple(budgets),
        recurrences=tuple(recurrences),
        sizes=tuple(_sizes(groups, config)),
        extrapolation=tuple(extrapolation),
        one_depth=one_depth,
        depths=beyond,
    )


def _law_without(label: str, law: CrossRunLaw, left_out: list[tuple[str, Mask]]) -> list[HoldoutPrediction]:
    """Fit a law of runs or depth curves without the marked points, from its fit to all, and predict them."""
    if law.fit is None or not left_out:
        return []
    fit, losses = law.fit, law.points["loss"].to_numpy(float)
    terms = fit.model.terms(columns(fit.model, law.points))
    refitted = minimise(
        Objective(terms=terms, delta=fit.delta),
        np.repeat(losses[None], len(left_out), 0),
        fit.fitted[None],
        fit.model.bounds,
        weights=np.array([~mask for _, mask in left_out], float),
    )
    predicted = predict(terms, refitted.parameters)
    predictions = []
    for row, (name, mask) in enumerate(left_out):
        if refitted.gradient[row] < FLAT or refitted.objective[row] < EXACT:
            predictions.append(_held_out(label, name, predicted[row, mask], losses[mask]))
        else:
            reason = "no optimum was reached: the rest does not determine the law"
            points = int(mask.sum())
            predictions.append(HoldoutPrediction(group=label, left_out=name, points=points, refusal=reason))
    return predictions


def _cells(groups: Sequence[GroupFit], label: str, config: FitConfig) -> _Cells:
    parts = [group.cells for group in groups]
    params, tokens, loss = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("params", "tokens", "loss_nats")
    )
    return _Cells(
        label=label, params=params, tokens=tokens, loss=loss, delta=config.huber_delta or PUBLISHED_DELTA
    )


def _sizes(groups: Sequence[GroupFit], config: FitConfig) -> list[HoldoutPrediction]:
    """Predict one size at a time from the others, under each accounting that has several."""
    predictions: list[HoldoutPrediction] = []
    for accounting in sorted({group.accounting for group in groups}):
        mine = [group for group in groups if group.accounting == accounting]
        if len({group.scale for group in mine}) < 2:
            continue
        cells = _cells(mine, f"{accounting} FLOPs", config)
        scale = np.repeat([group.scale for group in mine], [len(group.cells.rows) for group in mine])
        predictions += [cells.without(scale == name, str(name)) for name in sorted(set(scale.tolist()))]
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
