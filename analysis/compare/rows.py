"""The rows of a comparison and their table: recurrences and budgets against the fixed-depth control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.compare.compute_multiplier import ComputeMultiplier
from analysis.compare.loss_difference import LossDifference
from analysis.compare.score_difference import ScoreDifference
from analysis.format import number, percent

SUITE_TITLES = {"core": "Core", "core_extended": "Core-Extended"}  # in figures and pages
BEST_MARK = "*"
NEAREST_MARK = "+"  # the trained recurrence nearest to the best, if it has scores


@dataclass(frozen=True, kw_only=True)
class RecurrenceRow:
    """One recurrence against the fixed control of the same group and budget; losses are means over seeds.

    Where both were trained with the same seeds, at least two, the runs of each seed are paired.
    """

    mean_recurrence: float
    seeds: int
    paired: bool
    loss_nats: float
    difference: LossDifference
    scores: tuple[ScoreDifference, ...] = ()

    def score(self, suite: str) -> ScoreDifference | None:
        """Return the difference of points in one suite, None if it was not evaluated."""
        return next((score for score in self.scores if score.suite == suite), None)


@dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """The best looped model of one budget against the fixed control.

    `choice` says how the best recurrence was found: as the minimum of the fitted curve, or as the lowest
    of the trained cells. The latter lies low by chance; its interval allows for the selection.
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
    difference: LossDifference
    saving: ComputeMultiplier
    recurrences: tuple[RecurrenceRow, ...]

    def nearest(self) -> RecurrenceRow:
        """Return the trained recurrence nearest to the best: chosen on the loss, judged on Core."""
        best = np.log(self.mean_recurrence)
        return min(self.recurrences, key=lambda cell: abs(np.log(cell.mean_recurrence) - best))


def suite_names(rows: Sequence[BudgetRow]) -> list[str]:
    """Return the names of the suites on which some recurrence was compared."""
    return sorted({score.suite for row in rows for cell in row.recurrences for score in cell.scores})


def table(rows: Sequence[BudgetRow], confidence: float) -> list[str]:
    """Return the rows of one group as aligned lines, each budget's best recurrence among its trained ones."""
    suites = suite_names(rows)
    points = [f"{suite} points" for suite in suites]
    heads = ["budget", "", "µ", "seeds", "nats", f"{percent(confidence)} interval", "bits/byte", *points]
    cells = [[*heads, "verdict on loss"]]
    for row in rows:
        lines = [(cell.mean_recurrence, 0, _recurrence(row, cell, suites)) for cell in row.recurrences]
        lines.append((row.mean_recurrence, 1, _best(row, suites)))
        budget = number(row.budget_flops)
        cells += [[budget if k == 0 else "", *line] for k, (_, _, line) in enumerate(sorted(lines))]
    return aligned(cells)


def _recurrence(row: BudgetRow, cell: RecurrenceRow, suites: Sequence[str]) -> list[str]:
    mark = NEAREST_MARK if cell.scores and cell == row.nearest() else ""
    seeds = f"{cell.seeds} paired" if cell.paired else f"{cell.seeds}/{row.fixed_seeds}"
    points = [_points(cell.score(suite)) for suite in suites]
    depth = f"{cell.mean_recurrence:g}"
    return [mark, depth, seeds, *_losses(cell.difference), *points, cell.difference.verdict]


def _best(row: BudgetRow, suites: Sequence[str]) -> list[str]:
    choice = "curve" if row.choice == "fitted curve" else "lowest"
    cells = [BEST_MARK, f"{row.mean_recurrence:.3g}", choice, *_losses(row.difference)]
    return [*cells, *("" for _ in suites), row.difference.verdict]


def _losses(difference: LossDifference) -> list[str]:
    bits = "–" if difference.bits_per_byte is None else f"{difference.bits_per_byte:+.4f}"
    return [f"{difference.nats:+.4f}", difference.interval(), bits]


def _points(score: ScoreDifference | None) -> str:
    if score is None:
        return "–"
    return score.summary() + (" items only" if score.seeds_se is None else "")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of equal length as lines, columns to the right and the last one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return lines
