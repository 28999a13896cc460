"""All figures of a study."""

from __future__ import annotations

from dataclasses import replace

from analysis.compare import BudgetRow, Comparison
from analysis.figure_compare import compare_figures
from analysis.figure_depth import depth_figure
from analysis.figure_frontier import frontier_figure
from analysis.figure_isoflop import isoflop_figure, plot_isoflop
from analysis.figure_powerlaw import powerlaw_figure
from analysis.figure_seeds import seeds_figure
from analysis.figure_zoom import zoom_figure
from analysis.points import IsoflopFit
from analysis.study import StudyFit
from analysis.style import Drawn

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
