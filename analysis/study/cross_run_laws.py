"""The laws of single runs and of depth curves that a study carries beside its isoFLOP laws.

Training: the worth of a loop (the iso-depth law) over all sizes of one accounting. Test time: the unified law
per group, and over sizes with shared exponents. Points of one run share its training noise, so that depth
curves are never resampled point by point: `_labels` says how each choice of resampling reads here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.config import FitConfig, Progress
from analysis.isoflop.geometry import geometry
from analysis.isoflop.group import GroupFit, blocks_of, fit_groups
from analysis.laws.curve_laws import DEPTH_LAWS, CurveLaws, fit_curves
from analysis.laws.fit import LawFit, fit_law
from analysis.laws.law import SIZE_COLUMN, Law, joint_law
from analysis.laws.registry import LAWS
from analysis.serialize import HIDDEN
from analysis.stats.noise import noise_floor
from analysis.tables.schema import TableError
from analysis.tables.selection import select

MIN_BLOCKS = 3  # two tell next to nothing of their own scatter
Strings = np.ndarray[Any, np.dtype[np.str_]]


@dataclass(frozen=True, kw_only=True)
class RunLaw:
    """One fitted law of a group of runs, or the reason why there is none."""

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


def run_laws(
    groups: tuple[GroupFit, ...],
    depths: pd.DataFrame,
    config: FitConfig,
    progress: Progress = lambda stage, done: None,
) -> tuple[RunLaw, ...]:
    """Fit the iso-depth law per accounting, and the unified law per group and per accounting."""
    wanted: list[tuple[str, Law, pd.DataFrame]] = []
    accountings = sorted({group.accounting for group in groups})
    for accounting in accountings:
        mine = [group for group in groups if group.accounting == accounting]
        points = pd.concat([training_points(group, config) for group in mine], ignore_index=True)
        wanted.append((", ".join(group.label for group in mine), LAWS["iso_depth"], points))
    tables = {group.label: depth_points(group, depths, config) for group in groups}
    for group in groups:
        if len(tables[group.label]):
            wanted.append((group.label, LAWS["unified"], tables[group.label]))
    for accounting in accountings:
        mine = [g for g in groups if g.accounting == accounting and len(tables[g.label])]
        if len({group.scale for group in mine}) > 1:
            numbered = [
                tables[group.label].assign(**{SIZE_COLUMN: i}) for i, group in enumerate(mine, start=1)
            ]
            law = joint_law(
                LAWS["unified"], [group.label.replace(f", {accounting} FLOPs", "") for group in mine]
            )
            wanted.append((f"{accounting} FLOPs", law, pd.concat(numbered, ignore_index=True)))
    found = []
    for number, (label, law, table) in enumerate(wanted):
        progress("laws of all runs", number / len(wanted))
        found.append(_fit(label, law, table, config))
    return tuple(found)


def fit_run_law(name: str, runs: pd.DataFrame, depths: pd.DataFrame, config: FitConfig) -> LawFit | CurveLaws:
    """Fit one law of the registry to the runs of a study, or to their depth curves where it needs depths.

    A law of depth alone is fitted to every curve apart: nothing ties the curves of two runs together.
    Raises TableError for an unknown law or runs of several accountings.
    """
    if name not in LAWS:
        raise TableError(f"law={name} is unknown: choose isoflop, {', '.join(LAWS)}")
    selected = select(runs, config.max_epochs).runs
    # Only the groups are wanted here: what their isoFLOP laws refuse is none of this law's business.
    base = replace(config, bootstrap=100, profiles=False, resampling="noise")
    groups = fit_groups(selected, noise_floor(selected), base)[0]
    accountings = sorted({group.accounting for group in groups})
    if len(accountings) != 1:
        raise TableError(f"law={name} needs runs of one accounting; these have {accountings or 'no isoFLOP'}")
    law = LAWS[name]
    if "depth" in law.columns:
        depths = depths.sort_values(["run_id", "depth"], kind="stable")
        points = pd.concat([depth_points(group, depths, config) for group in groups], ignore_index=True)
        if name in DEPTH_LAWS:
            return fit_curves(name, points, config.huber_delta)
    else:
        points = pd.concat([training_points(group, config) for group in groups], ignore_index=True)
    found = _fit(name, law, points, config)
    if found.fit is None:
        raise TableError(f"law={name}: {found.refusal}")
    return found.fit


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
    merged = runs.merge(points[["run_id", "depth", "val_loss_nats"]], on="run_id")
    return merged.rename(columns={"val_loss_nats": "loss", "recurrence": "mean_recurrence"}).astype(
        {"depth": float}
    )


def _labels(law: Law, points: pd.DataFrame, config: FitConfig) -> tuple[str, Strings | None]:
    """Return how the points of a law are resampled, and the label of every point.

    Drawing runs of depth curves is drawing whole curves: noise and pairs are both blocks of one run there.
    Raises TableError for what has no such reading.
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


def _fit(label: str, law: Law, points: pd.DataFrame, config: FitConfig) -> RunLaw:
    try:
        resampling, labels = _labels(law, points, config)
        if resampling == "block" and labels is not None and len(np.unique(labels)) < MIN_BLOCKS:
            found = f"{len(np.unique(labels))} block{'s' * (len(np.unique(labels)) > 1)}"
            raise TableError(f"{found} of runs, at least {MIN_BLOCKS} are needed")
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
        return RunLaw(group=label, law=law.name, refusal=str(error))
    if not fitted.certificate.holds:
        reason = f"no optimum was reached ({fitted.certificate}): the runs do not determine its parameters"
        return RunLaw(group=label, law=law.name, refusal=reason)
    return RunLaw(group=label, law=law.name, fit=fitted, points=points)
