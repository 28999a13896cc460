"""The result of a comparison: looped against fixed depth at all budgets, as text and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis import serialize
from analysis.compare.rows import BEST_MARK, NEAREST_MARK, BudgetRow, suite_names, table
from analysis.config import FitConfig
from analysis.format import number, percent, plural, span
from analysis.serialize import HIDDEN
from analysis.stats.noise import NoiseFloor
from analysis.tables.selection import LeftOut

WIDTH = 100  # of the paragraph
VERDICTS_ON_LOSS = {
    "looped lower": "with looped lower",
    "fixed lower": "with fixed depth lower",
    "not resolved": "not resolved",
    "training noise unknown": "with the verdict unknown",
}
VERDICTS_ON_SCORE = {
    "looped higher": "with looped higher",
    "fixed higher": "with fixed depth higher",
    "not resolved": "not resolved",
    "items only, training noise unknown": "with the verdict unknown (intervals over items alone)",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(serialize.Printed):
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
        """Return the comparison as plain text: a table with every recurrence, and a paragraph."""
        lines = [
            "Looped minus fixed depth at equal FLOPs and parameters (below zero, looping wins)",
            self.noise.summary(),
        ]
        pairs = sum(cell.paired for row in self.rows for cell in row.recurrences)
        if pairs:
            lines.append(f"{pairs} cells share their seeds with the control: {self.paired_noise.summary()}")
        level = self.config.confidence
        for group in dict.fromkeys(row.group for row in self.rows):
            rows = [row for row in self.rows if row.group == group]
            lines += ["", group, *(f"  {line}" for line in table(rows, level))]
            lines += [f"  {number(row.budget_flops)} FLOPs: {row.saving.summary(level)}" for row in rows]
        if self.rows:
            lines += ["", *_legend(self.rows)]
        notes = [f"  {note}" for note in self.notes]
        return "\n".join([*lines, *notes, "", _filled(self.paragraph())])

    def headline(self) -> str:
        """Return at how many budgets which side has the lower loss, and the difference at the largest."""
        if not self.rows:
            return "Looped against fixed depth: no budget has looped runs beside a fixed-depth control"
        verdicts = [row.difference.verdict for row in self.rows]
        counts = ", ".join(
            f"{verdict} at {verdicts.count(verdict)}" for verdict in VERDICTS_ON_LOSS if verdict in verdicts
        )
        largest = {
            row.group: row for row in sorted(self.rows, key=lambda row: row.budget_flops)
        }  # the last of each group stays
        differences = "; ".join(
            f"{row.difference.summary()} nats at µ = {row.mean_recurrence:.3g}{_location(row, self.rows)}"
            for row in largest.values()
        )
        of = f"of {_budgets(len(verdicts))}"
        return f"Looped minus fixed depth at equal FLOPs, {of}: {counts}; {differences}"

    def paragraph(self) -> str:
        """Return which side has the lower loss where and by how much, and what is not known."""
        suites = suite_names(self.rows)
        if not self.rows:
            return "No budget has looped runs beside a fixed-depth control: nothing was compared."
        parts = [_losses(self.rows), _compute(self.rows), *(_scores(self.rows, suite) for suite in suites)]
        if self.noise.sd_nats is not None or suites:
            parts.append(f"Intervals are {percent(self.config.confidence)} each, not all together.")
        unknown = _unknown(self)
        return " ".join([*parts, *([f"Not known: {'; '.join(unknown)}."] if unknown else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return dict(serialize.to_jsonable(self))

    def to_json(self) -> str:
        """Return the comparison as JSON text, the same bytes for the same table and seed."""
        return serialize.to_json(self)


def _legend(rows: Sequence[BudgetRow]) -> list[str]:
    """Return the meaning of the table's marks."""
    best = (
        f"{BEST_MARK} the best recurrence, chosen on the loss: the minimum of the fitted curve, or the "
        "lowest of the trained cells, whose interval allows for that choice"
    )
    nearest = f"{NEAREST_MARK} the trained recurrence next to it, whose points the paragraph below counts"
    return [_filled(best), *([nearest] if suite_names(rows) else [])]


def _losses(rows: Sequence[BudgetRow]) -> str:
    groups = len({row.group for row in rows})
    among = f"{_budgets(len(rows))} of {groups} groups" if groups > 1 else _budgets(len(rows))
    differences = [(row.difference.nats, f"{row.difference.summary()}{_location(row, rows)}") for row in rows]
    return (
        "Looped at its best recurrence, chosen on the loss, against fixed depth at equal FLOPs and "
        f"parameters, {among}: {_counts([row.difference.verdict for row in rows], VERDICTS_ON_LOSS)}. "
        f"The difference in nats per token, looped minus fixed, {_range(differences)}."
    )


def _compute(rows: Sequence[BudgetRow]) -> str:
    ratios = []
    for row in rows:
        multiplier = row.saving
        if multiplier.ratio is not None:
            unknown = multiplier.low is None and multiplier.high is None
            interval = "" if unknown else f" {span(multiplier.low, multiplier.high)}"
            ratios.append((multiplier.ratio, f"{multiplier.ratio:.2f}{interval}{_location(row, rows)}"))
    if not ratios:
        return "The compute that each side needs for equal loss follows at no budget from the control's runs."
    return (
        f"For the same loss, the FLOPs of fixed depth over those of looped, at {len(ratios)} of "
        f"{_budgets(len(rows))}: the ratio {_range(ratios)}."
    )


def _scores(rows: Sequence[BudgetRow], suite: str) -> str:
    scores = [(row, score) for row in rows if (score := row.nearest().score(suite)) is not None]
    if not scores:
        return f"No {suite} points at the trained recurrence next to the best."
    differences = [(score.points, f"{score.summary()}{_location(row, rows)}") for row, score in scores]
    verdicts = _counts([score.verdict for _, score in scores], VERDICTS_ON_SCORE)
    return (
        f"In {suite} points ({scores[0][1].tasks} tasks), at the trained recurrence next to the best, at "
        f"{len(scores)} of {_budgets(len(rows))}: {verdicts}; the difference {_range(differences)}."
    )


def _unknown(comparison: Comparison) -> list[str]:
    """Return what the comparison leaves open."""
    rows, suites, unknown = comparison.rows, suite_names(comparison.rows), []
    if comparison.noise.sd_nats is None:
        unknown.append("the training noise (no cell has two seeds), so that no difference has a verdict")
    lowest = sum(row.choice != "fitted curve" for row in rows)
    if lowest:
        unknown.append(
            f"the best recurrence at {_budgets(lowest)}, where no minimum of a fitted curve was accepted or "
            "the recurrences do not differ beyond noise, and the lowest trained cell stands for it"
        )
    multipliers = [row.saving for row in rows]
    refused = sum(multiplier.ratio is None for multiplier in multipliers)
    if refused:
        unknown.append(
            f"the compute at equal loss at {_budgets(refused)}, beyond what the control's runs show"
        )
    half_open = sum(
        multiplier.ratio is not None and (multiplier.low is None) != (multiplier.high is None)
        for multiplier in multipliers
    )
    if half_open:
        unknown.append(f"one end of its interval at {_budgets(half_open)} (open)")
    if not suites:
        unknown.append("Core (no runs to compare were evaluated on tasks)")
    for suite in suites:
        missing = sum(row.nearest().score(suite) is None for row in rows)
        if missing:
            unknown.append(f"{suite} points at {_budgets(missing)}")
    return unknown


def _counts(verdicts: Sequence[str], phrases: dict[str, str]) -> str:
    return ", ".join(
        f"{verdicts.count(verdict)} {phrase}" for verdict, phrase in phrases.items() if verdict in verdicts
    )


def _range(values: Sequence[tuple[float, str]]) -> str:
    """Return the least and the greatest of (value, phrase), or the only one."""
    least, greatest = min(values)[1], max(values)[1]
    return f"is {least}" if len(values) == 1 else f"lies between {least} and {greatest}"


def _location(row: BudgetRow, rows: Sequence[BudgetRow]) -> str:
    group = f" ({row.group})" if len({each.group for each in rows}) > 1 else ""
    return f" at {number(row.budget_flops)} FLOPs{group}"


def _budgets(count: int) -> str:
    return plural(count, "budget")


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)
