"""Looped against fixed depth at equal FLOPs and equal parameters, with the training noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis import plain
from analysis.config import FitConfig
from analysis.isoflop import HIDDEN
from analysis.noise import NoiseFloor, noise_floor
from analysis.resample import NoiseLevel, draws, interval
from analysis.study import GroupFit, fit_groups
from analysis.tables import LeftOut, digest, groups, select

Verdict = Literal["looped lower", "fixed lower", "not resolved", "training noise unknown"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Looped minus fixed: below zero, looping wins. Intervals are None where training noise is unknown."""

    nats: float
    low_nats: float | None = None
    high_nats: float | None = None
    bits_per_byte: float | None = None
    low_bits_per_byte: float | None = None
    high_bits_per_byte: float | None = None
    verdict: Verdict = "training noise unknown"


@dataclass(frozen=True, kw_only=True)
class RecurrenceRow:
    """One recurrence against the fixed control of the same group and budget; losses are means over seeds."""

    mean_recurrence: float
    seeds: int
    loss_nats: float
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """The best looped model of one budget against the fixed control.

    `choice` says how the best recurrence was found: as the minimum of the fitted curve, or as the lowest of the
    trained cells, which is a selection and favours looping by about one noise standard deviation.
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
    recurrences: tuple[RecurrenceRow, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All budgets that have looped runs and a fixed control."""

    config: FitConfig
    runs_digest: str
    noise: NoiseFloor
    rows: tuple[BudgetRow, ...]
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    table: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)

    def summary(self) -> str:
        """Return the comparison as plain text."""
        lines = [
            "Looped minus fixed depth at equal FLOPs and parameters (below zero, looping wins)",
            self.noise.sentence(),
        ]
        for row in self.rows:
            lines.append(
                f"  {row.group}, {row.budget_flops:.3g} FLOPs: {_difference(row.difference)} at µ = "
                f"{row.mean_recurrence:.3g} ({row.choice}): {row.difference.verdict}"
            )
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return dict(plain.plain(self))

    def to_json(self) -> str:
        """Return the comparison as JSON text, the same bytes for the same table and seed."""
        return plain.to_json(self)


def compare(runs: pd.DataFrame, config: FitConfig | None = None) -> Comparison:
    """Compare the best looped model with the fixed control at every budget of every group.

    Raises TableError for a table that is malformed, empty, or holds runs of different data.
    """
    config = config or FitConfig()
    selection = select(runs, config.max_epochs)
    floor = noise_floor(selection.runs)
    fitted, skipped = fit_groups(selection.runs, floor, config)
    by_label = {group.label: group for group in fitted}
    rows: list[BudgetRow] = []
    notes = list(skipped)
    for label, frame in groups(selection.runs):
        fixed = frame[(frame["kind"] == "fixed") & frame["target_flops"].notna()]
        if fixed.empty:
            notes.append(f"{label}: no fixed-depth control")
        for flops, control in fixed.groupby("target_flops", sort=True):
            looped = frame[(frame["kind"] == "looped") & (frame["target_flops"] == flops)]
            if looped.empty:
                notes.append(f"{label}, {flops:.3g} FLOPs: no looped run")
            else:
                rows.append(_row(label, by_label.get(label), float(flops), looped, control, floor, config))
    return Comparison(
        config=config,
        runs_digest=digest(runs),
        noise=floor,
        rows=tuple(rows),
        notes=tuple(notes),
        left_out=selection.left_out,
        table=selection.runs,
    )


def _row(
    label: str,
    group: GroupFit | None,
    flops: float,
    looped: pd.DataFrame,
    control: pd.DataFrame,
    floor: NoiseFloor,
    config: FitConfig,
) -> BudgetRow:
    ratio = _bits_per_nat(pd.concat([looped, control]))
    fixed_loss, fixed_seeds = float(control["val_loss_nats"].mean()), len(control)
    means = looped.groupby("mean_recurrence")["val_loss_nats"].agg(["mean", "size"])
    cells = tuple(
        RecurrenceRow(
            mean_recurrence=float(depth),
            seeds=int(cell["size"]),
            loss_nats=float(cell["mean"]),
            difference=_cell_difference(
                float(cell["mean"]) - fixed_loss, 1 / cell["size"] + 1 / fixed_seeds, floor, ratio, config
            ),
        )
        for depth, cell in means.iterrows()
    )
    best = min(cells, key=lambda cell: cell.loss_nats)
    choice, why, depth, loss, difference = (
        "lowest cell (selection)",
        "",
        best.mean_recurrence,
        best.loss_nats,
        best.difference,
    )
    estimator = group.estimator() if group else None
    found = None
    if group and estimator:
        found = next((o for o in estimator.optima["mean_recurrence"] if o.budget_flops == flops), None)
    if found is not None and found.value is not None and found.loss_nats is not None:
        depth, loss, choice = found.value, found.loss_nats, "fitted curve"
        gap = loss - fixed_loss
        scatter = _fixed_noise(fixed_seeds, floor, config, f"{label} {flops}")
        samples = None if scatter is None else found.loss_draws - loss - scatter + gap
        difference = _difference_of(gap, samples, ratio, config)
    elif found is not None:
        why = found.refusal or ""
    return BudgetRow(
        group=label,
        scale=str(looped["scale"].iloc[0]),
        accounting=str(looped["accounting"].iloc[0]),
        budget_flops=flops,
        choice=choice,  # type: ignore[arg-type]
        why=why,
        mean_recurrence=depth,
        looped_nats=loss,
        fixed_nats=fixed_loss,
        fixed_seeds=fixed_seeds,
        difference=difference,
        recurrences=cells,
    )


def _fixed_noise(seeds: int, floor: NoiseFloor, config: FitConfig, label: str) -> Any:
    """Draw the noise of the control's mean [resamples], None where training noise is unknown."""
    if floor.sd_nats is None:
        return None
    level = NoiseLevel(
        sd_nats=floor.sd_nats / np.sqrt(seeds),
        degrees_of_freedom=floor.degrees_of_freedom,
        source="replicate seeds",
    )
    return draws(config.bootstrap, 1, config.seed, f"fixed control, {label}").noise(level)[:, 0]


def _difference_of(gap: float, samples: Any, ratio: float | None, config: FitConfig) -> Difference:
    if samples is None:
        return _finish(gap, None, None, ratio)
    low, high = interval(samples, config.confidence)
    return _finish(gap, low, high, ratio)


def _cell_difference(
    gap: float, variance_factor: float, floor: NoiseFloor, ratio: float | None, config: FitConfig
) -> Difference:
    """Return the difference of two cell means with Student's interval at the pooled seed variance."""
    if floor.sd_nats is None:
        return _finish(gap, None, None, ratio)
    half = float(
        stdtrit(floor.degrees_of_freedom, (1 + config.confidence) / 2)
        * floor.sd_nats
        * np.sqrt(variance_factor)
    )
    return _finish(gap, gap - half, gap + half, ratio)


def _finish(gap: float, low: float | None, high: float | None, ratio: float | None) -> Difference:
    verdict: Verdict = "training noise unknown"
    if low is not None and high is not None:
        verdict = "looped lower" if high < 0 else "fixed lower" if low > 0 else "not resolved"
    bits = [None if ratio is None or value is None else value * ratio for value in (gap, low, high)]
    return Difference(
        nats=gap,
        low_nats=low,
        high_nats=high,
        bits_per_byte=bits[0],
        low_bits_per_byte=bits[1],
        high_bits_per_byte=bits[2],
        verdict=verdict,
    )


def _bits_per_nat(runs: pd.DataFrame) -> float | None:
    """Return the data set's bits per byte per nat per token, None where the table does not have it."""
    ratio = (runs["val_bits_per_byte"] / runs["val_loss_nats"]).dropna()
    return float(ratio.mean()) if len(ratio) else None


def _difference(value: Difference) -> str:
    shown = f"{value.nats:+.4f} nats"
    if value.low_nats is not None and value.high_nats is not None:
        shown += f" [{value.low_nats:+.4f}, {value.high_nats:+.4f}]"
    return shown + (f", {value.bits_per_byte:+.4f} bits/byte" if value.bits_per_byte is not None else "")
