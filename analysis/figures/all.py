"""All figures of a study."""

from __future__ import annotations

from dataclasses import replace

from analysis.compare.comparison import Comparison
from analysis.compare.rows import BudgetRow
from analysis.figures.compare import compare_figures
from analysis.figures.depth import depth_figure
from analysis.figures.frontier import frontier_figure
from analysis.figures.isoflop import isoflop_figure, plot_isoflop
from analysis.figures.power_law import powerlaw_figure
from analysis.figures.seeds import seeds_figure
from analysis.figures.style import Drawn
from analysis.figures.zoom import zoom_figure
from analysis.study.points import IsoflopFit
from analysis.study.study import StudyFit

__all__ = ["draw_all", "plot_isoflop"]


def draw_points(fit: IsoflopFit) -> list[Drawn]:
    """Draw the figures of a table of points."""
    group, noise = fit.group, fit.group.inputs.floor
    return [
        isoflop_figure(group, noise),
        zoom_figure(group, noise),
        powerlaw_figure(group, fit.config.confidence),
        frontier_figure(group, (), fit.config.confidence),
    ]


def _rows(comparison: Comparison, label: str) -> list[BudgetRow]:
    return [row for row in comparison.rows if row.group == label]


def draw_all(study: StudyFit, comparison: Comparison) -> list[Drawn]:
    """Draw every figure that the tables carry, in the order of the report."""
    drawn: list[Drawn] = []
    for place, group in enumerate(study.groups):
        suffix = f"_{place + 1}" if len(study.groups) > 1 else ""
        of_group = (
            isoflop_figure(group, study.noise),
            zoom_figure(group, study.noise),
            powerlaw_figure(group, study.config.confidence),
            frontier_figure(group, _rows(comparison, group.label), study.config.confidence),
        )
        drawn += [replace(one, name=one.name + suffix) for one in of_group]
    optional = (*compare_figures(comparison), depth_figure(study), seeds_figure(study.noise))
    return drawn + [one for one in optional if one is not None]
