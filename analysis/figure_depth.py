"""Depth curves: loss over test-time depth with the saturating exponential, and its rate over mean
recurrence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.depth import DepthCurve
from analysis.study import StudyFit


def depth_figure(study: StudyFit) -> style.Drawn | None:
    """Draw the curves of the largest budget, all curves on the scaled axis T/mu, and z over mu."""
    curves = study.depth.curves
    if not curves:
        return None
    points = {str(run_id): frame for run_id, frame in study.depths.groupby("run_id")}
    colours = style.recurrence_colours([c.mean_recurrence for c in curves])
    with style.styled():
        made, panels = style.figure(3, height=2.5)
        shown = _largest_budget(curves)
        _raw(panels[0], shown, points, colours)
        _collapsed(panels[1], study.depth.fitted, points, colours)
        _rates(panels[2], study, colours)
        for ax, letter in zip(panels, "abc", strict=True):
            ax.set_title(letter)
        handles = [
            panels[0].plot(
                [], [], marker="o", markersize=3, linewidth=1, color=colour, label=f"µ = {depth:g}"
            )[0]
            for depth, colour in colours.items()
        ]
        made.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)))
    caption = (
        "Test-time depth. (a) Validation loss over the number of loops T at the largest budget, with the "
        "fitted L(T) = L_inf + Z exp(-z T). (b) Distance to the fitted floor over T/µ for every fitted "
        "curve: one line if z µ is constant. (c) Rate z over mean recurrence, one point per run with its "
        "interval, the fitted slope and, dashed, a constant z µ."
    )
    return style.Drawn(name="depth_curves", caption=caption, figure=made, tables=_tables(study))


def _largest_budget(curves: Sequence[DepthCurve]) -> list[DepthCurve]:
    """Return one curve per recurrence: those of the largest budget, and of the first seed."""
    budgets = [c.target_flops for c in curves if c.target_flops is not None]
    at = [c for c in curves if c.target_flops == max(budgets)] if budgets else list(curves)
    return list({c.mean_recurrence: c for c in reversed(at)}.values())[::-1]


def _raw(
    ax: Axes, curves: Sequence[DepthCurve], points: dict[str, pd.DataFrame], colours: dict[float, Any]
) -> None:
    for curve in curves:
        frame, colour = points[curve.run_id], colours[curve.mean_recurrence]
        ax.plot(
            frame["depth"], frame["val_loss_nats"], marker="o", markersize=2.6, linestyle="none", color=colour
        )
        if curve.fit.refusal is None:
            x = np.linspace(frame["depth"].min(), frame["depth"].max(), 200)
            ax.plot(x, curve.fit.predict(x), color=colour, linewidth=0.9)
    ax.set_xlabel("test-time depth T (loops)")
    ax.set_ylabel("validation loss (nats per token)")


def _collapsed(
    ax: Axes, curves: Sequence[DepthCurve], points: dict[str, pd.DataFrame], colours: dict[float, Any]
) -> None:
    ax.set_yscale("log")
    for curve in curves:
        frame = points[curve.run_id]
        gap = frame["val_loss_nats"].to_numpy(float) - (curve.fit.floor_nats or 0.0)
        # Past the first point within the residual scatter of the floor, a log axis shows noise.
        reach = int(np.argmax(np.append(gap <= 3 * (curve.fit.rms_nats or 0.0), True)))
        x = frame["depth"].to_numpy(float) / curve.mean_recurrence
        ax.plot(
            x[:reach],
            gap[:reach],
            marker="o",
            markersize=2.0,
            linewidth=0.5,
            color=colours[curve.mean_recurrence],
        )
    ax.set_xlabel("T / µ")
    ax.set_ylabel("L(T) − L∞ (nats per token)")
    if not curves:
        _nothing(ax, "no curve identifies z")


def _rates(ax: Axes, study: StudyFit, colours: dict[float, Any]) -> None:
    fitted = study.depth.fitted
    ax.set_xlabel("mean recurrence µ (loops)")
    ax.set_ylabel("rate z (per loop)")
    if not fitted:
        _nothing(ax, "no curve identifies z")
        return
    ax.set_xscale("log")
    ax.set_yscale("log")
    for curve in fitted:
        rate, low, high = curve.fit.rate or 0.0, curve.fit.rate_low, curve.fit.rate_high
        ends = [[rate - (low or rate)], [(high or rate) - rate]]
        ax.errorbar(
            [curve.mean_recurrence],
            [rate],
            yerr=ends,
            marker="o",
            markersize=2.8,
            elinewidth=0.6,
            color=colours[curve.mean_recurrence],
        )
    depths = sorted(colours)
    x = np.geomspace(depths[0], depths[-1], 50)
    middle = np.exp(np.mean([np.log(c.mean_recurrence) for c in fitted]))
    level = np.exp(np.mean([np.log(c.fit.rate or 1.0) for c in fitted]))
    ax.plot(x, level * middle / x, color=style.FAINT, linewidth=0.8, linestyle="--", label="z µ constant")
    slope = study.depth.slope
    if slope is not None:
        label = rf"z ∝ µ$^{{{slope:.2f}}}$"
        ax.plot(x, level * (x / middle) ** slope, color=style.INK, linewidth=0.8, label=label)
    ax.legend(loc="lower left", bbox_to_anchor=(0.1, 1.0), borderaxespad=0.1, ncols=2, handlelength=1.4)
    style.recurrence_axis(ax.xaxis, depths, room=0.1)
    style.plain_log_axis(ax.yaxis)


def _nothing(ax: Axes, text: str) -> None:
    ax.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color=style.WARN)


def _tables(study: StudyFit) -> dict[str, pd.DataFrame]:
    rows = []
    for c in study.depth.curves:
        fit = c.fit
        rows.append(
            {
                "run_id": c.run_id,
                "mean_recurrence": c.mean_recurrence,
                "target_flops": c.target_flops,
                "floor_nats": fit.floor_nats,
                "amplitude_nats": fit.amplitude_nats,
                "rate": fit.rate,
                "rate_low": fit.rate_low,
                "rate_high": fit.rate_high,
                "rms_nats": fit.rms_nats,
                "refusal": fit.refusal,
            }
        )
    wanted = {c.run_id for c in study.depth.curves}
    return {"points": study.depths[study.depths["run_id"].isin(wanted)], "fits": pd.DataFrame(rows)}
