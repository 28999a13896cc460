"""Looped against fixed depth at equal FLOPs: the difference in nats over the budget, in points over µ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.compare.comparison import Comparison
from analysis.compare.loss_difference import LossDifference
from analysis.compare.rows import SUITE_TITLES, BudgetRow, suite_names
from analysis.figures import style
from analysis.format import percent

NAME = "looped_vs_fixed"
LOWEST = "lowest cell (selection)"
POINT: dict[str, Any] = {"color": style.INK, "linestyle": "none"}
BEST: dict[str, dict[str, Any]] = {  # by how the best recurrence was chosen
    "fitted curve": {**POINT, "marker": "*", "markersize": 7},
    LOWEST: {**POINT, "marker": "o", "markersize": 4.5, "markerfacecolor": "white"},
}
JUDGED: dict[str, Any] = {**POINT, "marker": "s", "markersize": 5.5, "markerfacecolor": "none"}


def names(comparison: Comparison) -> list[str]:
    """Return the names of the figures that `compare_figures` draws."""
    of_suites = [f"{NAME}_{suite}" for suite in suite_names(comparison.rows)]
    return [NAME, *of_suites] if comparison.rows else []


def compare_figures(comparison: Comparison) -> list[style.ReportFigure]:
    """Draw the differences of losses, and those of points for every suite that has some; see `names`."""
    losses = compare_figure(comparison)
    return [
        *([losses] if losses else []),
        *(_points_figure(comparison, s) for s in suite_names(comparison.rows)),
    ]


def compare_figure(comparison: Comparison) -> style.ReportFigure | None:
    """Draw looped minus fixed for the best recurrence (with intervals) and for each one; None without a
    control.
    """
    groups = sorted({row.group for row in comparison.rows})
    if not groups:
        return None
    with style.styled():
        width = style.COLUMN_INCHES if len(groups) == 1 else style.PAGE_INCHES
        fig, panels = style.figure(len(groups), width=width, height=2.8, sharey=True)
        depths = sorted({cell.mean_recurrence for row in comparison.rows for cell in row.recurrences})
        colours = style.recurrence_colours(depths)
        for ax, name in zip(panels, groups, strict=True):
            _panel(ax, [row for row in comparison.rows if row.group == name], colours)
            if len(groups) > 1:
                ax.set_title(name)
        panels[0].set_ylabel("looped minus fixed (nats per token)")
        _mark_sides(panels[-1], ("fixed better →", "← looped better"))
        handles = _handles(colours, {row.choice for row in comparison.rows})
        style.legend_outside(fig, 3 if len(groups) == 1 else 8, handles)
    known = comparison.noise.sd_nats is not None
    caption = (
        "Validation loss of looped models minus that of the fixed-depth control at equal FLOPs and "
        "parameters; below zero, looping wins. Black: the best recurrence, at the minimum of the fitted "
        "curve (star), or, where that was not accepted or the recurrences do not differ beyond noise, the "
        "lowest trained cell (circle), which is a selection. Colours: each recurrence. "
        + (
            f"Bars: {percent(comparison.config.confidence)} intervals from replicate seeds."
            if known
            else "Training noise unknown: no bars."
        )
    )
    return style.ReportFigure(
        name=NAME, caption=caption, figure=fig, tables={"differences": _table(comparison)}
    )


def _panel(ax: Axes, rows: list[BudgetRow], colours: dict[float, Any]) -> None:
    ax.set_xscale("log")
    ax.axhline(0, color=style.INK, linewidth=0.6)
    budgets = np.array([row.budget_flops for row in rows])
    for depth, colour in colours.items():
        pairs = [
            (row.budget_flops, c.difference.nats)
            for row in rows
            for c in row.recurrences
            if c.mean_recurrence == depth
        ]
        if pairs:
            ax.plot(*zip(*pairs, strict=True), marker="o", markersize=2.6, linewidth=0.6, color=colour)
    values = np.array([row.difference.nats for row in rows])
    bars = None
    if all(row.difference.low_nats is not None and row.difference.high_nats is not None for row in rows):
        ends = np.array([[row.difference.low_nats, row.difference.high_nats] for row in rows], float).T
        bars = np.abs(ends - values)
    ax.errorbar(
        budgets, values, yerr=bars, color=style.INK, linestyle="none", elinewidth=0.8, capsize=2, zorder=3
    )
    for row in rows:
        ax.plot([row.budget_flops], [row.difference.nats], **BEST[row.choice], zorder=4)
    ax.set_xlabel("training budget C (FLOPs)")
    ax.margins(x=0.08, y=0.1)
    style.log_axis(ax.xaxis, budgets.tolist())


def _handles(colours: dict[float, Any], choices: set[str]) -> list[Line2D]:
    handles = [
        Line2D([], [], marker="o", markersize=2.6, color=colour, label=f"µ = {depth:g}")
        for depth, colour in colours.items()
    ]
    labels = {choice: f"best µ, {choice.split(' (')[0]}" for choice in BEST if choice in choices}
    return [*handles, *(Line2D([], [], **BEST[choice], label=label) for choice, label in labels.items())]


def _mark_sides(ax: Axes, sides: tuple[str, str]) -> None:
    """Label beside a panel what lies above and below zero."""
    low, high = ax.get_ylim()
    reach = max(abs(low), abs(high))
    ax.set_ylim(min(low, -0.25 * reach), max(high, 0.25 * reach))
    for text, place, side in zip(sides, (1.0, 0.0), ("top", "bottom"), strict=True):
        ax.annotate(
            text,
            (1.015, place),
            xycoords="axes fraction",
            rotation=90,
            va=side,
            fontsize=6,
            color=style.FAINT,
        )


def _table(comparison: Comparison) -> pd.DataFrame:
    rows = []
    for row in comparison.rows:
        common = {"group": row.group, "budget_flops": row.budget_flops, "fixed_nats": row.fixed_nats}
        entries: list[tuple[str, float, float, LossDifference]] = [
            (row.choice, row.mean_recurrence, row.looped_nats, row.difference)
        ]
        entries += [("cell", c.mean_recurrence, c.loss_nats, c.difference) for c in row.recurrences]
        for choice, depth, loss, d in entries:
            rows.append(
                {
                    **common,
                    "entry": choice,
                    "mean_recurrence": depth,
                    "looped_nats": loss,
                    "difference_nats": d.nats,
                    "low_nats": d.low_nats,
                    "high_nats": d.high_nats,
                    "difference_bits_per_byte": d.bits_per_byte,
                    "verdict": d.verdict,
                }
            )
    return pd.DataFrame(rows)


def _points_figure(comparison: Comparison, suite: str) -> style.ReportFigure:
    """Draw looped minus fixed in points of a suite at every recurrence, one curve per budget."""
    table = _points_table(comparison, suite)
    groups = sorted(set(table["group"]))
    colours = style.budget_colours(table["budget_flops"].tolist())
    with style.styled():
        width = style.COLUMN_INCHES if len(groups) == 1 else style.PAGE_INCHES
        fig, panels = style.figure(len(groups), width=width, height=2.8, sharey=True)
        for ax, name in zip(panels, groups, strict=True):
            _points_panel(ax, table[table["group"] == name], colours)
            if len(groups) > 1:
                ax.set_title(name)
        panels[0].set_ylabel(f"looped minus fixed\n({SUITE_TITLES.get(suite, suite)} points)")
        _mark_sides(panels[-1], ("looped better →", "← fixed better"))
        handles = [
            Line2D([], [], marker="o", markersize=2.6, color=colour, label=style.scientific(budget))
            for budget, colour in colours.items()
        ]
        handles.append(Line2D([], [], **JUDGED, label="next to best µ"))
        ncols = 3 if len(groups) == 1 else 7
        style.legend_outside(fig, ncols, handles, title="budget C (FLOPs)")
    noise = "items alone" if table["seeds_se"].isna().any() else "items and training seeds"
    caption = (
        f"Points of {SUITE_TITLES.get(suite, suite)} ({table['tasks'].iloc[0]} tasks) of looped models minus "
        "those of the fixed-depth control at equal FLOPs and parameters; above zero, looping wins. Colours: "
        "budgets, moved apart. Squares: the trained recurrence next to the best, chosen on the loss. "
        f"Bars: {percent(comparison.config.confidence)} intervals over {noise}."
    )
    return style.ReportFigure(name=f"{NAME}_{suite}", caption=caption, figure=fig, tables={"points": table})


def _points_panel(ax: Axes, table: pd.DataFrame, colours: dict[float, Any]) -> None:
    ax.set_xscale("log")
    ax.axhline(0, color=style.INK, linewidth=0.6)
    depths = sorted(set(table["mean_recurrence"]))
    ax.set_xlim(depths[0] / 1.25, depths[-1] * 1.25)
    for place, (budget, colour) in enumerate(colours.items()):
        rows = table[table["budget_flops"] == budget].sort_values("mean_recurrence")
        shift = 1.02 ** (place - (len(colours) - 1) / 2)  # bars of several budgets side by side
        x, points = rows["mean_recurrence"] * shift, rows["points"]
        bars = (points - rows["low"], rows["high"] - points)
        props: dict[str, Any] = {"marker": "o", "markersize": 2.2, "linewidth": 0.6, "elinewidth": 0.6}
        ax.errorbar(x, points, yerr=bars, color=colour, **props)  # caps of neighbours would touch
        best = rows["next_to_best"]
        ax.plot(x[best], points[best], **JUDGED, zorder=4)
    ax.set_xlabel("mean recurrence µ (loops)")
    ax.margins(y=0.1)
    style.recurrence_axis(ax.xaxis, depths)


def _points_table(comparison: Comparison, suite: str) -> pd.DataFrame:
    rows = []
    for row in comparison.rows:
        for cell in row.recurrences:
            common = {
                "group": row.group,
                "budget_flops": row.budget_flops,
                "mean_recurrence": cell.mean_recurrence,
                "next_to_best": cell == row.nearest(),
                "seeds": cell.seeds,
                "paired": cell.paired,
            }
            rows += [common | vars(score) for score in cell.scores if score.suite == suite]
    return pd.DataFrame(rows)
