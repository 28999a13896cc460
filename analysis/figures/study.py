"""The figures of a study: all of them in the order of the report, the isoFLOP curves alone, the seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.text import Text

from analysis.compare.arm_comparison import ArmComparison
from analysis.compare.comparison import Comparison
from analysis.compare.multiplier_comparison import MultiplierComparison
from analysis.figures import style
from analysis.figures.arms import arms_figure
from analysis.figures.compare import compare_figures
from analysis.figures.depth import depth_figure
from analysis.figures.device_hours import plot_device_hours
from analysis.figures.frontier import frontier_figure
from analysis.figures.isoflop import isoflop_figure, plot_isoflop
from analysis.figures.isoflop_by_budget import isoflop_by_budget_figure
from analysis.figures.law import plot_curve_laws, plot_law, plot_task_law
from analysis.figures.multiplier import multiplier_figures, plot_multiplier
from analysis.figures.power_law import power_law_figure
from analysis.figures.published_scores import plot_published
from analysis.isoflop.exponents import IsoflopResult
from analysis.laws.curve_laws import CurveLaws
from analysis.laws.result import LawFit
from analysis.laws.task_score import TaskLaw
from analysis.published.comparison import PublishedComparison
from analysis.serialize import Result
from analysis.stats.noise import NoiseFloor
from analysis.study.device_hours import DeviceHoursFit
from analysis.study.points import IsoflopFit, in_unit, keys_in_unit
from analysis.study.study import StudyFit

PLOTS: dict[type[Result], Callable[[Any, Axes | None], Axes]] = {
    LawFit: plot_law,
    CurveLaws: plot_curve_laws,
    TaskLaw: plot_task_law,
    DeviceHoursFit: plot_device_hours,
    MultiplierComparison: plot_multiplier,
    PublishedComparison: plot_published,
}


def plot(result: Result, ax: Axes | None = None) -> Axes:
    """Draw a result on a matplotlib axis and return it (see `analysis.plot`)."""
    for kind, draw in PLOTS.items():
        if isinstance(result, kind):
            return draw(result, ax)
    if not isinstance(result, IsoflopResult):
        raise TypeError(f"{type(result).__name__} has no plot: its figures are those of report")
    if not result.fitted_groups():
        raise ValueError(f"nothing to draw: {result.headline()}")
    group = result.fitted_groups()[0]
    return plot_isoflop(group, group.cells.variable, ax)


def study_figures(
    study: StudyFit,
    comparison: Comparison,
    arms: Sequence[ArmComparison] = (),
    worth: MultiplierComparison | None = None,
) -> list[style.ReportFigure]:
    """Draw every figure that the tables carry, in the order of the report."""
    figures: list[style.ReportFigure] = []
    for place, group in enumerate(study.groups):
        suffix = f"_{place + 1}" if len(study.groups) > 1 else ""
        rows = [row for row in comparison.rows if row.group == group.label]
        of_group = (
            isoflop_figure(group, study.noise),
            isoflop_by_budget_figure(group, study.noise),
            power_law_figure(group, study.config.confidence),
            frontier_figure(group, rows, study.config.confidence),
        )
        figures += [replace(one, name=one.name + suffix) for one in of_group]
    recipes = [arms_figure(item) for item in arms]
    if len(recipes) > 1:
        recipes = [one and replace(one, name=f"{one.name}_{k + 1}") for k, one in enumerate(recipes)]
    recipes += multiplier_figures(worth) if worth else []
    optional = (*compare_figures(comparison), *recipes, depth_figure(study), seeds_figure(study.noise))
    return figures + [one for one in optional if one is not None]


def points_figures(fit: IsoflopFit) -> list[style.ReportFigure]:
    """Draw the figures of a table of points."""
    group, noise = fit.group, fit.group.inputs.floor
    drawn = [
        isoflop_figure(group, noise),
        isoflop_by_budget_figure(group, noise),
        power_law_figure(group, fit.config.confidence),
        frontier_figure(group, (), fit.config.confidence),
    ]
    return [_in_unit(one, fit.unit) for one in drawn]


def _in_unit(drawn: style.ReportFigure, unit: str) -> style.ReportFigure:
    """Return a figure with the loss's unit in its texts, its caption and the columns of its data."""
    for text in drawn.figure.findobj(Text):
        assert isinstance(text, Text)
        shown = re.sub(r"unit of the table|nats per token|\bnats\b", unit, text.get_text())
        if shown != text.get_text():  # tick labels, which their axis writes anew, stay
            text.set_text(shown)
    tables = {
        name: table.rename(columns=lambda column: next(iter(keys_in_unit({column: 0}, unit))))
        for name, table in drawn.tables.items()
    }
    return replace(drawn, caption=in_unit(drawn.caption, unit), tables=tables)


def seeds_figure(noise: NoiseFloor) -> style.ReportFigure | None:
    """Draw the deviations of replicate seeds from their cell's mean; None without replicates."""
    if noise.sd_nats is None:
        return None
    with style.styled():
        fig, (ax,) = style.figure(1, width=style.COLUMN_INCHES, height=0.9 + 0.28 * len(noise.cells))
        ax.axvspan(-noise.sd_nats, noise.sd_nats, color="#e6e6e6", linewidth=0)
        ax.axvline(0, color=style.FAINT, linewidth=0.6)
        for place, cell in enumerate(noise.cells):
            values = cell.deviations_nats
            ax.plot(
                values, [place] * len(values), marker="o", linestyle="none", markersize=3.6, color=style.INK
            )
        ax.set_yticks(range(len(noise.cells)), [cell.label for cell in noise.cells])
        ax.set_ylim(len(noise.cells) - 0.5, -0.5)
        reach = 1.15 * max(noise.sd_nats, *(abs(v) for cell in noise.cells for v in cell.deviations_nats))
        ax.set_xlim(-reach, reach)
        ax.locator_params(axis="x", nbins=4)
        ax.set_xlabel("loss minus cell mean (nats)")
    caption = f"Replicate seeds by cell; the grey band is the pooled standard deviation: {noise.summary()}."
    rows = [
        (cell.label, run_id, cell.mean_nats, value)
        for cell in noise.cells
        for run_id, value in zip(cell.run_ids, cell.deviations_nats, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["cell", "run_id", "cell_mean_nats", "deviation_nats"])
    return style.ReportFigure(name="seeds", caption=caption, figure=fig, tables={"deviations": table})
