"""The published losses and scores of Parcae beside those of Transformers and of fixed depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures import style
from analysis.published import parcae
from analysis.published.comparison import SCORES, PublishedComparison, published_comparison, size_equivalents

SIZE_PROPS: dict[str, dict[str, Any]] = {
    "140M": {"color": "#0072B2", "marker": "o"},
    "370M": {"color": "#D55E00", "marker": "s"},
}
MEASURES: dict[str, dict[str, Any]] = {
    "Core": {"color": "#0072B2", "marker": "o"},
    "Core-Extended": {"color": "#D55E00", "marker": "s"},
    "validation loss": {"color": "#009E73", "marker": "D"},
}


def plot_published(comparison: PublishedComparison, ax: Axes | None = None) -> Axes:
    """Draw the published differences of both scores over the budget (see `analysis.plot`)."""
    ax = style.figure(1, width=style.COLUMN_INCHES)[1][0] if ax is None else ax
    for score in comparison.trends:
        rows = [row for row in comparison.rows if row.score == score]
        budgets, points = [row.budget_flops for row in rows], [row.points for row in rows]
        spread = [row.evaluation_sd for row in rows]
        ax.errorbar(budgets, points, spread, **MEASURES[score], linestyle="none", markersize=4, label=score)
    ax.axhline(0, color=style.INK, linewidth=0.6)
    ax.set_xscale("log")
    ax.set_xlabel("training budget C (FLOPs)")
    ax.set_ylabel("looped minus fixed (points)")
    ax.legend()
    return ax


def size_figure() -> style.ReportFigure:
    """Draw the share of the gap to the next larger Transformer, and the size of equal quality."""
    equivalents = pd.DataFrame([vars(item) for item in size_equivalents()])
    sizes = equivalents["size"].unique().tolist()
    with style.styled():
        fig, panels = style.figure(2, height=2.5)
        for aside, (measure, props) in zip((-0.16, 0.0, 0.16), MEASURES.items(), strict=True):
            mine = equivalents[equivalents["measure"] == measure]
            places = np.arange(len(mine)) + aside
            share = 100 * mine[["share", "low", "high"]].to_numpy(float)
            line: dict[str, Any] = {**props, "linestyle": "none"}
            panels[0].plot(places, share[:, 0], **line, label=measure)
            panels[0].vlines(places, share[:, 1], share[:, 2], color=props["color"], linewidth=0.8)
            panels[1].plot(places, mine["multiplier"], **line)
        ratios = equivalents.drop_duplicates("size")["size_ratio"]
        panels[1].plot(range(len(sizes)), ratios, "_", color=style.INK, markersize=16, label="next larger")
        panels[1].axhline(2, color=style.FAINT, linewidth=0.6, linestyle=(0, (4, 2)), label="twice the size")
        panels[0].axhline(100, color=style.FAINT, linewidth=0.6)
        panels[0].set_ylabel("share of the gap closed (%)")
        panels[1].set_ylabel("parameter multiplier")
        panels[1].set_ylim(1, 2.85)
        for ax, title in zip(panels, "ab", strict=True):
            ax.set_title(title)
            ax.set_xticks(range(len(sizes)), sizes)
            ax.set_xlim(-0.5, len(sizes) - 0.5)
            ax.set_xlabel("size of the looped model")
        style.legend_outside(fig, 5)
    caption = (
        "Looped models (µ = 8) among Transformers of equal parameters and tokens. (a) Share of the gap to "
        "the next larger Transformer that the looped model closes; 100 % is that Transformer. Bars: 95 % "
        "intervals with the noise of a run seen where others trained two of the models again (two degrees of "
        "freedom); unknown for the loss. (b) Multiplier: parameters of the "
        "Transformer of equal quality, log-linear in size, over the model's own."
    )
    return style.ReportFigure(name="sizes", caption=caption, figure=fig, tables={"equivalents": equivalents})


def core_figure() -> style.ReportFigure:
    """Draw looped minus fixed Core and Core-Extended over the budget, with their common trends."""
    differences, trends = parcae.core_differences(), published_comparison().trends
    with style.styled():
        fig, panels = style.figure(2, height=2.6, sharey=True)
        for ax, (name, title) in zip(panels, SCORES.items(), strict=True):
            ax.set_xscale("log")
            ax.axhline(0, color=style.INK, linewidth=0.6)
            for size, props in SIZE_PROPS.items():
                mine = differences[differences["size"] == size]
                flops, points = (mine[key].to_numpy(float) for key in ("budget_flops", name))
                decades = np.log10(flops) - np.log10(flops).mean()
                bars: dict[str, Any] = {**props, "linestyle": "none", "capsize": 2, "label": size}
                ax.errorbar(flops, points, yerr=mine[f"{name}_sd"], **bars)
                line = points.mean() + trends[title].slope * decades
                ax.plot(flops, line, color=props["color"], linewidth=0.8, linestyle=(0, (4, 2)))
            ax.set_title(f"{title}: {trends[title].summary()} a decade")
            ax.set_xlabel("training budget C (FLOPs)")
            ax.margins(x=0.06)
            style.log_axis(ax.xaxis, differences["budget_flops"].tolist(), room=0.2)
        panels[0].set_ylabel("looped minus fixed (points)")
        panels[0].legend(loc="upper left")
    caption = (
        "Looped (at the printed optimal recurrence) minus fixed depth at equal FLOPs and parameters, in "
        "points of Core and Core-Extended; above zero, looping wins. Bars: the printed spreads over three "
        "evaluation seeds, added in squares; they hold no training noise. Dashed: the trend by least "
        "squares, one slope for both sizes; its standard error is from the scatter of the rows."
    )
    return style.ReportFigure(name="core", caption=caption, figure=fig, tables={"differences": differences})
