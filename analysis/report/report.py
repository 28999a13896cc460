"""`report`: a page that stands alone, the figures for print, and their data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.compare.comparison import Comparison
from analysis.study.points import IsoflopFit
from analysis.study.study import StudyFit

if TYPE_CHECKING:
    from analysis.figures.style import ReportFigure


def report(
    runs: pd.DataFrame,
    depths: pd.DataFrame,
    study: StudyFit,
    comparison: Comparison,
    folder: Path,
    *,
    title: str,
) -> Path:
    """Write `folder`/index.html, `folder`/figures/*.pdf and *.png, and the data of every panel as CSV.

    `runs` and `depths` are the tables that `study` was fitted to. Returns the path of the page.
    """
    from analysis.figures.study import study_figures
    from analysis.report import html

    drawn = save_figures(study_figures(study, comparison), folder)
    text = html.render(runs, study, comparison, drawn, title)
    return write_page(folder, text)


def points_report(fit: IsoflopFit, folder: Path, *, title: str) -> Path:
    """Write the report of a table of points as `report` does that of a study."""
    from analysis.figures.study import points_figures
    from analysis.report import html

    return write_page(folder, html.render_points(fit, save_figures(points_figures(fit), folder), title))


def save_figures(drawn: Sequence[ReportFigure], folder: Path) -> list[tuple[ReportFigure, bytes]]:
    """Write figures and their data below `folder`/figures; return each with its PNG."""
    from analysis.figures import style

    figures = Path(folder) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    return [(one, style.save_figure(one, figures)) for one in drawn]


def write_page(folder: Path, text: str) -> Path:
    """Write `folder`/index.html at once, so that an interrupted report leaves the previous one whole."""
    partial = Path(folder) / ".index.html.partial"
    partial.write_text(text, encoding="utf-8")
    return partial.replace(Path(folder) / "index.html")
