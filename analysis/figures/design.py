"""What a planned study would resolve: optima per budget and the spread of the exponent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.design.power import PowerAnalysis
from analysis.figures import marks, style
from analysis.format import percent
from analysis.isoflop.estimator import DEFAULT_ESTIMATOR

COLOURS = ("#2166ac", "#b35806", "#1b7837", "#762a83", "#8c510a", "#01665e")
DASHES = (0, (3, 2))
OUT = 1.15  # how far an arrow points out of the swept range


def design_figure(results: Sequence[PowerAnalysis], labels: Sequence[str] = ()) -> style.ReportFigure:
    """Draw optima per budget with the central 95 % of the estimates, and the exponents of all studies.

    `results` are laws of one grid, or grids under one law, named by `labels`.
    """
    names = list(labels) or [f"law {k + 1}" for k in range(len(results))]
    with style.styled():
        fig, (left, right) = style.figure(2, width=style.PAGE_INCHES, height=3.0)
        edges = _edges(results)
        for place, result in enumerate(results):
            _optima(left, result, COLOURS[place % len(COLOURS)], place - (len(results) - 1) / 2)
            _exponents(right, result, edges, COLOURS[place % len(COLOURS)], names[place])
        left.set_title("a")
        right.set_title("b")
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xlabel("training budget C (FLOPs)")
        left.set_ylabel("optimal mean recurrence µ* (loops)")
        left.margins(x=0.1, y=0.08)
        budgets = sorted({item.budget_flops for result in results for item in result.outlooks})
        depths = sorted({float(mu) for result in results for mu in result.grid.cells.values})
        style.log_axis(left.xaxis, budgets)
        style.recurrence_axis(left.yaxis, depths)
        right.set_xlabel("exponent of µ* over C")
        right.set_ylabel("share of the studies (%)")
        right.set_ylim(bottom=0)
        handles = [*_handles(), *right.get_legend_handles_labels()[0]]
        style.legend_outside(fig, 3, handles)
    return style.ReportFigure(
        name="design", caption=_caption(results), figure=fig, tables=_tables(results, names)
    )


def _optima(ax: Axes, result: PowerAnalysis, colour: Any, shift: float) -> None:
    cells, aside = result.grid.cells, 1.06**shift
    flops = cells.budgets_flops[cells.budget]
    ax.plot(
        flops * aside, cells.values, marker=".", markersize=2, linestyle="none", color=style.FAINT, zorder=1
    )
    true = []
    for item in result.outlooks:
        at, swept = item.budget_flops * aside, (item.swept_low, item.swept_high)
        marks.whisker(ax, at, (item.low, item.high), swept, color=colour, width=1.2)
        if swept[0] <= item.true <= swept[1]:
            true.append((at, item.true))
        elif item.true > swept[1]:
            marks.arrow(ax, at, swept[1], swept[1] * OUT, colour)
        else:
            marks.arrow(ax, at, swept[0], swept[0] / OUT, colour)
    if true:
        ax.plot(*zip(*true, strict=True), marker="D", markersize=3.2, linewidth=0.8, color=colour, zorder=3)


def _handles() -> list[Line2D]:
    handles: dict[str, dict[str, Any]] = {
        "true optimum": {"marker": "D", "markersize": 3.2},
        "central 95 % of the estimates": {"marker": "_", "markersize": 2.8, "linewidth": 1.2},
        "cell of the grid": {"marker": ".", "markersize": 2, "linestyle": "none", "color": style.FAINT},
        "true exponent": {"linestyle": DASHES, "linewidth": 0.7},
        "median 95 % interval of an analysis": {"marker": "|", "markersize": 5},
    }
    return [Line2D([], [], **{"color": style.INK, **props}, label=label) for label, props in handles.items()]


def _edges(results: Sequence[PowerAnalysis]) -> Any:
    """Return bins that all results share, so that their heights can be compared."""
    each = [result.estimates[np.isfinite(result.estimates)] for result in results]
    ends = [np.quantile(values, [0.005, 0.995]) for values in each if len(values) > 1]
    return np.linspace(min(low for low, _ in ends), max(high for _, high in ends), 31) if ends else None


def _exponents(ax: Axes, result: PowerAnalysis, edges: Any, colour: Any, label: str) -> None:
    exponent, values = result.of(), result.estimates[np.isfinite(result.estimates)]
    label += (
        f": no exponent in {percent(exponent.without_estimate)} of the studies"
        if exponent.without_estimate
        else ""
    )
    if len(values) < 2:
        ax.plot([], [], color=colour, label=label)
        return
    heights, _ = np.histogram(values, bins=edges)
    share = 100 * heights / len(result.estimates)
    ax.stairs(share, edges, color=colour, linewidth=1.0)
    ax.plot([], [], color=colour, label=label)
    if exponent.true is not None:
        ax.axvline(exponent.true, color=colour, linewidth=0.7, linestyle=DASHES)
    if exponent.interval is not None and exponent.median is not None:
        middle, half = exponent.median, exponent.interval / 2
        ax.plot(
            [middle - half, middle + half], [0.6 * share.max()] * 2, color=colour, marker="|", markersize=5
        )


def _caption(results: Sequence[PowerAnalysis]) -> str:
    config = results[0].config
    return (
        f"{config.studies} simulated studies, {DEFAULT_ESTIMATOR} estimator. "
        "(a) Optima over the budget; an arrow "
        "marks a true one outside the swept range, an arrowhead estimates that reach its end. (b) Exponents "
        f"of all studies that give one; the median interval is that of {config.analysts} analyses. "
        + " ".join(f"({k + 1}) {result.law}." for k, result in enumerate(results))
    )


def _tables(results: Sequence[PowerAnalysis], names: Sequence[str]) -> dict[str, pd.DataFrame]:
    optima = [result.frame().assign(label=name) for result, name in zip(results, names, strict=True)]
    exponents = {name: result.estimates for result, name in zip(results, names, strict=True)}
    return {"optima": pd.concat(optima, ignore_index=True), "exponents": pd.DataFrame(exponents)}
