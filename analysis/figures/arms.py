"""Arms against the reference: nats at equal FLOPs and the compute multiplier, over the budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.compare.arm_comparison import ArmComparison
from analysis.figures import style
from analysis.format import percent

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def arms_figure(comparison: ArmComparison) -> style.ReportFigure | None:
    """Draw every arm less the reference, over the budget; None where the arms share no budget."""
    table = arms_table(comparison)
    if table.empty:
        return None
    lines = table.groupby(["arm", "group"], sort=False)
    with style.styled():
        fig, panels = style.figure(2, height=2.7)
        several = table["group"].nunique() > 1
        for place, ((arm, group), frame) in enumerate(lines):
            props: dict[str, Any] = {
                "color": COLOURS[place % len(COLOURS)],
                "marker": style.MARKERS[place % len(style.MARKERS)],
                "markersize": 3.2,
                "linewidth": 0.8,
                "capsize": 2,
                "label": f"{arm}, {group}" if several else str(arm),
            }
            shift = 1.03 ** (place - (len(lines) - 1) / 2)  # bars of several arms side by side
            _line(panels[0], frame, "nats", shift, props)
            _line(panels[1], frame, "multiplier", shift, props)
        budgets = sorted(set(table["budget_flops"]))
        for ax, level, title in zip(panels, (0.0, 1.0), "ab", strict=True):
            ax.set_xscale("log")
            ax.axhline(level, color=style.INK, linewidth=0.6)
            ax.set_title(title)
            ax.set_xlabel("training budget C (FLOPs)")
            ax.set_xlim(budgets[0] / 1.3, budgets[-1] * 1.3)
            style.log_axis(ax.xaxis, budgets)
        reference = comparison.pairs[0].reference
        panels[0].set_ylabel("arm minus reference (nats per token)")
        panels[1].set_ylabel("compute multiplier")
        style.legend_outside(fig, 3, panels[0].get_legend_handles_labels()[0])
    caption = (
        f"Arms against {reference} at equal FLOPs. (a) Mean difference of validation loss over the "
        "recurrences that both trained; below zero the arm is better. (b) FLOPs of the reference over those "
        "of the arm at the loss of the arm's optimum; above one the arm is better; missing where the loss "
        f"lies outside the reference's. Bars: {percent(comparison.config.confidence)} intervals."
    )
    return style.ReportFigure(name="arms", caption=caption, figure=fig, tables={"differences": table})


def _line(ax: Axes, frame: pd.DataFrame, name: str, shift: float, props: dict[str, Any]) -> None:
    values, low, high = (frame[f"{name}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    bars = np.nan_to_num(np.stack([values - low, high - values]))
    ax.errorbar(frame["budget_flops"] * shift, values, yerr=bars, **props)


def arms_table(comparison: ArmComparison) -> pd.DataFrame:
    """Return one row per arm, group and budget; NaN where a value was refused or an end is open."""
    rows = []
    for pair in comparison.pairs:
        for group in pair.groups:
            for row in group.budgets:
                values: dict[str, Any] = {}
                for name in ("nats", "optimum_nats", "multiplier"):
                    estimate = getattr(row, name)
                    values |= {
                        name: estimate.value,
                        f"{name}_low": estimate.low,
                        f"{name}_high": estimate.high,
                    }
                common = {"arm": pair.arm, "reference": pair.reference, "group": group.label}
                rows.append({**common, "budget_flops": row.budget_flops, "cells": row.cells, **values})
    return pd.DataFrame(rows)
