"""Compute-optimal recurrence and tokens over the budget, with bands, or in words why there is no law."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures import marks, style
from analysis.figures.isoflop import ESTIMATOR_PROPS
from analysis.format import percent
from analysis.isoflop.curves import QUANTITY_NAMES, Optimum, Quantity
from analysis.isoflop.estimator import EstimatorFit
from analysis.isoflop.group import GroupFit

LABELS: dict[Quantity, str] = {
    "mean_recurrence": "optimal mean recurrence µ* (loops)",
    "params": "optimal parameters N*",
    "tokens": "optimal tokens D*",
}
OFFSETS = {"shared shape": 1.0, "parabola": 0.94, "surface": 1.06}  # keeps error bars of one budget apart


def power_law_figure(group: GroupFit, confidence: float) -> style.ReportFigure:
    """Draw the optima of all estimators and the power laws through them; refused optima point out of the
    range.
    """
    with style.styled():
        fig, panels = style.figure(2, height=3.0)
        for ax, quantity, title in zip(panels, group.quantities, "ab", strict=True):
            _panel(ax, group, quantity, confidence)
            ax.annotate(title, (-0.02, 1.02), xycoords="axes fraction", ha="right", va="bottom", fontsize=7.5)
    caption = (
        f"{group.label}: compute-optimal {QUANTITY_NAMES[group.quantities[0]]} (a) and "
        f"tokens (b) over the budget, by estimator, with {percent(confidence)} intervals; the band is that "
        "of the shared-shape law. Grey: the swept range; an arrow marks a budget whose minimum lies outside "
        "it, an arrowhead an interval that goes on beyond the panel. Without a law the legend counts the "
        "minima: accepted, below or above the swept range, refused for another reason."
    )
    return style.ReportFigure(
        name="power_laws", caption=caption, figure=fig, tables=_tables(group, confidence)
    )


def _panel(ax: Axes, group: GroupFit, quantity: Quantity, confidence: float) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    budgets = np.array(group.budgets_flops)
    wide = np.concatenate([[budgets[0] / 1.4], budgets, [budgets[-1] * 1.4]])
    ends = np.array([group.cells.swept(quantity, k) for k in range(len(budgets))]).T
    low, high = (np.interp(np.log(wide), np.log(budgets), end) for end in ends)
    bottom, top = ends.min(), ends.max()
    margin = max((top / bottom) ** 0.18, 1.05)  # of one swept value, too
    ax.set_xlim(wide[0], wide[-1])
    ax.set_ylim(bottom / margin, top * margin)
    ax.fill_between(wide, low, high, color="#eeeeee", linewidth=0, zorder=0, label="swept range")
    for estimator in group.estimators:
        _optima(ax, estimator, quantity)
        _arrows(ax, estimator, quantity, reach=margin**0.45)
        _line(ax, estimator, quantity, budgets, confidence)
    ax.set_xlabel("training budget C (FLOPs)")
    ax.set_ylabel(LABELS[quantity])
    style.log_axis(ax.xaxis, budgets.tolist())
    if quantity != "mean_recurrence":
        style.decade_axis(ax.yaxis, bottom / margin, top * margin)
    else:
        style.recurrence_axis(ax.yaxis, group.swept)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
    ax.legend(**place, handlelength=1.2, labelspacing=0.3, fontsize=6)


def _optima(ax: Axes, estimator: EstimatorFit, quantity: Quantity) -> None:
    props = ESTIMATOR_PROPS[estimator.name]
    accepted = [o for o in estimator.optima[quantity] if o.value is not None]
    places = [o.budget_flops * OFFSETS[estimator.name] for o in accepted]
    for place, o in zip(places, accepted, strict=True):
        marks.whisker(ax, place, (o.low, o.high), ax.get_ylim(), color=props["color"])
    values: Any = [o.value for o in accepted]
    line = {**props, "linestyle": "none", "markersize": 3.6}
    ax.plot(places, values, **line, label=_label(estimator, quantity), zorder=3)


def _arrows(ax: Axes, estimator: EstimatorFit, quantity: Quantity, reach: float) -> None:
    """Point out of the swept range where the minimum of a budget lies outside it."""
    for o in estimator.optima[quantity]:
        side = _outside(o)
        if side is None:
            continue
        edge = o.swept[1] if side == "above" else o.swept[0]
        tip = edge * reach if side == "above" else edge / reach
        place = o.budget_flops * OFFSETS[estimator.name]
        marks.arrow(ax, place, edge, tip, ESTIMATOR_PROPS[estimator.name]["color"])


def _label(estimator: EstimatorFit, quantity: Quantity) -> str:
    """Return the legend's words: the exponent with its interval, or what became of the minima."""
    law = estimator.laws[quantity]
    if law.exponent is None:
        return "\n".join(textwrap.wrap(f"{estimator.name}: no law ({_minima(estimator, quantity)})", 56))
    low, high = ("open" if end is None else f"{end:.2f}" for end in (law.exponent_low, law.exponent_high))
    return f"{estimator.name}: exponent {law.exponent:.2f} [{low}, {high}]"


def _minima(estimator: EstimatorFit, quantity: Quantity) -> str:
    """Count the budgets by what became of their minima."""
    optima = estimator.optima[quantity]
    ends = Counter(_outside(o) or ("refused" if o.value is None else "accepted") for o in optima)
    shown = [f"{ends[end]} {end}" for end in ("accepted", "below", "above", "refused") if ends[end]]
    return ", ".join(shown)


def _outside(optimum: Optimum) -> str | None:
    reason = optimum.refusal or ""
    return "above" if "above the swept" in reason else "below" if "below the swept" in reason else None


def _line(ax: Axes, estimator: EstimatorFit, quantity: Quantity, budgets: Any, confidence: float) -> None:
    law, props = estimator.laws[quantity], ESTIMATOR_PROPS[estimator.name]
    if law.exponent is None:
        return
    x = np.geomspace(budgets[0] / 1.3, budgets[-1] * 1.3, 60)
    ax.plot(x, law.predict(x), color=props["color"], linestyle=props["linestyle"], linewidth=1.0)
    if estimator.name == "shared shape":
        ax.fill_between(x, *law.band(x, confidence), color=props["color"], alpha=0.15, linewidth=0)


def _tables(group: GroupFit, confidence: float) -> dict[str, pd.DataFrame]:
    laws, bands = [], []
    for estimator in group.estimators:
        for law in estimator.laws.values():
            laws.append(
                {
                    "estimator": estimator.name,
                    "quantity": law.quantity,
                    "exponent": law.exponent,
                    "exponent_low": law.exponent_low,
                    "exponent_high": law.exponent_high,
                    "coefficient": law.coefficient,
                    "reference_flops": law.reference_flops,
                    "budgets": len(law.budgets_flops),
                    "refusal": law.refusal,
                }
            )
            if law.exponent is not None:
                x = np.geomspace(group.budgets_flops[0], group.budgets_flops[-1], 25)
                low, high = law.band(x, confidence)
                for row in zip(x, law.predict(x), low, high, strict=True):
                    bands.append((estimator.name, law.quantity, *row))
    columns = ["estimator", "quantity", "flops", "value", "low", "high"]
    return {"laws": pd.DataFrame(laws), "bands": pd.DataFrame(bands, columns=columns)}
