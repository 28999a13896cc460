"""Looped against fixed depth at equal FLOPs and equal parameters, with the training noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from analysis import serialize
from analysis.compare import words as compare_words
from analysis.compare.compute_multiplier import Control, Saving, saving
from analysis.compare.loss_difference import Difference, of_lowest, of_means, of_minimum
from analysis.compare.score_difference import ScoreDifference, SuiteScores, left_out_of_suites, suites
from analysis.config import FitConfig
from analysis.format import number
from analysis.isoflop.curves import Optimum
from analysis.isoflop.group import GroupFit, fit_groups
from analysis.isoflop.shared_shape import fit_shared
from analysis.serialize import HIDDEN
from analysis.stats.noise import NoiseFloor, noise_floor, paired_floor
from analysis.tables.selection import VARIANT, LeftOut, digest, groups, select

FLAT = 0.01  # above this chance of equal recurrences, the minimum of a fitted curve is noise


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Levels of training noise: of differences within a budget, across budgets, and of paired runs."""

    within: NoiseFloor
    across: NoiseFloor
    paired: NoiseFloor


@dataclass(frozen=True, kw_only=True)
class RecurrenceRow:
    """One recurrence against the fixed control of the same group and budget; losses are means over seeds.

    Where both were trained with the same seeds, two at least, the runs of each seed are paired.
    """

    mean_recurrence: float
    seeds: int
    paired: bool
    loss_nats: float
    difference: Difference
    scores: tuple[ScoreDifference, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """The best looped model of one budget against the fixed control.

    `choice` says how the best recurrence was found: as the minimum of the fitted curve, or as the lowest
    of the trained cells, which lies low by chance: its interval then allows for the choice.
    """

    group: str
    scale: str
    accounting: str
    budget_flops: float
    choice: Literal["fitted curve", "lowest cell (selection)"]
    why: str
    mean_recurrence: float
    looped_nats: float
    fixed_nats: float
    fixed_seeds: int
    difference: Difference
    saving: Saving
    recurrences: tuple[RecurrenceRow, ...]

    def trained(self) -> RecurrenceRow:
        """Return the trained recurrence next to the best: chosen on the loss, judged on Core."""
        best = np.log(self.mean_recurrence)
        return min(self.recurrences, key=lambda cell: abs(np.log(cell.mean_recurrence) - best))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All budgets that have looped runs and a fixed control."""

    config: FitConfig
    runs_digest: str
    noise: NoiseFloor
    paired_noise: NoiseFloor
    rows: tuple[BudgetRow, ...]
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    table: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)

    def summary(self) -> str:
        """Return the comparison as plain text."""
        return compare_words.summary(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return dict(serialize.to_jsonable(self))

    def to_json(self) -> str:
        """Return the comparison as JSON text, the same bytes for the same table and seed."""
        return serialize.to_json(self)


def compare(
    runs: pd.DataFrame, config: FitConfig | None = None, items: pd.DataFrame | None = None
) -> Comparison:
    """Compare the best looped model with the fixed control at every budget of every group.

    With the items table of evaluated runs (schema.ITEMS) also in points of Core. Raises TableError for a
    table that is malformed, empty, or holds runs of different data.
    """
    config = config or FitConfig()
    selection = select(runs, config.max_epochs)
    floor = noise_floor(selection.runs)
    paired = paired_floor(selection.runs)
    budgets = selection.runs.groupby([*VARIANT, "target_flops"], dropna=False)
    # What a seed does to all cells alike is in no difference between those that share their seeds.
    whole = all(_share_seeds(budget) for _, budget in budgets)
    noise = Noise(within=paired if whole else floor, across=floor, paired=paired)
    fitted, skipped = fit_groups(selection.runs, noise.within, config, (fit_shared,))
    again = fit_groups(selection.runs, floor, config, (fit_shared,))[0] if whole else fitted
    fits = {group.label: (group, other) for group, other in zip(fitted, again, strict=True)}
    scored = suites(selection.runs, items)
    rows: list[BudgetRow] = []
    notes = [*skipped, *left_out_of_suites(selection.runs, items, scored)]
    for label, frame in groups(selection.runs):
        fixed = frame[(frame["kind"] == "fixed") & frame["target_flops"].notna()]
        means = fixed.groupby(fixed["target_flops"].astype(float))["val_loss_nats"].agg(["mean", "size"])
        curve = Control(
            budgets_flops=tuple(means.index), loss_nats=tuple(means["mean"]), seeds=tuple(means["size"])
        )
        own = _own_noise(noise, fits.get(label))
        if own != noise:
            notes.append(
                f"{label}: runs scatter around the fitted curves by more than replicate seeds explain: "
                f"intervals take {number(own.within.sd_nats, 2)} nats"
            )
        if fixed.empty:
            notes.append(f"{label}: no fixed-depth control")
        for flops in sorted(set(fixed["target_flops"].astype(float))):
            control = fixed[fixed["target_flops"] == flops]
            looped = frame[(frame["kind"] == "looped") & (frame["target_flops"] == flops)]
            if looped.empty:
                notes.append(f"{label}, {number(flops)} FLOPs: no looped run")
            else:
                optima = _optima(fits.get(label), flops)
                rows.append(_row(label, optima, flops, (looped, control), curve, own, scored, config))
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


def _own_noise(noise: Noise, fits: tuple[GroupFit, GroupFit] | None) -> Noise:
    """Return the noise of one group: its fit's residuals where they are more than seeds explain."""
    if fits is None:
        return noise
    within, across = fits
    return replace(
        noise, within=_residuals(within) or noise.within, across=_residuals(across) or noise.across
    )


def _residuals(fit: GroupFit) -> NoiseFloor | None:
    level = fit.estimator().noise
    if level is None or not level.widened:
        return None
    return NoiseFloor(sd_nats=level.sd_nats, degrees_of_freedom=level.degrees_of_freedom)


def _optima(fits: tuple[GroupFit, GroupFit] | None, flops: float) -> tuple[Optimum, Optimum] | None:
    """Return a budget's optimum with resamples at both levels of noise, None where it was not accepted."""
    if fits is None:
        return None
    found = []
    for group in fits:
        optima = group.estimator().optima["mean_recurrence"]
        found += [optimum for optimum in optima if optimum.budget_flops == flops]
    return (found[0], found[1]) if len(found) == 2 else None


def _row(
    label: str,
    optima: tuple[Optimum, Optimum] | None,
    flops: float,
    sides: tuple[pd.DataFrame, pd.DataFrame],
    curve: Control,
    noise: Noise,
    scored: tuple[SuiteScores, ...],
    config: FitConfig,
) -> BudgetRow:
    """Compare one budget: the fitted minimum where it was accepted, else the lowest trained cell.

    A curve whose cells do not differ by more than noise has its minimum wherever noise has put it, and low by
    chance: there too the lowest cell is taken, whose interval allows for the choice.
    """
    looped, control = sides
    ratio = _bits_per_nat(pd.concat([looped, control]))
    fixed, seeds = float(control["val_loss_nats"].mean()), len(control)
    cells = _cells(looped, control, noise, ratio, scored, config)
    common: dict[str, Any] = {
        "group": label,
        "scale": str(looped["scale"].iloc[0]),
        "accounting": str(looped["accounting"].iloc[0]),
        "budget_flops": flops,
        "fixed_nats": fixed,
        "fixed_seeds": seeds,
        "recurrences": cells,
    }
    stream = f"{label} {flops}"
    found = optima[0] if optima else None
    flat = _chance_of_equal(cells, noise.within)
    why = (found.refusal or "") if found else "no isoFLOP curve was fitted"
    if not why and flat > FLAT:
        why = f"the recurrences do not differ by more than noise (F-test, p = {flat:.2g})"
    if optima is None or found is None or found.value is None or found.loss_nats is None or flat > FLAT:
        best = min(cells, key=lambda cell: cell.loss_nats)
        counts, lowest = [cell.seeds for cell in cells], cells.index(best)
        return BudgetRow(
            choice="lowest cell (selection)",
            why=why,
            mean_recurrence=best.mean_recurrence,
            looped_nats=best.loss_nats,
            difference=of_lowest(
                best.loss_nats - fixed, (counts, lowest, seeds), noise.within, ratio, config
            ),
            saving=saving(curve, flops, best.loss_nats, (counts, lowest), noise.across, config, stream),
            **common,
        )
    within, across = ((each.loss_draws, each.factor) for each in optima)
    losses = (found.loss_nats, fixed)
    return BudgetRow(
        choice="fitted curve",
        why="the minimum of the shared-shape fit was accepted",
        mean_recurrence=found.value,
        looped_nats=found.loss_nats,
        difference=of_minimum(losses, within, seeds, noise.within, ratio, config, stream),
        saving=saving(curve, flops, found.loss_nats, across, noise.across, config, stream),
        **common,
    )


def _chance_of_equal(cells: Sequence[RecurrenceRow], floor: NoiseFloor) -> float:
    """Return how often equal recurrences would differ as much; 0 where noise is not known, or none."""
    if not floor.sd_nats or len(cells) < 2:  # without noise every difference is one
        return 0.0
    seeds = np.array([cell.seeds for cell in cells], float)
    losses = np.array([cell.loss_nats for cell in cells])
    squares = float(seeds @ np.square(losses - np.average(losses, weights=seeds)))
    ratio = squares / (len(cells) - 1) / floor.sd_nats**2
    return float(fdtrc(len(cells) - 1, floor.degrees_of_freedom, ratio))


def _cells(
    looped: pd.DataFrame,
    control: pd.DataFrame,
    noise: Noise,
    ratio: float | None,
    scored: tuple[SuiteScores, ...],
    config: FitConfig,
) -> tuple[RecurrenceRow, ...]:
    """Compare the mean over seeds of every trained recurrence with that of the control."""
    found = []
    for depth in sorted(set(looped["mean_recurrence"].astype(float))):
        cell = looped[looped["mean_recurrence"] == depth]
        mean, paired = float(cell["val_loss_nats"].mean()), _share_seeds(pd.concat([cell, control]))
        gap = mean - float(control["val_loss_nats"].mean())
        floor = noise.paired if paired else noise.within
        ids = cell["run_id"].tolist(), control["run_id"].tolist()
        scores = (suite.difference(*ids, paired, config) for suite in scored)
        found.append(
            RecurrenceRow(
                mean_recurrence=depth,
                seeds=len(cell),
                paired=paired,
                loss_nats=mean,
                difference=of_means(gap, (len(cell), len(control)), floor, ratio, config),
                scores=tuple(score for score in scores if score is not None),
            )
        )
    return tuple(found)


def _share_seeds(runs: pd.DataFrame) -> bool:
    """Say whether all cells of `runs` were trained with the same seeds, two at least."""
    cells: dict[tuple[str, float], list[int]] = {}
    for kind, depth, seed in zip(runs["kind"], runs["mean_recurrence"], runs["seed"], strict=True):
        cells.setdefault((kind, depth), []).append(seed)
    seeds = {tuple(sorted(each)) for each in cells.values()}
    return len(seeds) == 1 and len(seeds.pop()) > 1


def _bits_per_nat(runs: pd.DataFrame) -> float | None:
    """Return the data set's bits per byte per nat per token, None where the table does not have it."""
    ratio = (runs["val_bits_per_byte"] / runs["val_loss_nats"]).dropna()
    return float(ratio.mean()) if len(ratio) else None
