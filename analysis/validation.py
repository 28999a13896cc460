"""How well the training law predicts runs that it did not see.

The surface is refitted without one budget, one recurrence or one size at a time, and without everything at
and above each of the larger budgets; the depth law without the depths beyond the mean recurrence. Errors
are in nats and per cent of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimator import Array
from analysis.geometry import geometry
from analysis.group import GroupFit
from analysis.law_fit import fit_law
from analysis.laws import LAWS
from analysis.numbers import number
from analysis.saturating import fit_saturating
from analysis.schema import TableError
from analysis.study import StudyFit

Mask = np.ndarray[Any, np.dtype[np.bool_]]
MIN_FITTED = len(LAWS["surface"].parameters) + 3


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One prediction: what was left out, how many runs or points that is, and the errors there."""

    group: str
    left_out: str
    points: int
    bias_nats: float | None = None  # mean of prediction minus loss
    error_nats: float | None = None  # mean absolute error
    error_percent: float | None = None
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Validation:
    """All held-out predictions of a study, by kind."""

    budgets: tuple[HeldOut, ...]
    recurrences: tuple[HeldOut, ...]
    extrapolation: tuple[HeldOut, ...]
    depths: tuple[HeldOut, ...]

    def rows(self) -> list[tuple[str, HeldOut]]:
        """Return (kind, prediction) in order."""
        kinds = ("budget", "recurrence", "larger budgets", "depths beyond µ")
        parts = (self.budgets, self.recurrences, self.extrapolation, self.depths)
        return [(kind, row) for kind, part in zip(kinds, parts, strict=True) for row in part]


def validate(study: StudyFit) -> Validation:
    """Predict every budget, recurrence and depth of a study from the others."""
    budgets: list[HeldOut] = []
    recurrences: list[HeldOut] = []
    extrapolation: list[HeldOut] = []
    for group in study.groups:
        table = group.table[(group.table["kind"] == "looped") & group.table["target_flops"].notna()]
        flops, depth = (table[name].to_numpy(float) for name in ("target_flops", "mean_recurrence"))
        levels = np.unique(flops)
        for level in levels:
            budgets.append(_predict(study, group, table, flops == level, f"{number(level)} FLOPs"))
        for level in np.unique(depth):
            recurrences.append(_predict(study, group, table, depth == level, f"µ = {level:g}"))
        for level in levels[3:]:
            extrapolation.append(
                _predict(study, group, table, flops >= level, f"{number(level)} FLOPs and above")
            )
    return Validation(
        budgets=tuple(budgets),
        recurrences=tuple(recurrences),
        extrapolation=tuple(extrapolation),
        depths=_depths(study),
    )


def _predict(study: StudyFit, group: GroupFit, table: pd.DataFrame, out: Mask, name: str) -> HeldOut:
    """Fit the surface without the marked runs and predict them."""
    if (~out).sum() < MIN_FITTED:
        reason = f"{int((~out).sum())} runs are left to fit, at least {MIN_FITTED} are needed"
        return HeldOut(group=group.label, left_out=name, points=int(out.sum()), refusal=reason)
    shape = geometry(table, study.config.parameter_count)
    data = {
        "params": shape.params(table["mean_recurrence"].to_numpy(float)),
        "tokens": table["tokens"].to_numpy(float),
    }
    losses = table["val_loss_nats"].to_numpy(float)
    try:
        kept = {column: values[~out] for column, values in data.items()}
        fitted = fit_law("surface", kept, losses[~out], delta=study.config.huber_delta)
    except TableError as error:
        return HeldOut(group=group.label, left_out=name, points=int(out.sum()), refusal=str(error))
    predicted = fitted.predict({column: values[out] for column, values in data.items()})
    return _held_out(group.label, name, predicted, losses[out])


def _depths(study: StudyFit) -> tuple[HeldOut, ...]:
    """Fit each curve up to T = mu and predict the depths beyond, per recurrence."""
    points = {str(run_id): frame for run_id, frame in study.depths.groupby("run_id")}
    found = []
    for row in study.depth.by_recurrence:
        predicted, seen, refused = [], [], 0
        for curve in study.depth.curves:
            if curve.mean_recurrence != row.mean_recurrence:
                continue
            depth, loss = (points[curve.run_id][name].to_numpy(float) for name in ("depth", "val_loss_nats"))
            within = depth <= curve.mean_recurrence
            fit = fit_saturating(depth[within], loss[within], study.config.confidence)
            if fit.rate is None or within.all():
                refused += 1
                continue
            predicted.append(fit.predict(depth[~within]))
            seen.append(loss[~within])
        name = f"T > {row.mean_recurrence:g}"
        if predicted:
            found.append(_held_out("depth curves", name, np.concatenate(predicted), np.concatenate(seen)))
        else:
            reason = f"none of {refused} curves identifies its rate from the depths up to µ"
            found.append(HeldOut(group="depth curves", left_out=name, points=0, refusal=reason))
    return tuple(found)


def _held_out(group: str, name: str, predicted: Array, seen: Array) -> HeldOut:
    gap = predicted - seen
    return HeldOut(
        group=group,
        left_out=name,
        points=len(gap),
        bias_nats=float(gap.mean()),
        error_nats=float(np.abs(gap).mean()),
        error_percent=float(100 * np.abs(gap / seen).mean()),
    )
