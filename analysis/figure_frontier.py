"""The frontier: the least loss of each budget by estimator beside the control's, and the compute saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.compare import BudgetRow
from analysis.figure_powerlaw import LOOKS, OFFSETS
from analysis.group import GroupFit


def frontier_figure(group: GroupFit, rows: Sequence[BudgetRow], confidence: float) -> style.Drawn:
    """Draw L*(C) of every estimator and, with a control, its loss and the ratio of FLOPs at equal loss."""
    with style.styled():
        made, panels = style.figure(2 if rows else 1, width=_width(rows), height=2.7)
        _losses(panels[0], group, rows)
        if rows:
            _ratios(panels[1], rows)
            for ax, letter in zip(panels, "ab", strict=True):
                ax.set_title(letter)
        made.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4 if rows else 2
        )
    caption = (
        f"{style.sentence(group.label)}. Least loss of each budget at the accepted optima of each estimator, "
        f"with {confidence:.0%} intervals"
    )
    caption += (
        "; open diamonds: fixed depth (a). FLOPs that fixed depth needs over those of the best looped model "
        "at equal loss (b): above one, looping saves; an arrow alone marks a loss that no control reached, a "
        "lower bound, an arrow from a mark an interval that is open; a budget without either was refused."
        if rows
        else "."
    )
    return style.Drawn(name="frontier", caption=caption, figure=made, tables=_tables(group, rows))


def _width(rows: Sequence[BudgetRow]) -> float:
    return style.PAGE_INCHES if rows else style.COLUMN_INCHES


def _losses(ax: Axes, group: GroupFit, rows: Sequence[BudgetRow]) -> None:
    ax.set_xscale("log")
    quantity = group.quantities[0]
    for estimator in group.estimators:
        look = LOOKS[estimator.name]
        found = [o for o in estimator.optima[quantity] if o.value is not None and o.loss_nats is not None]
        if not found:  # the legend names what is drawn
            continue
        losses = np.array([o.loss_nats for o in found], float)
        ends = [(o.loss_low_nats or o.loss_nats, o.loss_high_nats or o.loss_nats) for o in found]
        ax.errorbar(
            [o.budget_flops * OFFSETS[estimator.name] for o in found],
            losses,
            yerr=np.abs(np.array(ends, float).reshape(-1, 2).T - losses),
            color=look["color"],
            marker=look["marker"],
            markersize=3.4,
            linestyle=look["linestyle"],
            linewidth=0.7,
            elinewidth=0.7,
            capsize=1.5,
            label=estimator.name,
        )
    if rows:
        at, fixed = [row.budget_flops for row in rows], [row.fixed_nats for row in rows]
        look = {"color": style.INK, "marker": "D", "markersize": 3.8, "markerfacecolor": "white"}
        ax.plot(at, fixed, **look, linewidth=0.7, label="fixed depth")
    ax.set_xlabel("training budget C (FLOPs)")
    recurrence = group.cells.variable == "mean_recurrence"
    ax.set_ylabel("least loss L* (nats per token)" if recurrence else "least loss L* (unit of the table)")
    budgets = np.array(group.budgets_flops)
    ax.set_xlim(budgets[0] / 1.5, budgets[-1] * 1.5)
    style.log_axis(ax.xaxis, budgets.tolist())


def _ratios(ax: Axes, rows: Sequence[BudgetRow]) -> None:
    last = max(row.budget_flops for row in rows)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(min(row.budget_flops for row in rows) / 1.5, last * 1.5)
    ax.axhline(1.0, color=style.INK, linewidth=0.6)
    look: dict[str, Any] = {"color": style.INK, "marker": "D", "markersize": 3.8, "linestyle": "none"}
    tops = [1.0]
    for row in rows:
        at, ratio, bound = row.budget_flops, row.saving.ratio, last / row.budget_flops
        if ratio is None and "lower than" in (row.saving.refusal or "") and bound > 1:
            tops.append(_arrow(ax, at, bound, 1.35))
        elif ratio is not None:
            low, high = row.saving.low or ratio, row.saving.high or ratio
            if row.saving.high is None and row.saving.low is not None:
                tops.append(_arrow(ax, at, ratio, 1.5))
            if row.saving.low is None and row.saving.high is not None:
                tops.append(_arrow(ax, at, ratio, 1 / 1.5))
            ax.errorbar(
                [at],
                [ratio],
                yerr=[[ratio - low], [high - ratio]],
                elinewidth=0.8,
                capsize=2,
                **look,
            )
            tops += [low, high]
    ax.set_ylim(min(0.8, *tops) / 1.2, max(2.0, *tops) * 1.2)
    ax.set_xlabel("training budget C (FLOPs)")
    ax.set_ylabel("FLOPs of fixed / looped at equal loss")
    style.log_axis(ax.xaxis, [row.budget_flops for row in rows])
    style.plain_log_axis(ax.yaxis)


def _arrow(ax: Axes, at: float, start: float, factor: float) -> float:
    """Draw an arrow from `start` to so many times it, for an end that is open; return where it points."""
    look = {"arrowstyle": "->", "color": style.INK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (at, start * factor), (at, start), arrowprops=look)
    return start * factor


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
                r.looped_nats,
                r.fixed_nats,
                r.saving.ratio,
                r.saving.low,
                r.saving.high,
                r.saving.refusal,
            )
            for r in rows
        ]
        heads = ["budget_flops", "looped_nats", "fixed_nats", "flops_ratio", "low", "high", "refusal"]
        tables["savings"] = pd.DataFrame(saved, columns=heads)
    return tables
