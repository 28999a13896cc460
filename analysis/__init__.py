"""Tables in, laws and figures out; independent of training jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.compare.compare import compare
from analysis.compare.comparison import Comparison
from analysis.config import FitConfig
from analysis.laws.fit import fit_law
from analysis.laws.registry import LAWS
from analysis.laws.result import LawFit
from analysis.report.report import report
from analysis.study.points import IsoflopFit, isoflop, read_points
from analysis.study.study import StudyFit, fit
from analysis.tables.readers import read_tables
from analysis.tables.schema import TableError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "LAWS",
    "Comparison",
    "FitConfig",
    "IsoflopFit",
    "LawFit",
    "StudyFit",
    "TableError",
    "compare",
    "fit",
    "fit_law",
    "isoflop",
    "plot",
    "read_points",
    "read_tables",
    "report",
]


def plot(result: StudyFit | IsoflopFit, ax: Axes | None = None) -> Axes:
    """Draw the isoFLOP curves of a result on a matplotlib axis and return it; a study's first group."""
    from analysis.figures.study import plot as draw  # matplotlib is imported here only

    return draw(result, ax)
