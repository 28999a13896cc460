"""`report`: a page that stands alone, the figures for print, and their data."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.compare import Comparison
from analysis.study import StudyFit


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

    `runs` and `depths` are the tables that `study` was fitted to. Returns the path of the page, which is
    written last and at once, so that an interrupted report leaves the previous one whole.
    """
    from analysis import html, style
    from analysis.figures import draw_all

    folder = Path(folder)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    drawn = [(one, style.save(one, figures)) for one in draw_all(study, comparison)]
    text = html.render(runs, study, comparison, drawn, title)
    page = folder / "index.html"
    partial = folder / ".index.html.partial"
    partial.write_text(text, encoding="utf-8")
    return partial.replace(page)
