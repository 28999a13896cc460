"""`report`: a page that stands alone, the figures for print, and their data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.compare.arm_comparison import ArmComparison
from analysis.compare.arms import compare_every_axis
from analysis.compare.comparison import Comparison
from analysis.compare.ladder import LadderChoice
from analysis.compare.multiplier import compare_with_transformers, has_ladder
from analysis.format import number
from analysis.result_files import write_result
from analysis.study.device_hours import DeviceHoursFit
from analysis.study.points import IsoflopFit
from analysis.study.study import StudyFit

if TYPE_CHECKING:
    from analysis.figures.style import ReportFigure
    from analysis.published.comparison import PublishedMean, Slope
    from analysis.report.page import Drawn

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
    ladder: LadderChoice | None = None,
    further: Sequence[str] = (),
) -> Path:
    """Write `folder`/index.html, `folder`/figures/*.pdf and *.png, and the data of every panel as CSV.

    Parameters
    ----------
    runs, depths : the tables that `study` was fitted to.
    arms : comparisons of arms to show; None: those of every axis of the recipe that `runs` vary.
    ladder : of plain transformers, where `runs` hold some (see `compare_with_transformers`).
    further : what to do next, one line each: why there is no law, the next command.

    Returns
    -------
    The path of the page.
    """
    from analysis.figures.study import study_figures
    from analysis.report import html

    not_compared: tuple[str, ...] = ()
    if arms is None:
        arms, not_compared = compare_every_axis(runs, study.config)
    worth = compare_with_transformers(runs, study.config, ladder) if has_ladder(runs, study.config) else None
    drawn = save_figures(lambda: study_figures(study, comparison, arms, worth), folder)
    text = html.render(runs, study, comparison, drawn, title, arms, not_compared, worth, further)
    return write_page(folder, text)


def points_report(fit: IsoflopFit, folder: Path, *, title: str) -> Path:
    """Write the report of a table of points as `report` does that of a study."""
    from analysis.figures.study import points_figures
    from analysis.report import html

    drawn = save_figures(lambda: points_figures(fit), folder)
    return write_page(folder, html.render_points(fit, drawn, title))


def device_hours_report(fit: DeviceHoursFit, folder: Path, *, title: str) -> Path:
    """Write the report of laws over device-hours as `report` does that of a study."""
    from analysis.figures.device_hours import device_hours_figures
    from analysis.report import html

    drawn = save_figures(lambda: device_hours_figures(fit), folder)
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
    from analysis.report.page import embedded, page
    from analysis.tables.selection import digest

    found, comparison = claims(), published_comparison()
    tables = {name: parcae.table(name) for name in parcae.TABLES}
    sources = [
        (name, len(frame), "; ".join(sorted(set(frame["source"]))), digest(frame))
        for name, frame in tables.items()
    ]
    text = page(
        "published.html",
        [embedded(one) for one in save_figures(parcae_figures, folder)],
        title=PARCAE_TITLE,
        claims=found,
        differences=[
            [size, number(flops), f"{depth:g}"]
            + [f"{value:+.1f} ± {sd:.2f}" for value, sd in zip(points[::2], points[1::2], strict=True)]
            for size, flops, depth, *points in parcae.core_differences().to_numpy()
        ]
        + [["mean of the rows", "", "", *(_interval(m.points, m) for m in comparison.means)]]
        + [["trend (points a decade)", "", "", *(_interval(t.slope, t) for t in comparison.trends.values())]],
        errors=[
            [size, count, *(f"{value:.3f}" for value in losses), f"{percent:.2f}"]
            for size, count, *losses, percent in parcae.held_out_errors().to_numpy()
        ],
        sources=sources,
    )
    return write_page(folder, text), [f"{item.claim} {item.verdict}: {item.support}" for item in found]


def _interval(value: float, result: PublishedMean | Slope) -> str:
    return f"{value:+.2f} [{result.low:+.2f}, {result.high:+.2f}]"


def save_figures(draw: Callable[[], Sequence[ReportFigure]], folder: Path) -> list[Drawn]:
    """Write the figures that `draw` makes, and their data, below `folder`/figures; return them as PNG.

    They are drawn a second time for the page on a narrow screen.
    """
    from analysis.figures import style
    from analysis.report.page import Drawn

    figures = Path(folder) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    with style.narrow():
        on_phone = [style.png(one.figure) for one in draw()]
    return [
        Drawn(figure=one, png=style.save_figure(one, figures), narrow_png=narrow)
        for one, narrow in zip(draw(), on_phone, strict=True)
    ]


def write_page(folder: Path, text: str) -> Path:
    """Write `folder`/index.html; return its path."""
    page = Path(folder) / "index.html"
    write_result(page, text)
    return page
