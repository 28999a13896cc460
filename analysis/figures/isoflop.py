"""isoFLOP curves: loss against recurrence and against tokens, with fits and optima."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures import marks, style
from analysis.isoflop.curves import AXIS_LABELS, QUANTITY_NAMES, Quantity
from analysis.isoflop.estimator import EstimatorFit
from analysis.isoflop.group import GroupFit
from analysis.stats.noise import NoiseFloor

ESTIMATOR_PROPS: dict[str, dict[str, Any]] = {  # in every figure
    "shared shape": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "parabola": {"color": "#D55E00", "marker": "s", "linestyle": (0, (4, 2))},
    "surface": {"color": "#009E73", "marker": "^", "linestyle": (0, (1, 1.2))},
}


def isoflop_figure(group: GroupFit, noise: NoiseFloor) -> style.ReportFigure:
    """Draw both isoFLOP panels of one group; the fixed control stands apart at the left of the first."""
    with style.styled():
        fig, panels = style.figure(2, height=2.9, sharey=True)
        for ax, quantity, letter in zip(panels, group.quantities, "ab", strict=True):
            plot_isoflop(group, quantity, ax, noise)
            ax.set_title(letter)
        style.share_loss_axis(panels)
        style.legend_outside(fig, 5, _handles(group))
        ends = [(_right_end(group, budget), style.scientific(budget)) for budget in group.budgets_flops]
        marks.end_labels(panels[0], ends, heading="FLOPs")
    control = (group.table["kind"] == "fixed").any()
    caption = (
        f"{group.label}: isoFLOP curves: loss against "
        f"{QUANTITY_NAMES[group.quantities[0]]} (a) and training tokens (b); one colour and marker per "
        "budget. Solid: shared-shape fit with its pointwise interval; dashed: parabola in the variable of "
        "the panel; faint where the minimum was refused. Stars: accepted optima of the shared shape, with "
        "their intervals; an arrowhead marks one that goes on beyond the swept range."
        + (" Open symbols: fixed-depth control, which enters no fit." if control else "")
    )
    return style.ReportFigure(name="isoflop", caption=caption, figure=fig, tables=_tables(group))


def plot_isoflop(
    group: GroupFit, quantity: Quantity, ax: Axes | None = None, noise: NoiseFloor | None = None
) -> Axes:
    """Draw one group's isoFLOP curves over `quantity` on `ax` and return it."""
    if ax is None:
        _, (ax,) = style.figure(1, width=style.COLUMN_INCHES)
    colours, markers = style.budget_colours(group.budgets_flops), style.budget_markers(group.budgets_flops)
    bar = noise.sd_nats if noise and noise.sd_nats else None
    ax.set_xscale("log")
    for k, budget in enumerate(group.budgets_flops):
        props: dict[str, Any] = {"color": colours[budget], "marker": markers[budget], "linestyle": "none"}
        for kind, filled in (("looped", True), ("fixed", False)):
            rows = group.table[(group.table["kind"] == kind) & (group.table["target_flops"] == budget)]
            face: dict[str, Any] = {} if filled else {"markerfacecolor": "white"}
            ax.errorbar(
                rows[quantity],
                rows["val_loss_nats"],
                yerr=bar,
                elinewidth=0.6,
                **props,
                **face,
                markersize=3.4,
                zorder=3,
            )
        for name in ("shared shape", "parabola"):
            _curve(ax, group, group.estimator(name), quantity, k, colours[budget])
    _axes(ax, group, quantity)
    return ax


def _curve(
    ax: Axes, group: GroupFit, estimator: EstimatorFit, quantity: Quantity, k: int, colour: Any
) -> None:
    optimum = estimator.optima[quantity][k]
    if estimator.curve is None or estimator.band is None or not optimum.fitted:
        return
    low, high = optimum.swept
    x = np.geomspace(low, high, 120)
    thin = estimator.name != "shared shape"
    if not thin:
        ax.fill_between(x, *estimator.band(quantity, k, x), color=colour, alpha=0.15, linewidth=0)
    ax.plot(
        x,
        estimator.curve(quantity, k, x),
        color=colour,
        linestyle=ESTIMATOR_PROPS[estimator.name]["linestyle"],
        linewidth=0.7 if thin else 1.1,
        alpha=0.5 if optimum.value is None else 1.0,
    )
    if optimum.value is not None and optimum.loss_nats is not None and not thin:
        ends = (optimum.low, optimum.high)
        marks.whisker(ax, optimum.loss_nats, ends, (low, high), color=style.INK, horizontal=True)
        edge: dict[str, Any] = {"markeredgecolor": style.INK, "markeredgewidth": 0.5}
        ax.plot(
            [optimum.value], [optimum.loss_nats], color=colour, marker="*", markersize=7, **edge, zorder=4
        )


def _axes(ax: Axes, group: GroupFit, quantity: Quantity) -> None:
    ax.set_xlabel(AXIS_LABELS[quantity])
    recurrence = group.cells.variable == "mean_recurrence"
    ax.set_ylabel("validation loss (nats per token)" if recurrence else "loss (unit of the table)")
    if quantity != "mean_recurrence":
        values = group.table[quantity].astype(float)
        style.decade_axis(ax.xaxis, values.min(), values.max())
        return
    depths = sorted(set(group.table["mean_recurrence"].astype(float)))
    fixed = (group.table["kind"] == "fixed").any()
    style.recurrence_axis(ax.xaxis, depths, fixed=bool(fixed))
    if fixed and len(depths) > 1:
        ax.axvline(np.sqrt(depths[0] * depths[1]), color=style.FAINT, linewidth=0.5, linestyle=":")


def _right_end(group: GroupFit, budget: float) -> float:
    """Return the loss at the largest swept value, where the first panel's curve ends."""
    rows = group.table[(group.table["target_flops"] == budget) & (group.table["kind"] == "looped")]
    return float(rows["val_loss_nats"].iloc[int(rows[group.quantities[0]].argmax())])


def _noun(group: GroupFit) -> str:
    return "looped run" if group.cells.variable == "mean_recurrence" else "point"


def _handles(group: GroupFit) -> list[Line2D]:
    base: dict[str, Any] = {"color": style.INK}
    handles = [
        Line2D([], [], **base, marker="o", linestyle="none", markersize=3.4, label=_noun(group)),
        Line2D(
            [], [], **base, linestyle=ESTIMATOR_PROPS["shared shape"]["linestyle"], label="shared-shape fit"
        ),
        Line2D(
            [],
            [],
            **base,
            linestyle=ESTIMATOR_PROPS["parabola"]["linestyle"],
            linewidth=0.7,
            label="parabola",
        ),
    ]
    drawn = group.estimator("shared shape").optima
    if any(optimum.value is not None for optima in drawn.values() for optimum in optima):
        star = Line2D([], [], **base, marker="*", linestyle="none", markersize=7, label="accepted optimum")
        handles.append(star)
    if (group.table["kind"] == "fixed").any():
        handles.append(
            Line2D(
                [],
                [],
                **base,
                marker="o",
                markerfacecolor="white",
                linestyle="none",
                markersize=3.4,
                label="fixed depth",
            )
        )
    return handles


def _tables(group: GroupFit) -> dict[str, pd.DataFrame]:
    names = "run_id kind target_flops mean_recurrence params tokens seed val_loss_nats val_loss_se_nats"
    columns = [name for name in names.split() if name in group.table]
    rows = []
    for estimator in group.estimators:
        for quantity, optima in estimator.optima.items():
            for o in optima:
                rows.append(
                    {
                        "estimator": estimator.name,
                        "quantity": quantity,
                        "budget_flops": o.budget_flops,
                        "optimum": o.value,
                        "low": o.low,
                        "high": o.high,
                        "loss_nats": o.loss_nats,
                        "swept_low": o.swept[0],
                        "swept_high": o.swept[1],
                        "refusal": o.refusal,
                    }
                )
    return {"points": group.table[columns], "optima": pd.DataFrame(rows), "curves": _curve_table(group)}


def _curve_table(group: GroupFit) -> pd.DataFrame:
    rows = []
    for estimator in group.estimators:
        if estimator.curve is None or estimator.band is None:
            continue
        for quantity, optima in estimator.optima.items():
            for k, optimum in enumerate(optima):
                if not optimum.fitted:
                    continue
                x = np.geomspace(*optimum.swept, 40)
                lines = estimator.curve(quantity, k, x), *estimator.band(quantity, k, x)
                for row in zip(x, *lines, strict=True):
                    rows.append((estimator.name, quantity, optimum.budget_flops, *row))
    names = "estimator quantity budget_flops value loss_nats loss_low_nats loss_high_nats"
    return pd.DataFrame(rows, columns=names.split())
