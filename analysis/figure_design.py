"""What a planned study would resolve: optima per budget and the spread of the exponent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.estimator import DEFAULT
from analysis.resolution import Resolution

COLOURS = ("#2166ac", "#b35806", "#1b7837", "#762a83", "#8c510a", "#01665e")


def design_figure(results: Sequence[Resolution], labels: Sequence[str] = ()) -> style.Drawn:
    """Draw optima per budget with the central 95 % of the estimates, and the exponents of all studies.

    `results` are laws of one grid, or grids under one law, told apart by `labels`.
    """
    names = list(labels) or [f"law {k + 1}" for k in range(len(results))]
    with style.styled():
        made, (left, right) = style.figure(2, width=style.PAGE_INCHES, height=2.7)
        edges = _edges(results)
        for place, result in enumerate(results):
            _optima(left, result, COLOURS[place % len(COLOURS)], place - (len(results) - 1) / 2)
            _exponents(right, result, edges, COLOURS[place % len(COLOURS)], names[place])
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xlabel("training budget C (FLOPs)")
        left.set_ylabel("optimal mean recurrence µ*")
        left.margins(x=0.1, y=0.08)
        budgets = sorted({item.budget_flops for result in results for item in result.outlooks})
        depths = sorted({float(mu) for result in results for mu in result.grid.cells.values})
        style.log_axis(left.xaxis, budgets)
        style.recurrence_axis(left.yaxis, depths)
        right.set_xlabel("exponent of µ* over C")
        right.set_ylabel("share of the studies (%)")
        right.set_ylim(bottom=0)
        if len(results) > 1:
            made.legend(loc="outside lower center", ncols=len(results))
    return style.Drawn(name="design", caption=_caption(results), figure=made, tables=_tables(results, names))


def _optima(ax: Axes, result: Resolution, colour: Any, shift: float) -> None:
    cells, aside = result.grid.cells, 1.06**shift
    flops = cells.budgets_flops[cells.budget]
    ax.plot(
        flops * aside, cells.values, marker=".", markersize=2, linestyle="none", color=style.FAINT, zorder=1
    )
    for item in result.outlooks:
        low, high = item.low or item.swept_low, item.high or item.swept_high
        ends = np.clip([low, high], item.swept_low, item.swept_high)
        ax.plot([item.budget_flops * aside] * 2, ends, color=colour, linewidth=2.2, alpha=0.55, zorder=2)
    true = [(item.budget_flops, item.true) for item in result.outlooks if _in(item.true, item)]
    if true:
        ax.plot(*zip(*true, strict=True), marker="D", markersize=3.2, linewidth=0.8, color=colour, zorder=3)


def _in(value: float, item: Any) -> bool:
    return bool(item.swept_low <= value <= item.swept_high)


def _edges(results: Sequence[Resolution]) -> Any:
    """Return bins that all results share, so that their heights can be compared."""
    each = [result.estimates[np.isfinite(result.estimates)] for result in results]
    ends = [np.quantile(values, [0.005, 0.995]) for values in each if len(values) > 1]
    return np.linspace(min(low for low, _ in ends), max(high for _, high in ends), 31) if ends else None


def _exponents(ax: Axes, result: Resolution, edges: Any, colour: Any, label: str) -> None:
    found, values = result.of(), result.estimates[np.isfinite(result.estimates)]
    if len(values) < 2:
        ax.plot([], [], color=colour, label=f"{label}: no exponent")
        return
    heights, _ = np.histogram(values, bins=edges)
    share = 100 * heights / len(result.estimates)
    ax.stairs(share, edges, color=colour, linewidth=1.0, label=label)
    if found.true is not None:
        ax.axvline(found.true, color=colour, linewidth=0.7, linestyle=(0, (3, 2)))
    if found.interval is not None and found.median is not None:
        middle, half = found.median, found.interval / 2
        ax.plot(
            [middle - half, middle + half], [0.6 * share.max()] * 2, color=colour, marker="|", markersize=5
        )


def _caption(results: Sequence[Resolution]) -> str:
    config = results[0].config
    return (
        f"{config.studies} simulated studies, {DEFAULT} estimator. Left: the true optima inside the grid "
        "(diamonds), the central 95 % of the estimated ones, cut at the ends of the swept range (bars), and "
        "the cells of the grid (grey). Right: the exponents of all studies that give one, the true exponent "
        "(dashed) "
        f"and the median 95 % interval of {config.analysts} analyses (bar). "
        + " ".join(f"({k + 1}) {result.law}." for k, result in enumerate(results))
    )


def _tables(results: Sequence[Resolution], names: Sequence[str]) -> dict[str, pd.DataFrame]:
    optima = [result.frame().assign(label=name) for result, name in zip(results, names, strict=True)]
    exponents = {name: result.estimates for result, name in zip(results, names, strict=True)}
    return {"optima": pd.concat(optima, ignore_index=True), "exponents": pd.DataFrame(exponents)}
