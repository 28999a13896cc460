"""Laws over device-hours: seconds per token over the recurrence, optimal recurrence and tokens over hours."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures import marks, style
from analysis.figures.isoflop import ESTIMATOR_PROPS
from analysis.figures.power_law import LABELS
from analysis.format import percent
from analysis.isoflop.curves import Quantity
from analysis.study.device_hours import DeviceHoursFit, HoursGroup, HoursLaw

PROPS = ESTIMATOR_PROPS["surface"]
MICRO = 1e6


def device_hours_figures(fit: DeviceHoursFit) -> list[style.ReportFigure]:
    """Draw one figure per group that has laws over device-hours."""
    shown = [group for group in fit.groups if group.seconds and not group.refusal]
    return [
        _figure(group, fit.config.confidence, f"_{k + 1}" if len(shown) > 1 else "")
        for k, group in enumerate(shown)
    ]


def plot_device_hours(fit: DeviceHoursFit, ax: Axes | None = None) -> Axes:
    """Draw the optimal recurrence of the first group with laws over device-hours (see `analysis.plot`)."""
    shown = [group for group in fit.groups if group.seconds and not group.refusal]
    if not shown:
        raise ValueError(f"nothing to draw: {fit.headline()}")
    quantity, law = next(iter(shown[0].laws.items()))
    table = _laws_table(shown[0])
    with style.styled():
        ax = style.figure(1, height=2.5)[1][0] if ax is None else ax
        _law_panel(ax, quantity, law, table[table["quantity"] == quantity])
    return ax


def _figure(group: HoursGroup, confidence: float, suffix: str) -> style.ReportFigure:
    seconds, laws = _seconds_table(group), _laws_table(group)
    with style.styled():
        fig, panels = style.figure(3, height=2.5)
        _seconds_panel(panels[0], group, seconds)
        for ax, (quantity, law) in zip(panels[1:], group.laws.items(), strict=True):
            _law_panel(ax, quantity, law, laws[laws["quantity"] == quantity])
        for ax, title in zip(panels, "abc", strict=True):
            ax.set_title(title)
    caption = (
        f"{group.label}: device-seconds of training per token, without the overhead of a run, with their fit "
        "(a); recurrence (b) and tokens (c) of least loss at equal device-hours by the surface, with "
        f"{percent(confidence)} intervals and the power law where there is one. An arrowhead marks an "
        "interval that goes on beyond the panel."
    )
    tables = {"seconds": seconds, "optima": laws}
    return style.ReportFigure(name=f"device_hours{suffix}", caption=caption, figure=fig, tables=tables)


def _seconds_panel(ax: Axes, group: HoursGroup, table: pd.DataFrame) -> None:
    assert group.seconds
    depth = table["mean_recurrence"].to_numpy(float)
    fine = np.linspace(0, 1.05 * depth.max(), 2)
    ax.plot(depth, table["us_per_token"], marker="o", linestyle="none", markersize=3, color=style.INK)
    ax.plot(fine, MICRO * group.seconds.per_token(fine), color=PROPS["color"])
    ax.set_xlim(0, 1.05 * depth.max())
    ax.set_ylim(0, 1.1 * max(table["us_per_token"].max(), MICRO * float(group.seconds.per_token(fine[-1]))))
    ax.set_xlabel("mean recurrence µ (loops)")
    ax.set_ylabel("device time per token (µs)")


def _law_panel(ax: Axes, quantity: Quantity, law: HoursLaw, table: pd.DataFrame) -> None:
    hours = np.array([one.hours for one in law.optima])
    known = table.dropna(subset="value")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(hours.min() / 1.4, hours.max() * 1.4)
    ax.set_xlabel("budget of a run (device-hours)")
    ax.set_ylabel(LABELS[quantity])
    style.plain_log_axis(ax.xaxis)
    if known.empty:
        ax.set_yticks([])
        ax.text(0.5, 0.5, "no accepted optimum", transform=ax.transAxes, ha="center", color=style.FAINT)
        return
    low, high = known["value"].min() / 1.6, known["value"].max() * 1.6
    ax.set_ylim(low, high)
    style.decade_axis(ax.yaxis, low, high) if quantity == "tokens" else style.plain_log_axis(ax.yaxis)
    for place, *ends in known[["hours", "low", "high"]].to_numpy(float):
        shown = [None if np.isnan(end) else float(end) for end in ends]
        marks.whisker(ax, float(place), shown, (low, high), color=PROPS["color"])
    ax.plot(known["hours"], known["value"], **{**PROPS, "linestyle": "none", "markersize": 3.6})
    if law.exponent is not None:
        fine = np.geomspace(hours.min() / 1.3, hours.max() * 1.3, 60)
        ax.plot(fine, law.predict(fine), color=PROPS["color"], linewidth=1.0)


def _seconds_table(group: HoursGroup) -> pd.DataFrame:
    assert group.seconds
    spent = group.timed["seconds"] - group.seconds.overhead_s
    return group.timed.assign(us_per_token=MICRO * spent / group.timed["tokens"])


def _laws_table(group: HoursGroup) -> pd.DataFrame:
    rows = [
        (quantity, one.hours, one.value, one.low, one.high, one.refusal or "")
        for quantity, law in group.laws.items()
        for one in law.optima
    ]
    columns = ["quantity", "hours", "value", "low", "high", "refusal"]
    return pd.DataFrame(rows, columns=columns).astype({"value": float, "low": float, "high": float})
