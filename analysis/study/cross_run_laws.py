"""Laws across the runs of a study: of their final losses, and of their depth curves.

Training: the iso-depth law over all sizes of one accounting. Test time: the unified law per group, and over
sizes with shared exponents. Points of one depth curve share the training noise of their run, so depth curves
are resampled whole (see `_labels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.config import MIN_CURVES, FitConfig, Progress
from analysis.format import plural
from analysis.isoflop.geometry import geometry
from analysis.isoflop.group import GroupFit, blocks_of, fit_groups
from analysis.laws.curve_laws import DEPTH_LAWS, CurveLaws, fit_curves
from analysis.laws.fit import fit_law
from analysis.laws.function_law import as_law
from analysis.laws.law import SIZE_COLUMN, Law, joint_law
from analysis.laws.objective import PUBLISHED_DELTA
from analysis.laws.registry import LAWS
from analysis.laws.result import LawFit
from analysis.laws.task_score import TASK_LAW, TaskLaw
from analysis.serialize import HIDDEN
from analysis.stats.noise import noise_floor
from analysis.study.task_scores import task_laws
from analysis.tables.arms import axes, axis_values
from analysis.tables.schema import TableError
from analysis.tables.selection import select

Strings = np.ndarray[Any, np.dtype[np.str_]]


@dataclass(frozen=True, kw_only=True)
class CrossRunLaw:
    """One law fitted across the runs of a group, or the reason for its refusal."""

    group: str
    law: str
    fit: LawFit | None = None
    refusal: str | None = None
    points: pd.DataFrame = field(  # that it was fitted to
        default_factory=pd.DataFrame, repr=False, compare=False, metadata=HIDDEN
    )

    def summary(self) -> str:
        """Return the law as plain text."""
        return (
            f"{self.group}, {self.fit.summary()}"
            if self.fit
            else f"{self.group}, {self.law}: refused: {self.refusal}"
        )


def cross_run_laws(
    groups: tuple[GroupFit, ...],
    depths: pd.DataFrame,
    config: FitConfig,
    progress: Progress = lambda stage, done: None,
) -> tuple[CrossRunLaw, ...]:
    """Fit the iso-depth law per pool (see `pools`), and the unified law per group and per pool.

    Their Huber delta is that of the surface, 1e-3 by default.
    """
    config = replace(config, huber_delta=config.huber_delta or PUBLISHED_DELTA)
    selected = [_iso_depth(pool, config) for pool in pools(groups)]
    tables = {group.label: depth_points(group, depths, config) for group in groups}
    for group in groups:
        if len(tables[group.label]):
            selected.append((group.label, LAWS["unified"], tables[group.label]))
    for pool in pools(groups):
        mine = [group for group in pool if len(tables[group.label])]
        if len({group.scale for group in mine}) > 1:
            accounting = mine[0].accounting
            numbered = [
                tables[group.label].assign(**{SIZE_COLUMN: i}) for i, group in enumerate(mine, start=1)
            ]
            law = joint_law(
                LAWS["unified"], [group.label.replace(f", {accounting} FLOPs", "") for group in mine]
            )
            selected.append((f"{accounting} FLOPs", law, pd.concat(numbered, ignore_index=True)))
    fitted = []
    for number, (label, law, table) in enumerate(selected):
        progress("laws of all runs", number / len(selected))
        fitted.append(_fit(label, law, table, config))
    return tuple(fitted)


def iso_depth_laws(groups: Sequence[GroupFit], config: FitConfig) -> tuple[CrossRunLaw, ...]:
    """Fit the iso-depth law alone, per pool."""
    return tuple(_fit(*_iso_depth(pool, config), config) for pool in pools(groups))


def _iso_depth(pool: Sequence[GroupFit], config: FitConfig) -> tuple[str, Law, pd.DataFrame]:
    points = pd.concat([training_points(group, config) for group in pool], ignore_index=True)
    return ", ".join(group.label for group in pool), LAWS["iso_depth"], points


def pools(groups: Sequence[GroupFit]) -> list[list[GroupFit]]:
    """Return the groups that may share a law across sizes: one accounting, and one arm of every axis."""
    if not groups:
        return []
    varied = axes(pd.concat([group.table for group in groups], ignore_index=True))
    found: dict[tuple[Any, ...], list[GroupFit]] = {}
    for group in groups:
        arm = (str(axis_values(group.table, name).iloc[0]) for name in varied)
        found.setdefault((group.accounting, *arm), []).append(group)
    return list(found.values())


def fit_law_to_runs(
    name: str, runs: pd.DataFrame, depths: pd.DataFrame, config: FitConfig
) -> LawFit | CurveLaws | TaskLaw:
    """Fit one law of the registry to the runs of a study, or to their depth curves if it has a depth.

    A law of depth alone is fitted to every curve separately; the law of a score to the first suite.

    Raises
    ------
    TableError : the law is unknown or refused, or the runs have several accountings.
    """
    law = as_law(name)
    used = select(runs, config.max_epochs).runs
    if name == TASK_LAW:
        scores = task_laws(used, config)
        if not scores:
            raise TableError(
                f"law={name}: no run has a score: loopscale eval with tasks=core gives them, then "
                "collect it again"
            )
        return scores[0]
    # Only the grouping matters here, not the isoFLOP laws of the groups.
    base = replace(config, bootstrap=100, profiles=False, resampling="noise")
    groups = fit_groups(used, noise_floor(used), base)[0]
    accountings = sorted({group.accounting for group in groups})
    if len(accountings) != 1:
        raise TableError(f"law={name} needs runs of one accounting; these have {accountings or 'no isoFLOP'}")
    if "depth" in law.columns:
        depths = depths.sort_values(["run_id", "depth"], kind="stable")
        points = pd.concat([depth_points(group, depths, config) for group in groups], ignore_index=True)
        if name in DEPTH_LAWS:
            return fit_curves(name, points, config.confidence)
    else:
        points = pd.concat([training_points(group, config) for group in groups], ignore_index=True)
    if len(pools(groups)) > 1:
        varied = ", ".join(axes(used))
        raise TableError(f"law={name}: the runs have several arms of {varied}: keep one with where=")
    fitted = _fit(name, law, points, config)
    if fitted.fit is None:
        raise TableError(f"law={name}: {fitted.refusal}")
    return fitted.fit


def training_points(group: GroupFit, config: FitConfig) -> pd.DataFrame:
    """Return one row per looped or fixed run: parameters outside and inside the loop, recurrence, tokens."""
    runs = group.table[group.table["kind"].isin(["looped", "fixed"])]
    shape = geometry(group.table[group.table["kind"] == "looped"], config.parameter_count)
    return pd.DataFrame(
        {
            "run_id": runs["run_id"],
            "block": blocks_of(runs, config),
            "budget_flops": runs["target_flops"].astype(float),
            "params_once": shape.static_params,
            "params_looped": shape.looped_params,
            "recurrence": runs["mean_recurrence"].astype(float),
            "params": shape.params(runs["mean_recurrence"].to_numpy(float)),
            "tokens": runs["tokens"].astype(float),
            "flops": runs["nominal_flops"].astype(float),
            "loss": runs["val_loss_nats"].astype(float),
        }
    ).assign(tokens_per_param=lambda frame: frame["tokens"] / frame["params"])


def depth_points(group: GroupFit, depths: pd.DataFrame, config: FitConfig) -> pd.DataFrame:
    """Return one row per looped run and test-time depth."""
    runs = training_points(group, config)
    looped = group.table["run_id"][group.table["kind"] == "looped"]
    runs = runs[runs["run_id"].isin(looped)].drop(columns="loss")
    points = depths[np.isfinite(depths["val_loss_nats"].astype(float))]
    merged = runs.merge(points[["run_id", "depth", "val_loss_nats", "val_loss_se_nats"]], on="run_id")
    names = {"val_loss_nats": "loss", "val_loss_se_nats": "loss_se", "recurrence": "mean_recurrence"}
    return merged.rename(columns=names).astype({"depth": float})


def _labels(law: Law, points: pd.DataFrame, config: FitConfig) -> tuple[str, Strings | None]:
    """Return the kind of resampling of a law's points, and the label of every point.

    Depth curves are drawn whole: for them, noise and pairs both mean blocks of one run.

    Raises
    ------
    TableError : the configured resampling has no meaning for the law.
    """
    depth, how = "depth" in law.columns, config.resampling
    if how == "block":
        return "block", points["block"].to_numpy(str)
    if how == "stratified" and depth:
        raise TableError(
            f"resampling=stratified: the {law.name} law draws whole depth curves; use pairs or block"
        )
    if how == "stratified":
        return "stratified", points["budget_flops"].to_numpy(str)
    return ("block", points["run_id"].to_numpy(str)) if depth else ("pairs", None)


def _fit(label: str, law: Law, points: pd.DataFrame, config: FitConfig) -> CrossRunLaw:
    try:
        resampling, labels = _labels(law, points, config)
        if resampling == "block" and labels is not None and len(np.unique(labels)) < MIN_CURVES:
            blocks = plural(len(np.unique(labels)), "block")
            raise TableError(f"{blocks} of runs, at least {MIN_CURVES} are needed")
        fitted = fit_law(
            law,
            points,
            points["loss"].to_numpy(float),
            bootstrap=config.bootstrap,
            resampling=resampling,
            labels=labels,
            seed=config.seed,
            confidence=config.confidence,
            delta=config.huber_delta,
        )
    except TableError as error:
        return CrossRunLaw(group=label, law=law.name, refusal=str(error))
    if not fitted.certificate.holds:
        reason = f"no optimum was reached ({fitted.certificate}): the runs do not determine its parameters"
        return CrossRunLaw(group=label, law=law.name, refusal=reason)
    return CrossRunLaw(group=label, law=law.name, fit=fitted, points=points)
