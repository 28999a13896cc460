"""Compare looped with fixed depth at equal FLOPs and equal parameters, with the training noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from analysis.compare.comparison import Comparison
from analysis.compare.compute_multiplier import Control, compute_multiplier
from analysis.compare.loss_difference import (
    FittedMinimum,
    LowestCell,
    difference_of_lowest,
    difference_of_means,
    difference_of_minimum,
)
from analysis.compare.rows import BudgetRow, RecurrenceRow
from analysis.compare.score_difference import SuiteScores, missing_answers, suite_scores
from analysis.config import FitConfig
from analysis.format import number
from analysis.isoflop.curves import Optimum
from analysis.isoflop.group import GroupFit, fit_groups
from analysis.isoflop.shared_shape import fit_shared
from analysis.stats.noise import NoiseFloor, noise_floor, paired_floor
from analysis.tables.selection import VARIANT, digest, groups, select

FLAT = 0.01  # above this p-value of equal recurrences, the minimum of a fitted curve is noise


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Levels of training noise: of differences within a budget, across budgets, and of paired runs."""

    within: NoiseFloor
    across: NoiseFloor
    paired: NoiseFloor


@dataclass(frozen=True, kw_only=True)
class _Fits:
    """One group's curves, fitted with the noise within a budget and with that across budgets."""

    within: GroupFit
    across: GroupFit

    def noise(self, noise: Noise) -> Noise:
        """Return the noise of the group: its fit's residuals where they exceed what seeds explain."""
        within, across = _residuals(self.within), _residuals(self.across)
        return replace(noise, within=within or noise.within, across=across or noise.across)

    def optima(self, flops: float) -> _Optima | None:
        """Return a budget's optima; None if the curves do not have that budget."""
        each = []
        for group in (self.within, self.across):
            optima = group.estimator().optima["mean_recurrence"]
            each += [optimum for optimum in optima if optimum.budget_flops == flops]
        return _Optima(within=each[0], across=each[1]) if len(each) == 2 else None


@dataclass(frozen=True, kw_only=True)
class _Optima:
    """One budget's optimum with resamples at both levels of noise."""

    within: Optimum
    across: Optimum


@dataclass(frozen=True, kw_only=True)
class _Group:
    """What the comparisons of one group's budgets have in common."""

    label: str
    fits: _Fits | None
    control: Control
    noise: Noise
    scored: tuple[SuiteScores, ...]
    config: FitConfig


def compare(
    runs: pd.DataFrame, config: FitConfig | None = None, items: pd.DataFrame | None = None
) -> Comparison:
    """Compare the best looped model with the fixed control at every budget of every group.

    Parameters
    ----------
    runs : runs table (schema.RUNS).
    items : items table of evaluated runs (schema.ITEMS); with it, points of Core are compared too.

    Raises
    ------
    TableError : the table is malformed, empty, or holds runs of different data.
    """
    config = config or FitConfig()
    selection = select(runs, config.max_epochs)
    floor = noise_floor(selection.runs)
    paired = paired_floor(selection.runs)
    budgets = selection.runs.groupby([*VARIANT, "target_flops"], dropna=False)
    # The effect of a seed on all cells alike cancels in differences between cells that share their seeds.
    shared_seeds = all(_share_seeds(budget) for _, budget in budgets)
    noise = Noise(within=paired if shared_seeds else floor, across=floor, paired=paired)
    within, skipped = fit_groups(selection.runs, noise.within, config, (fit_shared,))
    across = fit_groups(selection.runs, floor, config, (fit_shared,))[0] if shared_seeds else within
    fits = {one.label: _Fits(within=one, across=other) for one, other in zip(within, across, strict=True)}
    scored = suite_scores(selection.runs, items)
    rows: list[BudgetRow] = []
    notes = [*skipped, *missing_answers(selection.runs, items, scored)]
    for label, frame in groups(selection.runs[selection.runs["kind"] != "transformer"]):
        fitted = fits.get(label)
        group = _Group(
            label=label,
            fits=fitted,
            control=_control(frame),
            noise=fitted.noise(noise) if fitted else noise,
            scored=scored,
            config=config,
        )
        if group.noise != noise:
            notes.append(
                f"{label}: runs scatter around the fitted curves by more than replicate seeds explain: "
                f"intervals take {number(group.noise.within.sd_nats, 2)} nats"
            )
        compared, missing = _compare_group(group, frame)
        rows += compared
        notes += missing
    return Comparison(
        config=config,
        runs_digest=digest(runs),
        noise=floor,
        paired_noise=paired,
        rows=tuple(rows),
        notes=tuple(notes),
        left_out=selection.left_out,
        table=selection.runs,
    )


def _control(group: pd.DataFrame) -> Control:
    fixed = _fixed(group)
    means = fixed.groupby(fixed["target_flops"].astype(float))["val_loss_nats"].agg(["mean", "size"])
    return Control(
        budgets_flops=tuple(means.index), loss_nats=tuple(means["mean"]), seeds=tuple(means["size"])
    )


def _fixed(group: pd.DataFrame) -> pd.DataFrame:
    return group[(group["kind"] == "fixed") & group["target_flops"].notna()]


def _residuals(fit: GroupFit) -> NoiseFloor | None:
    level = fit.estimator().noise
    if level is None or not level.widened:
        return None
    return NoiseFloor(sd_nats=level.sd_nats, degrees_of_freedom=level.degrees_of_freedom)


def _compare_group(group: _Group, runs: pd.DataFrame) -> tuple[list[BudgetRow], list[str]]:
    """Return the comparison at every budget of the control, and notes on budgets without looped runs."""
    fixed = _fixed(runs)
    rows, notes = [], [f"{group.label}: no fixed-depth control"] if fixed.empty else []
    for flops in sorted(set(fixed["target_flops"].astype(float))):
        control = fixed[fixed["target_flops"] == flops]
        looped = runs[(runs["kind"] == "looped") & (runs["target_flops"] == flops)]
        if looped.empty:
            notes.append(f"{group.label}, {number(flops)} FLOPs: no looped run")
        else:
            rows.append(_compare_budget(group, flops, looped, control))
    return rows, notes


def _compare_budget(group: _Group, flops: float, looped: pd.DataFrame, control: pd.DataFrame) -> BudgetRow:
    """Compare one budget: the fitted minimum if it was accepted, else the lowest trained cell.

    Notes
    -----
    The minimum of a curve whose cells do not differ by more than noise is placed by noise, and is low by
    chance. There, too, the lowest cell is taken, whose interval allows for the selection.
    """
    noise, config = group.noise, group.config
    ratio = _bits_per_nat(pd.concat([looped, control]))
    fixed, seeds = float(control["val_loss_nats"].mean()), len(control)
    cells = _cells(group, looped, control, ratio)
    common: dict[str, Any] = {
        "group": group.label,
        "scale": str(looped["scale"].iloc[0]),
        "accounting": str(looped["accounting"].iloc[0]),
        "budget_flops": flops,
        "fixed_nats": fixed,
        "fixed_seeds": seeds,
        "recurrences": cells,
    }
    stream = f"{group.label} {flops}"
    optima = group.fits.optima(flops) if group.fits else None
    optimum = optima.within if optima else None
    flat = _p_value_of_equal(cells, noise.within)
    why = (optimum.refusal or "") if optimum else "no isoFLOP curve was fitted"
    if not why and flat > FLAT:
        why = f"the recurrences do not differ by more than noise (F-test, p = {flat:.2g})"
    if optima is None or optima.within.value is None or optima.within.loss_nats is None or flat > FLAT:
        best = min(cells, key=lambda cell: cell.loss_nats)
        lowest = LowestCell(seeds=tuple(cell.seeds for cell in cells), index=cells.index(best))
        gap = best.loss_nats - fixed
        return BudgetRow(
            choice="lowest cell (selection)",
            why=why,
            mean_recurrence=best.mean_recurrence,
            looped_nats=best.loss_nats,
            difference=difference_of_lowest(gap, lowest, seeds, noise.within, ratio, config),
            saving=compute_multiplier(
                group.control, flops, best.loss_nats, lowest, noise.across, config, stream
            ),
            **common,
        )
    within, across = (
        FittedMinimum(loss_draws=each.loss_draws, factor=each.factor)
        for each in (optima.within, optima.across)
    )
    value, loss = optima.within.value, optima.within.loss_nats
    return BudgetRow(
        choice="fitted curve",
        why="the minimum of the shared-shape fit was accepted",
        mean_recurrence=value,
        looped_nats=loss,
        difference=difference_of_minimum((loss, fixed), within, seeds, noise.within, ratio, config, stream),
        saving=compute_multiplier(group.control, flops, loss, across, noise.across, config, stream),
        **common,
    )


def _p_value_of_equal(cells: Sequence[RecurrenceRow], floor: NoiseFloor) -> float:
    """Return the p-value of the F-test that all recurrences are equal; 0 if noise is unknown or zero."""
    if not floor.sd_nats or len(cells) < 2:
        return 0.0
    seeds = np.array([cell.seeds for cell in cells], float)
    losses = np.array([cell.loss_nats for cell in cells])
    squares = float(seeds @ np.square(losses - np.average(losses, weights=seeds)))
    ratio = squares / (len(cells) - 1) / floor.sd_nats**2
    return float(fdtrc(len(cells) - 1, floor.degrees_of_freedom, ratio))


def _cells(
    group: _Group, looped: pd.DataFrame, control: pd.DataFrame, bits_per_nat: float | None
) -> tuple[RecurrenceRow, ...]:
    """Compare the mean over seeds of every trained recurrence with that of the control."""
    rows = []
    for depth in sorted(set(looped["mean_recurrence"].astype(float))):
        cell = looped[looped["mean_recurrence"] == depth]
        mean, paired = float(cell["val_loss_nats"].mean()), _share_seeds(pd.concat([cell, control]))
        gap = mean - float(control["val_loss_nats"].mean())
        floor = group.noise.paired if paired else group.noise.within
        ids = cell["run_id"].tolist(), control["run_id"].tolist()
        scores = (suite.difference(*ids, paired, group.config) for suite in group.scored)
        runs = len(cell), len(control)
        rows.append(
            RecurrenceRow(
                mean_recurrence=depth,
                seeds=len(cell),
                paired=paired,
                loss_nats=mean,
                difference=difference_of_means(gap, runs, floor, bits_per_nat, group.config),
                scores=tuple(score for score in scores if score is not None),
            )
        )
    return tuple(rows)


def _share_seeds(runs: pd.DataFrame) -> bool:
    """Return True if all cells of `runs` were trained with the same seeds, at least two."""
    cells: dict[tuple[str, float], list[int]] = {}
    for kind, depth, seed in zip(runs["kind"], runs["mean_recurrence"], runs["seed"], strict=True):
        cells.setdefault((kind, depth), []).append(seed)
    seeds = {tuple(sorted(each)) for each in cells.values()}
    return len(seeds) == 1 and len(seeds.pop()) > 1


def _bits_per_nat(runs: pd.DataFrame) -> float | None:
    """Return the data set's bits per byte per nat per token, None if the table does not have it."""
    ratio = (runs["val_bits_per_byte"] / runs["val_loss_nats"]).dropna()
    return float(ratio.mean()) if len(ratio) else None
