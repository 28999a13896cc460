"""`report`: a page that stands alone, the figures for print, and their data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.compare.arm_comparison import ArmComparison
from analysis.compare.arms import compare_every_axis
from analysis.compare.comparison import Comparison
from analysis.format import number
from analysis.result_files import write_result
from analysis.study.device_hours import DeviceHoursFit
from analysis.study.points import IsoflopFit
from analysis.study.study import StudyFit

if TYPE_CHECKING:
    from analysis.figures.style import ReportFigure

PARCAE_TITLE = "Parcae (arXiv 2604.12946), from its published numbers"


def report(
    runs: pd.DataFrame,
    depths: pd.DataFrame,
    study: StudyFit,
    comparison: Comparison,
    folder: Path,
    *,
    title: str,
    arms: Sequence[ArmComparison] | None = None,
) -> Path:
    """Write `folder`/index.html, `folder`/figures/*.pdf and *.png, and the data of every panel as CSV.

    Parameters
    ----------
    runs, depths : the tables that `study` was fitted to.
    arms : comparisons of arms to show; None: those of every axis of the recipe that `runs` vary.

    Returns
    -------
    The path of the page.
    """
    from analysis.figures.study import study_figures
    from analysis.report import html

    not_compared: tuple[str, ...] = ()
    if arms is None:
        arms, not_compared = compare_every_axis(runs, study.config)
    drawn = save_figures(study_figures(study, comparison, arms), folder)
    text = html.render(runs, study, comparison, drawn, title, arms, not_compared)
    return write_page(folder, text)


def points_report(fit: IsoflopFit, folder: Path, *, title: str) -> Path:
    """Write the report of a table of points as `report` does that of a study."""
    from analysis.figures.study import points_figures
    from analysis.report import html

    return write_page(folder, html.render_points(fit, save_figures(points_figures(fit), folder), title))


def device_hours_report(fit: DeviceHoursFit, folder: Path, *, title: str) -> Path:
    """Write the report of laws over device-hours as `report` does that of a study."""
    from analysis.figures.device_hours import device_hours_figures
    from analysis.report import html

    drawn = save_figures(device_hours_figures(fit), folder)
    return write_page(folder, html.render_device_hours(fit, drawn, f"{title}, at equal device-hours"))


def parcae_report(folder: Path) -> tuple[Path, list[str]]:
    """Write `folder`/index.html: the paper's results redrawn, each claim beside what its numbers support.

    Returns
    -------
    The path of the page, and every claim with its support as text.
    """
    from analysis.figures.published import parcae_figures
    from analysis.published import parcae
    from analysis.published.claims import claims
    from analysis.published.comparison import published_comparison
    from analysis.report.page import page
    from analysis.tables.selection import digest

    found, comparison = claims(), published_comparison()
    tables = {name: parcae.table(name) for name in parcae.TABLES}
    sources = [
        (name, len(frame), "; ".join(sorted(set(frame["source"]))), digest(frame))
        for name, frame in tables.items()
    ]
    text = page(
        "published.html",
        save_figures(parcae_figures(), folder),
        title=PARCAE_TITLE,
        claims=found,
        differences=[
            [size, number(flops), f"{depth:g}"]
            + [f"{value:+.1f} ± {sd:.2f}" for value, sd in zip(points[::2], points[1::2], strict=True)]
            for size, flops, depth, *points in parcae.core_differences().to_numpy()
        ],
        comparison=comparison,
        errors=[
            [size, count, *(f"{value:.3f}" for value in losses), f"{percent:.2f}"]
            for size, count, *losses, percent in parcae.held_out_errors().to_numpy()
        ],
        sources=sources,
    )
    return write_page(folder, text), [f"{item.claim} {item.verdict}: {item.support}" for item in found]


def save_figures(drawn: Sequence[ReportFigure], folder: Path) -> list[tuple[ReportFigure, bytes]]:
    """Write figures and their data below `folder`/figures; return each with its PNG."""
    from analysis.figures import style

    figures = Path(folder) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    return [(one, style.save_figure(one, figures)) for one in drawn]


def write_page(folder: Path, text: str) -> Path:
    """Write `folder`/index.html; return its path."""
    page = Path(folder) / "index.html"
    write_result(page, text)
    return page
