"""A comparison in words: a table with every recurrence, and one paragraph that sums it up."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.format import number, percent, span

if TYPE_CHECKING:
    from analysis.compare.comparison import BudgetRow, Comparison, RecurrenceRow
    from analysis.compare.loss_difference import Difference
    from analysis.compare.score_difference import ScoreDifference

SUITES = {"core": "Core", "core_extended": "Core-Extended"}  # as figures and pages write them
WIDTH = 100  # of the paragraph
BEST = "*"
JUDGED = "+"  # the trained recurrence next to the best, where it is judged on scores


def summary(comparison: Comparison) -> str:
    """Return the whole comparison as plain text."""
    lines = [
        "Looped minus fixed depth at equal FLOPs and parameters (below zero, looping wins)",
        comparison.noise.sentence(),
    ]
    pairs = sum(cell.paired for row in comparison.rows for cell in row.recurrences)
    if pairs:
        lines.append(
            f"{pairs} cells share their seeds with the control: {comparison.paired_noise.sentence()}"
        )
    level = comparison.config.confidence
    for group in dict.fromkeys(row.group for row in comparison.rows):
        rows = [row for row in comparison.rows if row.group == group]
        lines += ["", group, *(f"  {line}" for line in table(rows, level))]
        lines += [f"  {number(row.budget_flops)} FLOPs: {row.saving.sentence(level)}" for row in rows]
    if comparison.rows:
        lines += ["", *legend(comparison.rows)]
    notes = [f"  {note}" for note in comparison.notes]
    return "\n".join([*lines, *notes, "", _filled(paragraph(comparison))])


def legend(rows: Sequence[BudgetRow]) -> list[str]:
    """Say what the marks of the table mean."""
    best = (
        f"{BEST} the best recurrence, chosen on the loss: the minimum of the fitted curve, or the lowest of "
        "the trained cells, whose interval allows for that choice"
    )
    judged = f"{JUDGED} the trained recurrence next to it, whose points the paragraph below counts"
    return [_filled(best), *([judged] if suites(rows) else [])]


def suites(rows: Sequence[BudgetRow]) -> list[str]:
    """Return the names of the suites that some recurrence was compared on."""
    return sorted({score.suite for row in rows for cell in row.recurrences for score in cell.scores})


def table(rows: Sequence[BudgetRow], confidence: float) -> list[str]:
    """Return the rows of one group as aligned lines, each budget's best recurrence among its trained ones."""
    names = suites(rows)
    points = [f"{name} points" for name in names]
    heads = ["budget", "", "µ", "seeds", "nats", f"{percent(confidence)} interval", "bits/byte", *points]
    cells = [[*heads, "verdict on loss"]]
    for row in rows:
        lines = [(cell.mean_recurrence, 0, _cell(row, cell, names)) for cell in row.recurrences]
        how = "curve" if row.choice == "fitted curve" else "lowest"
        best = [BEST, f"{row.mean_recurrence:.3g}", how, *_difference(row.difference)]
        lines.append((row.mean_recurrence, 1, [*best, *("" for _ in names), row.difference.verdict]))
        ordered = [line for _, _, line in sorted(lines)]
        first = number(row.budget_flops)
        cells += [[first if k == 0 else "", *line] for k, line in enumerate(ordered)]
    return aligned(cells)


def _cell(row: BudgetRow, cell: RecurrenceRow, names: Sequence[str]) -> list[str]:
    found = {score.suite: score for score in cell.scores}
    mark = JUDGED if cell.scores and cell == row.trained() else ""
    seeds = f"{cell.seeds} paired" if cell.paired else f"{cell.seeds}/{row.fixed_seeds}"
    points = [score_cell(found.get(name)) for name in names]
    depth = f"{cell.mean_recurrence:g}"
    return [mark, depth, seeds, *_difference(cell.difference), *points, cell.difference.verdict]


def _difference(found: Difference) -> list[str]:
    bits = "–" if found.bits_per_byte is None else f"{found.bits_per_byte:+.4f}"
    return [f"{found.nats:+.4f}", interval_nats(found), bits]


def interval_nats(found: Difference) -> str:
    """Return the interval of a difference in brackets."""
    if found.low_nats is None or found.high_nats is None:
        return "unknown"
    return f"[{found.low_nats:+.4f}, {found.high_nats:+.4f}]"


def score_cell(found: ScoreDifference | None) -> str:
    """Return a difference of points with its interval, for a table."""
    if found is None:
        return "–"
    over = " items only" if found.seeds_se is None else ""
    return f"{found.points:+.2f} [{found.low:+.2f}, {found.high:+.2f}]{over}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of equal length with their columns to the right, the last to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return lines


def paragraph(comparison: Comparison) -> str:
    """Return the comparison as one paragraph: who is lower where, by how much, and what is not known."""
    rows, names = comparison.rows, suites(comparison.rows)
    if not rows:
        return "No budget has looped runs beside a fixed-depth control: nothing was compared."
    parts = [_losses(rows), _compute(rows), *(_scores(rows, name) for name in names)]
    if comparison.noise.sd_nats is not None or names:
        parts.append(f"Intervals are {percent(comparison.config.confidence)} each, not all together.")
    unknown = _unknown(comparison)
    return " ".join([*parts, *([f"Not known: {'; '.join(unknown)}."] if unknown else [])])


def _losses(rows: Sequence[BudgetRow]) -> str:
    groups = len({row.group for row in rows})
    among = f"{_budgets(len(rows))} of {groups} groups" if groups > 1 else _budgets(len(rows))
    told = {
        "looped lower": "with looped lower",
        "fixed lower": "with fixed depth lower",
        "not resolved": "not resolved",
        "training noise unknown": "with the verdict unknown",
    }
    ends = [
        (row.difference.nats, f"{row.difference.nats:+.4f}{_ends(row.difference)}{_where(row, rows)}")
        for row in rows
    ]
    return (
        "Looped at its best recurrence, chosen on the loss, against fixed depth at equal FLOPs and "
        f"parameters, {among}: {_counts([row.difference.verdict for row in rows], told)}. "
        f"The difference in nats per token, looped minus fixed, {_range(ends)}."
    )


def _compute(rows: Sequence[BudgetRow]) -> str:
    ends = []
    for row in rows:
        found = row.saving
        if found.ratio is not None:
            unknown = found.low is None and found.high is None
            interval = "" if unknown else f" {span(found.low, found.high)}"
            ends.append((found.ratio, f"{found.ratio:.2f}{interval}{_where(row, rows)}"))
    if not ends:
        return "The compute that each side needs for equal loss follows at no budget from the control's runs."
    return (
        f"For the same loss, the FLOPs of fixed depth over those of looped, at {len(ends)} of "
        f"{_budgets(len(rows))}: the ratio {_range(ends)}."
    )


def _scores(rows: Sequence[BudgetRow], suite: str) -> str:
    found = [(row, score) for row in rows for score in row.trained().scores if score.suite == suite]
    if not found:
        return f"No {suite} points at the trained recurrence next to the best."
    told = {
        "looped higher": "with looped higher",
        "fixed higher": "with fixed depth higher",
        "not resolved": "not resolved",
        "items only, training noise unknown": "with the verdict unknown (intervals over items alone)",
    }
    ends = [
        (score.points, f"{score.points:+.2f} [{score.low:+.2f}, {score.high:+.2f}]{_where(row, rows)}")
        for row, score in found
    ]
    return (
        f"In {suite} points ({found[0][1].tasks} tasks), at the trained recurrence next to the best, at "
        f"{len(found)} of {_budgets(len(rows))}: {_counts([score.verdict for _, score in found], told)}; "
        f"the difference {_range(ends)}."
    )


def _unknown(comparison: Comparison) -> list[str]:
    """Return what the comparison leaves open."""
    rows, names, found = comparison.rows, suites(comparison.rows), []
    if comparison.noise.sd_nats is None:
        found.append("the training noise (no cell has two seeds), so that no difference has a verdict")
    lowest = sum(row.choice != "fitted curve" for row in rows)
    if lowest:
        found.append(
            f"the best recurrence at {_budgets(lowest)}, where no minimum of a fitted curve was accepted or "
            "the recurrences do not differ beyond noise, and the lowest trained cell stands for it"
        )
    refused = sum(row.saving.ratio is None for row in rows)
    if refused:
        found.append(f"the compute at equal loss at {_budgets(refused)}, beyond what the control's runs show")
    open_ends = sum(
        row.saving.ratio is not None and (row.saving.low is None) != (row.saving.high is None) for row in rows
    )
    if open_ends:
        found.append(f"one end of its interval at {_budgets(open_ends)} (open)")
    if not names:
        found.append("Core (no runs to compare were evaluated on tasks)")
    for name in names:
        missing = sum(all(score.suite != name for score in row.trained().scores) for row in rows)
        if missing:
            found.append(f"{name} points at {_budgets(missing)}")
    return found


def _counts(verdicts: Sequence[str], told: dict[str, str]) -> str:
    return ", ".join(
        f"{verdicts.count(verdict)} {words}" for verdict, words in told.items() if verdict in verdicts
    )


def _range(ends: Sequence[tuple[float, str]]) -> str:
    """Return the least and the greatest of (value, phrase), or the only one."""
    least, greatest = min(ends)[1], max(ends)[1]
    return f"is {least}" if len(ends) == 1 else f"lies between {least} and {greatest}"


def _ends(found: Difference) -> str:
    return "" if found.low_nats is None or found.high_nats is None else f" {interval_nats(found)}"


def _where(row: BudgetRow, rows: Sequence[BudgetRow]) -> str:
    group = f" ({row.group})" if len({each.group for each in rows}) > 1 else ""
    return f" at {number(row.budget_flops)} FLOPs{group}"


def _budgets(count: int) -> str:
    return f"{count} budget{'s' * (count != 1)}"


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)
