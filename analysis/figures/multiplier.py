"""Loss over parameters: the ladder of plain transformers, its law, and looped models with their equals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.compare.ladder import COUNTINGS, LADDERS, LadderLaw
from analysis.compare.multiplier_comparison import ModelWorth, MultiplierComparison
from analysis.config import ParameterCount
from analysis.figures import marks, style
from analysis.format import number, percent

SHOWN: tuple[ParameterCount, ...] = ("all", "non_embedding")


def multiplier_figures(comparison: MultiplierComparison) -> list[style.ReportFigure]:
    """Draw every ladder with the models of its tokens; a ladder without a law is not drawn."""
    ladders = _ladders(comparison)
    drawn = [_figure(models, comparison.config.confidence) for models in ladders]
    return [replace(one, name=name) for one, name in zip(drawn, names(comparison), strict=True)]


def names(comparison: MultiplierComparison) -> list[str]:
    """Return the names of the figures that `multiplier_figures` draws."""
    count = len(_ladders(comparison))
    return ["multiplier"] if count == 1 else [f"multiplier_{place + 1}" for place in range(count)]


def _ladders(comparison: MultiplierComparison) -> list[list[ModelWorth]]:
    """Return the models with a law, those of one ladder together."""
    shared: dict[tuple[Any, ...], list[ModelWorth]] = {}
    for model in comparison.models:
        if (law := model.row("loss", "all").law) is not None:
            ladder = (model.ladder, *law.points[["params", "loss"]].to_numpy().ravel())
            shared.setdefault(ladder, []).append(model)
    return list(shared.values())


def plot_multiplier(comparison: MultiplierComparison, ax: Axes | None = None) -> Axes:
    """Draw the first model with a law beside its ladder, all parameters counted.

    Raises ValueError where every law is refused.
    """
    for model in comparison.models:
        if model.row("loss", "all").law is not None:
            if ax is None:
                _, (ax,) = style.figure(1, width=style.COLUMN_INCHES)
            _panel(ax, [model], "all", comparison.config.confidence)
            ax.set_xlabel("parameters N")
            ax.set_ylabel("validation loss (nats per token)")
            return ax
    raise ValueError(f"nothing to draw: {comparison.headline()}")


def _figure(models: Sequence[ModelWorth], confidence: float) -> style.ReportFigure:
    with style.styled():
        fig, panels = style.figure(len(SHOWN), height=2.8, sharey=True)
        for ax, counting, letter in zip(panels, SHOWN, "ab", strict=True):
            _panel(ax, models, counting, confidence)
            ax.set_title(f"{letter}  {COUNTINGS[counting]}")
            ax.set_xlabel("parameters N")
        panels[0].set_ylabel("validation loss (nats per token)")
        style.share_loss_axis(panels)
        style.legend_outside(fig, 4, panels[0].get_legend_handles_labels()[0])
    caption = (
        f"Validation loss over parameters at {number(models[0].tokens)} tokens: {LADDERS[models[0].ladder]} "
        f"(squares), their law with its {percent(confidence)} band, and models (circles) with "
        "an arrow to the transformer of equal loss and the interval of its size. The parameters of a loop "
        "count once. No arrow: the loss lies outside the ladder."
    )
    return style.ReportFigure(
        name="multiplier", caption=caption, figure=fig, tables=_tables(models, confidence)
    )


def _panel(ax: Axes, models: Sequence[ModelWorth], counting: ParameterCount, confidence: float) -> None:
    law = _law(models[0], counting)
    points, line = law.points, _line(law, confidence)
    ax.set_xscale("log")
    ax.fill_between(line["params"], line["low"], line["high"], color=style.INK, alpha=0.12, linewidth=0)
    ax.plot(line["params"], line["loss"], color=style.INK, linewidth=0.8, label="law of the transformers")
    props: dict[str, Any] = {"marker": "s", "markersize": 3.2, "linestyle": "none", "color": style.INK}
    ax.plot(points["params"], points["loss"], **props, markerfacecolor="white", label="transformers")
    own = [model.row("loss", counting).params for model in models]
    low = min([*points["params"], *own]) / 1.3
    high = max([*points["params"], *own]) * 1.3
    ax.set_xlim(low, high)
    looped = [model.mean_recurrence for model in models if model.kind == "looped"]
    colours = style.recurrence_colours(looped) if looped else {}
    for model in models:
        colour = colours.get(model.mean_recurrence, style.FAINT) if model.kind == "looped" else style.FAINT
        label = f"µ = {model.mean_recurrence:g}" if model.kind == "looped" else "fixed depth"
        row, loss = model.row("loss", counting), model.values["loss"]
        if row.size.value is not None:
            arrow = {"arrowstyle": "->", "color": colour, "linewidth": 0.9, "shrinkA": 2, "shrinkB": 0}
            ax.annotate("", (row.size.value, loss), (row.params, loss), arrowprops=arrow)
            marks.whisker(ax, loss, (row.size.low, row.size.high), (low, high), color=colour, horizontal=True)
        ax.plot([row.params], [loss], "o", markersize=4.2, color=colour, label=label, zorder=4)
    style.decade_axis(ax.xaxis, low, high, room=0.24)


def _law(model: ModelWorth, counting: ParameterCount) -> LadderLaw:
    law = model.row("loss", counting).law
    assert law is not None, "models without a law are not drawn"
    return law


def _line(law: LadderLaw, confidence: float) -> pd.DataFrame:
    """Return the law and its band over the sizes of the ladder."""
    sizes = np.geomspace(law.points["params"].min(), law.points["params"].max(), 60)
    fitted, low, high = law.band(sizes, np.full(len(sizes), law.points["tokens"].iloc[0]), confidence)
    return pd.DataFrame({"params": sizes, "loss": fitted, "low": low, "high": high})


def _tables(models: Sequence[ModelWorth], confidence: float) -> dict[str, pd.DataFrame]:
    """Return the data of the panels: the ladder's runs, its law and the models with their equals."""
    runs, lines, rows = [], [], []
    for counting in SHOWN:
        law = _law(models[0], counting)
        runs.append(law.points[["params", "loss"]].assign(counting=counting))
        lines.append(_line(law, confidence).assign(counting=counting))
        for model in models:
            row = model.row("loss", counting)
            rows.append(
                {
                    "counting": counting,
                    "model": model.label,
                    "loss": model.values["loss"],
                    "params": row.params,
                    "equal_params": row.size.value,
                    "low": row.size.low,
                    "high": row.size.high,
                    "multiplier": row.multiplier.value,
                }
            )
    return {"ladder": pd.concat(runs), "law": pd.concat(lines), "models": pd.DataFrame(rows)}
