"""Looped against fixed depth at equal FLOPs: the difference in nats over the budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import style
from analysis.compare import BudgetRow, Comparison
from analysis.difference import Difference


def compare_figure(comparison: Comparison) -> style.Drawn | None:
    """Draw looped minus fixed for the best recurrence (with intervals) and for each one; None without a
    control.
    """
    names = sorted({row.group for row in comparison.rows})
    if not names:
        return None
    with style.styled():
        width = style.COLUMN_INCHES if len(names) == 1 else style.PAGE_INCHES
        made, panels = style.figure(len(names), width=width, height=2.8, sharey=True)
        depths = sorted({cell.mean_recurrence for row in comparison.rows for cell in row.recurrences})
        colours = style.recurrence_colours(depths)
        for ax, name in zip(panels, names, strict=True):
            _panel(ax, [row for row in comparison.rows if row.group == name], colours)
            if len(names) > 1:
                ax.set_title(name)
        panels[0].set_ylabel("looped minus fixed (nats per token)")
        _mark_sides(panels[-1])
        handles = _handles(colours, {row.choice for row in comparison.rows})
        made.legend(handles=handles, loc="outside lower center", ncols=3 if len(names) == 1 else 8)
    known = comparison.noise.sd_nats is not None
    caption = (
        "Validation loss of looped models minus that of the fixed-depth control at equal FLOPs and "
        "parameters; below zero, looping wins. Black: the best recurrence, at the minimum of the fitted "
        "curve where that is accepted (filled), else the lowest trained cell (open), which is a "
        "selection. Colours: each recurrence. "
        + (
            f"Bars: {comparison.config.confidence:.0%} intervals from replicate seeds."
            if known
            else "Training noise unknown: no bars."
        )
    )
    return style.Drawn(
        name="looped_vs_fixed", caption=caption, figure=made, tables={"differences": _table(comparison)}
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
        face = style.INK if row.choice == "fitted curve" else "white"
        ax.plot(
            [row.budget_flops],
            [row.difference.nats],
            marker="D",
            markersize=4,
            color=style.INK,
            markerfacecolor=face,
            linestyle="none",
            zorder=4,
        )
    ax.set_xlabel("training budget C (FLOPs)")
    ax.margins(x=0.08, y=0.1)
    style.log_axis(ax.xaxis, budgets.tolist())


def _handles(colours: dict[float, Any], choices: set[str]) -> list[Line2D]:
    handles = [
        Line2D([], [], marker="o", markersize=2.6, color=colour, label=f"µ = {depth:g}")
        for depth, colour in colours.items()
    ]
    for choice, label, face in (
        ("fitted curve", "best µ, fitted curve", style.INK),
        ("lowest cell (selection)", "best µ, lowest cell", "white"),
    ):
        if choice in choices:
            look: dict[str, Any] = {"color": style.INK, "marker": "D", "markersize": 4, "linestyle": "none"}
            handles.append(Line2D([], [], **look, markerfacecolor=face, label=label))
    return handles


def _mark_sides(ax: Axes) -> None:
    low, high = ax.get_ylim()
    reach = max(abs(low), abs(high))
    ax.set_ylim(min(low, -0.25 * reach), max(high, 0.25 * reach))
    for text, place, side in (("fixed better →", 1.0, "top"), ("← looped better", 0.0, "bottom")):
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
        entries: list[tuple[str, float, float, Difference]] = [
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
