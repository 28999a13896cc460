"""The frontier: the least loss of each budget by estimator beside the control's, and the compute saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.compare.rows import BudgetRow
from analysis.figures import marks, style
from analysis.figures.compare import BEST, LOWEST
from analysis.figures.isoflop import ESTIMATOR_PROPS
from analysis.format import percent
from analysis.isoflop.group import GroupFit


def frontier_figure(group: GroupFit, rows: Sequence[BudgetRow], confidence: float) -> style.ReportFigure:
    """Draw L*(C) of every estimator and, with a control, its loss and the ratio of FLOPs at equal loss."""
    with style.styled():
        width = style.PAGE_INCHES if rows else style.COLUMN_INCHES
        fig, panels = style.figure(2 if rows else 1, width=width, height=2.7)
        _losses(panels[0], group, rows)
        if rows:
            _ratios(panels[1], rows)
            for ax, letter in zip(panels, "ab", strict=True):
                ax.set_title(letter)
        style.legend_outside(fig, 5 if rows else 2, panels[0].get_legend_handles_labels()[0])
    caption = (
        f"{group.label}: least loss of each budget at the accepted optima of each estimator, "
        f"with {percent(confidence)} intervals (bands)"
    )
    caption += (
        "; circles: the lowest trained cell, where it stands for the optimum; diamonds: fixed depth (a). "
        "FLOPs that fixed depth needs over those of the best looped model at equal loss, by fitted curve "
        "(star) or lowest cell (circle) (b): above one, looping saves. An arrowhead marks an open end; "
        "a line without a mark starts at a bound, for a loss below (up) or above (down) all of the control's."
        if rows
        else "."
    )
    return style.ReportFigure(name="frontier", caption=caption, figure=fig, tables=_tables(group, rows))


def _losses(ax: Axes, group: GroupFit, rows: Sequence[BudgetRow]) -> None:
    budgets = group.budgets_flops
    ax.set_xscale("log")
    ax.set_xlim(budgets[0] / 1.5, budgets[-1] * 1.5)
    for place, estimator in enumerate(group.estimators):
        props = ESTIMATOR_PROPS[estimator.name]
        accepted = [o for o in estimator.optima[group.quantities[0]] if o.value is not None]
        if not accepted:  # the legend names what is drawn
            continue
        at = [o.budget_flops for o in accepted]
        low, high = np.array([(o.loss_low_nats, o.loss_high_nats) for o in accepted], float).T
        ax.fill_between(at, low, high, color=props["color"], alpha=0.15, linewidth=0)
        ax.vlines(at, low, high, color=props["color"], linewidth=0.7)
        losses: Any = [o.loss_nats for o in accepted]
        # Estimators that agree lie upon one another: the later, the smaller.
        ax.plot(at, losses, **props, markersize=5.4 - 1.3 * place, linewidth=0.7, label=estimator.name)
    lowest = [row for row in rows if row.choice == LOWEST]
    if lowest:
        points = [row.budget_flops for row in lowest], [row.looped_nats for row in lowest]
        ax.plot(*points, **BEST[LOWEST], label="lowest cell")
    if rows:
        at, fixed = [row.budget_flops for row in rows], [row.fixed_nats for row in rows]
        props = {"color": style.INK, "marker": "D", "markersize": 3.8, "markerfacecolor": "white"}
        ax.plot(at, fixed, **props, linewidth=0.7, label="fixed depth")
    ax.set_xlabel("training budget C (FLOPs)")
    recurrence = group.cells.variable == "mean_recurrence"
    ax.set_ylabel("least loss L* (nats per token)" if recurrence else "least loss L* (unit of the table)")
    style.log_axis(ax.xaxis, budgets)


def _ratios(ax: Axes, rows: Sequence[BudgetRow]) -> None:
    budgets = sorted(row.budget_flops for row in rows)
    ends = {row.budget_flops: _ends(row, budgets) for row in rows}
    reached = [end for pair in ends.values() for end in pair if end is not None]
    limits = min([0.8, *reached]) / 1.3, max([2.0, *reached]) * 1.3
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(budgets[0] / 1.5, budgets[-1] * 1.5)
    ax.set_ylim(*limits)
    ax.axhline(1.0, color=style.INK, linewidth=0.6)
    for row in rows:
        if ends[row.budget_flops] != (None, None):
            marks.whisker(ax, row.budget_flops, ends[row.budget_flops], limits, color=style.INK, width=0.8)
        if row.saving.ratio is not None:
            ax.plot([row.budget_flops], [row.saving.ratio], **BEST[row.choice], zorder=3)
    ax.set_xlabel("training budget C (FLOPs)")
    ax.set_ylabel("FLOPs of fixed / looped at equal loss")
    style.log_axis(ax.xaxis, budgets)
    style.plain_log_axis(ax.yaxis)


def _ends(row: BudgetRow, budgets: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the interval of a ratio of FLOPs, or its bound where the control nowhere has the loss."""
    refusal = row.saving.refusal or ""
    if "lower than" in refusal:
        return budgets[-1] / row.budget_flops, None
    if "higher than" in refusal:
        return None, budgets[0] / row.budget_flops
    return row.saving.low, row.saving.high


def _tables(group: GroupFit, rows: Sequence[BudgetRow]) -> dict[str, pd.DataFrame]:
    losses = [
        (estimator.name, o.budget_flops, o.value, o.loss_nats, o.loss_low_nats, o.loss_high_nats)
        for estimator in group.estimators
        for o in estimator.optima[group.quantities[0]]
    ]
    columns = ["estimator", "budget_flops", group.quantities[0], "loss_nats", "low_nats", "high_nats"]
    tables = {"losses": pd.DataFrame(losses, columns=columns)}
    if rows:
        saved = [
            (
                r.budget_flops,
                r.choice,
                r.looped_nats,
                r.fixed_nats,
                r.saving.ratio,
                r.saving.low,
                r.saving.high,
                r.saving.refusal,
            )
            for r in rows
        ]
        heads = [
            "budget_flops",
            "choice",
            "looped_nats",
            "fixed_nats",
            "flops_ratio",
            "low",
            "high",
            "refusal",
        ]
        tables["savings"] = pd.DataFrame(saved, columns=heads)
    return tables
