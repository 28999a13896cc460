"""Depth curves: loss over test-time depth with the saturating exponential, and its rate over mean
recurrence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures import style
from analysis.format import percent
from analysis.study.depth import DepthCurve
from analysis.study.study import StudyFit


def depth_figure(study: StudyFit) -> style.ReportFigure | None:
    """Draw the curves of the largest budget, all curves on the scaled axis T/mu, and z over mu.

    Groups share the panels, each with its marker; the first shows one of them.
    """
    curves = study.depth.curves
    if not curves:
        return None
    markers = dict(zip(sorted({_group(c) for c in curves}), style.MARKERS, strict=False))
    points = {str(run_id): frame for run_id, frame in study.depths.groupby("run_id")}
    colours = style.recurrence_colours([c.mean_recurrence for c in curves])
    with style.styled():
        fig, panels = style.figure(3, height=2.5)
        shown = _largest_budget(curves)
        _raw(panels[0], shown, points, colours, markers, study.config.confidence)
        _collapsed(panels[1], study.depth.fitted, points, colours, markers)
        _rates(panels[2], study, colours, markers)
        for ax, letter in zip(panels, "abc", strict=True):
            ax.set_title(letter)
        handles = [Line2D([], [], color=colour, label=f"µ = {depth:g}") for depth, colour in colours.items()]
        if len(markers) > 1:
            base: dict[str, Any] = {"color": style.INK, "linestyle": "none", "markersize": 3}
            handles += [Line2D([], [], **base, marker=m, label=name) for name, m in markers.items()]
        style.legend_outside(fig, min(8, len(handles)), handles)
    slope = study.depth.slope
    caption = (
        f"Test-time depth. (a) {_group(shown[0])}: validation loss over the number of loops T at the largest "
        "budget, with the fitted L(T) = L_inf + Z exp(-z T) and its "
        f"{percent(study.config.confidence)} band, from the scatter around the curve alone; points without a "
        "line: a fit that was refused. "
        "(b) Distance to the fitted floor over T/µ for every fitted curve: one line if z µ is constant. "
        "(c) Rate z over mean recurrence, one point per run with its interval"
        + ("." if slope is None else ", the fitted slope and, dashed, a constant z µ.")
    )
    return style.ReportFigure(name="depth_curves", caption=caption, figure=fig, tables=_tables(study))


def _group(curve: DepthCurve) -> str:
    return f"{curve.scale}, {curve.accounting} FLOPs"


def _largest_budget(curves: Sequence[DepthCurve]) -> list[DepthCurve]:
    """Return one curve per recurrence: those of the largest budget, of one group and of the first seed."""
    largest = max(curves, key=lambda c: c.target_flops or 0.0)
    selected = largest.target_flops, _group(largest)
    at = [c for c in curves if (c.target_flops, _group(c)) == selected]
    return list({c.mean_recurrence: c for c in reversed(at)}.values())[::-1]


def _raw(
    ax: Axes,
    curves: Sequence[DepthCurve],
    points: dict[str, pd.DataFrame],
    colours: dict[float, Any],
    markers: dict[str, str],
    confidence: float,
) -> None:
    for curve in curves:
        frame, colour = points[curve.run_id], colours[curve.mean_recurrence]
        props: dict[str, Any] = {"marker": markers[_group(curve)], "markersize": 2.6, "linestyle": "none"}
        ax.plot(frame["depth"], frame["val_loss_nats"], **props, color=colour)
        if curve.fit.refusal is None:
            x = _fine(frame)
            ax.plot(x, curve.fit.predict(x), color=colour, linewidth=0.9)
            ax.fill_between(x, *curve.fit.interval(x, confidence), color=colour, alpha=0.2, linewidth=0)
    ax.set_xlabel("test-time depth T (loops)")
    ax.set_ylabel("validation loss (nats per token)")


def _fine(frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.linspace(frame["depth"].min(), frame["depth"].max(), 200)


def _collapsed(
    ax: Axes,
    curves: Sequence[DepthCurve],
    points: dict[str, pd.DataFrame],
    colours: dict[float, Any],
    markers: dict[str, str],
) -> None:
    ax.set_yscale("log")
    for curve in curves:
        frame = points[curve.run_id]
        gap = frame["val_loss_nats"].to_numpy(float) - (curve.fit.floor_nats or 0.0)
        # Past the first point within the residual scatter of the floor, a log axis shows noise.
        reach = int(np.argmax(np.append(gap <= 3 * (curve.fit.rms_nats or 0.0), True)))
        x = frame["depth"].to_numpy(float) / curve.mean_recurrence
        props: dict[str, Any] = {"marker": markers[_group(curve)], "markersize": 2.0, "linewidth": 0.5}
        ax.plot(x[:reach], gap[:reach], **props, color=colours[curve.mean_recurrence])
    ax.set_xlabel("T / µ")
    ax.set_ylabel("L(T) − L∞ (nats per token)")
    if not curves:
        _nothing(ax, "no curve identifies z")


def _rates(ax: Axes, study: StudyFit, colours: dict[float, Any], markers: dict[str, str]) -> None:
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
            marker=markers[_group(curve)],
            markersize=2.8,
            elinewidth=0.6,
            color=colours[curve.mean_recurrence],
        )
    depths = sorted(colours)
    x = np.geomspace(depths[0], depths[-1], 50)
    middle = np.exp(np.mean([np.log(c.mean_recurrence) for c in fitted]))
    level = np.exp(np.mean([np.log(c.fit.rate or 1.0) for c in fitted]))
    ax.plot(x, level * middle / x, color=style.FAINT, linewidth=0.8, linestyle="--", label="z µ constant")
    slope, low, high = study.depth.slope, study.depth.slope_low, study.depth.slope_high
    if slope is not None and low is not None and high is not None:
        label = f"exponent {slope:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")
        ax.plot(x, level * (x / middle) ** slope, color=style.INK, linewidth=0.8, label=label)
    ax.legend(loc="lower right", bbox_to_anchor=(1.02, 0.98), borderaxespad=0.1, handlelength=1.4, fontsize=6)
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
    selected = {c.run_id for c in study.depth.curves}
    points = study.depths[study.depths["run_id"].isin(selected)]
    tables = {"points": points, "fits": pd.DataFrame(rows)}
    shown = [c for c in _largest_budget(study.depth.curves) if c.fit.refusal is None]
    if shown:
        tables["curves"] = pd.concat([_line(c, points, study.config.confidence) for c in shown])
    return tables


def _line(curve: DepthCurve, points: pd.DataFrame, confidence: float) -> pd.DataFrame:
    depth = _fine(points[points["run_id"] == curve.run_id])
    low, high = curve.fit.interval(depth, confidence)
    columns = {"depth": depth, "loss_nats": curve.fit.predict(depth), "low": low, "high": high}
    return pd.DataFrame({"run_id": curve.run_id} | columns)
