"""Each isoFLOP curve on its own scale, with all estimators: what the minimum rests on, and why one was
refused.
"""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures import style
from analysis.figures.isoflop import ESTIMATOR_PROPS
from analysis.isoflop.curves import AXIS_LABELS
from analysis.isoflop.estimator import DEFAULT_ESTIMATOR
from analysis.isoflop.group import GroupFit
from analysis.stats.noise import NoiseFloor

PER_ROW = 4


def isoflop_by_budget_figure(group: GroupFit, noise: NoiseFloor) -> style.ReportFigure:
    """Draw one panel per budget: loss above the lowest cell over mean recurrence, in nats."""
    budgets = group.budgets_flops
    rows = -(-len(budgets) // PER_ROW)
    columns = -(-len(budgets) // rows)
    with style.styled():
        fig, panels = style.figure(columns, rows=rows, height=0.45 + 1.75 * rows)
        columns = 1 if style.NARROW.get() else columns
        for k, ax in enumerate(panels):
            if k >= len(budgets):
                ax.remove()
                continue
            _panel(ax, group, k, noise, width=112 // max(columns, 2))
            if k + columns >= len(budgets):
                ax.set_xlabel(AXIS_LABELS[group.cells.variable])
        unit = " (nats)" if group.cells.variable == "mean_recurrence" else "\n(unit of the table)"
        for ax in panels[::columns]:
            ax.set_ylabel(f"loss above lowest cell{unit}", fontsize=6.5)
        style.legend_outside(fig, 4, _handles(), side="upper")
    caption = (
        f"{group.label}: each isoFLOP curve on its own scale, relative to its lowest cell"
        + (", with the training noise as bars" if noise.sd_nats else "; training noise unknown")
        + ". Triangles mark accepted minima in the estimator's colour; above a panel stands why that of the "
        "shared shape was refused."
    )
    return style.ReportFigure(
        name="isoflop_by_budget", caption=caption, figure=fig, tables={"points": _table(group)}
    )


def _panel(ax: Axes, group: GroupFit, k: int, noise: NoiseFloor, width: int) -> None:
    at = group.cells.budget == k
    depth, loss = group.cells.values[at], group.cells.loss_nats[at]
    lowest = loss.min()
    ax.set_xscale("log")
    ax.errorbar(
        depth,
        loss - lowest,
        yerr=noise.sd_nats,
        linestyle="none",
        marker="o",
        markersize=3,
        color=style.INK,
        elinewidth=0.6,
        zorder=3,
    )
    x = np.geomspace(depth.min(), depth.max(), 100)
    for place, estimator in enumerate(group.estimators):
        optimum, props = estimator.optima[group.cells.variable][k], ESTIMATOR_PROPS[estimator.name]
        if estimator.curve is None or not optimum.fitted:
            continue
        curve = estimator.curve(group.cells.variable, k, x) - lowest
        ax.plot(x, curve, color=props["color"], linestyle=props["linestyle"], linewidth=0.9)
        if optimum.value is not None:
            ax.plot(
                [optimum.value],
                [0.07 * place],  # one above the other where they agree
                transform=ax.get_xaxis_transform(),
                marker="^",
                markersize=5,
                clip_on=False,
                color=props["color"],
                markeredgecolor="white",
                markeredgewidth=0.4,
                zorder=5,
            )
    title = f"{style.scientific(group.budgets_flops[k])} FLOPs"
    refusal = group.estimator().optima[group.cells.variable][k].refusal
    if refusal:
        title += "\n" + "\n".join(textwrap.wrap(f"{DEFAULT_ESTIMATOR}: {refusal.split(' (')[0]}", width))
    ax.set_title(title, fontsize=6)
    if group.cells.variable == "mean_recurrence":
        style.recurrence_axis(ax.xaxis, depth.tolist(), room=0.12)
    else:
        style.decade_axis(ax.xaxis, depth.min(), depth.max(), room=0.4)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.margins(y=0.12)


def _handles() -> list[Line2D]:
    handles = [
        Line2D([], [], color=style.INK, marker="o", markersize=3, linestyle="none", label="run"),
    ]
    for name, props in ESTIMATOR_PROPS.items():
        line = {key: props[key] for key in ("color", "linestyle")}
        handles.append(Line2D([], [], **line, linewidth=0.9, label=name))
    return handles


def _table(group: GroupFit) -> pd.DataFrame:
    rows, variable = [], group.cells.variable
    for k, budget in enumerate(group.budgets_flops):
        at = group.cells.budget == k
        depth, loss = group.cells.values[at], group.cells.loss_nats[at]
        fits = {
            e.name.replace(" ", "_"): e.curve(variable, k, depth)
            for e in group.estimators
            if e.curve is not None and e.optima[variable][k].fitted
        }
        for i in range(len(depth)):
            row = {"budget_flops": budget, variable: depth[i], "loss_nats": loss[i]}
            rows.append({**row, **{f"{name}_nats": values[i] for name, values in fits.items()}})
    return pd.DataFrame(rows)
