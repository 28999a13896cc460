"""isoFLOP curves as a chart in the page: points name their runs, and the estimator can be chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import budget_colours, round_numbers, scientific, thinned
from analysis.format import number
from analysis.isoflop.curves import AXIS_LABELS, Quantity
from analysis.isoflop.estimator import EstimatorFit
from analysis.isoflop.group import GroupFit

WIDTH, HEIGHT = 380, 320  # of a panel, in the units of the SVG: about pixels on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 370, 22, 276  # of its axes
CURVE_POINTS = 60
LABEL_ROOM = 0.13  # of the axis, for the label of a tick


@dataclass(frozen=True)
class Axes:
    """Logarithmic x and linear y of one panel."""

    x_ends: tuple[float, float]
    y_ends: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the coordinates of a point in the SVG."""
        (left, right), (low, high) = np.log(self.x_ends), self.y_ends
        across = (math.log(x) - left) / (right - left)
        up = (y - low) / (high - low)
        return round(LEFT + across * (RIGHT - LEFT), 1), round(BOTTOM - up * (BOTTOM - TOP), 1)


def chart(group: GroupFit, unit: str) -> dict[str, Any]:
    """Return what the template needs to draw both panels of a group; losses are in `unit`."""
    colours = {budget: to_hex(colour) for budget, colour in budget_colours(group.budgets_flops).items()}
    return {
        "label": group.label,
        "loss": f"validation loss ({unit})",
        "estimators": [estimator.name for estimator in group.estimators],
        "panels": [_panel(group, quantity, colours, unit) for quantity in group.quantities],
        "key": [(colours[budget], f"{number(budget)} FLOPs") for budget in group.budgets_flops],
        "has_control": bool((group.table["kind"] == "fixed").any()),
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": RIGHT,
        "bottom": BOTTOM,
    }


def _panel(group: GroupFit, quantity: Quantity, colours: dict[float, str], unit: str) -> dict[str, Any]:
    rows = group.table[group.table["target_flops"].isin(group.budgets_flops)]
    values, losses = rows[quantity].astype(float), rows["val_loss_nats"].astype(float)
    x_ends = (values.min() / 1.1, values.max() * 1.1)
    room = 0.06 * (losses.max() - losses.min()) or 0.01
    axes = Axes(x_ends, (losses.min() - room, losses.max() + room))
    swept = quantity != "tokens" and values.nunique() <= 12
    ticks = sorted(set(values)) if swept else round_numbers(*x_ends)
    places = thinned(ticks, LABEL_ROOM / (1 if swept else 0.6) * math.log(x_ends[1] / x_ends[0]))
    heights = [
        y
        for y in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(*axes.y_ends)
        if axes.y_ends[0] <= y <= axes.y_ends[1]
    ]
    return {
        "heading": AXIS_LABELS[quantity],
        "x_ticks": [(axes.place(x, losses.min())[0], f"{x:g}" if swept else scientific(x)) for x in places],
        "y_ticks": [(axes.place(values.min(), y)[1], f"{y:.4g}") for y in heights],
        "points": [_point(run, quantity, axes, colours, unit) for _, run in rows.iterrows()],
        "estimators": [
            {
                "name": estimator.name,
                "curves": _curves(estimator, quantity, axes, colours),
                "optima": _optima(estimator, quantity, axes, colours, unit),
            }
            for estimator in group.estimators
        ],
    }


def _point(
    run: pd.Series[Any], quantity: Quantity, axes: Axes, colours: dict[float, str], unit: str
) -> dict[str, Any]:
    x, y = axes.place(float(run[quantity]), float(run["val_loss_nats"]))
    named = (
        ("run_id", "{}"),
        ("mean_recurrence", "µ = {:g}"),
        ("params", "N = {:.4g}"),
        ("tokens", "D = {:.4g}"),
    )
    shown = [form.format(run[name]) for name, form in named if name in run.index and not pd.isna(run[name])]
    seed = [f"seed {run['seed']:g}"] if "seed" in run.index and not pd.isna(run["seed"]) else []
    loss = f"loss {run['val_loss_nats']:.4f} {unit}"
    return {
        "x": x,
        "y": y,
        "colour": colours[run["target_flops"]],
        "filled": run["kind"] != "fixed",
        "about": ", ".join([*shown, f"C = {number(run['target_flops'])}", loss, *seed]),
    }


def _curves(
    estimator: EstimatorFit, quantity: Quantity, axes: Axes, colours: dict[float, str]
) -> list[dict[str, Any]]:
    if estimator.curve is None:
        return []
    curves = []
    for place, optimum in enumerate(estimator.optima[quantity]):
        if optimum.fitted:
            x = np.geomspace(*optimum.swept, CURVE_POINTS)
            y = np.clip(estimator.curve(quantity, place, x), *axes.y_ends)
            points = (axes.place(*pair) for pair in zip(x.tolist(), y.tolist(), strict=True))
            curves.append(
                {
                    "points": " ".join(f"{across},{down}" for across, down in points),
                    "colour": colours[optimum.budget_flops],
                    "accepted": optimum.value is not None,
                }
            )
    return curves


def _optima(
    estimator: EstimatorFit, quantity: Quantity, axes: Axes, colours: dict[float, str], unit: str
) -> Sequence[dict[str, Any]]:
    accepted = [one for one in estimator.optima.get(quantity, ()) if one.value and one.loss_nats]
    marks = []
    for optimum in accepted:
        assert optimum.value is not None and optimum.loss_nats is not None
        x, y = axes.place(optimum.value, min(max(optimum.loss_nats, axes.y_ends[0]), axes.y_ends[1]))
        about = f"{optimum.summary(quantity)}, at {number(optimum.budget_flops)} FLOPs by {estimator.name}"
        colour = colours[optimum.budget_flops]
        marks.append({"x": x, "y": y, "colour": colour, "about": about.replace(" nats", f" {unit}")})
    return marks
