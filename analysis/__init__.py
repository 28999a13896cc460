"""Tables in, laws and figures out; independent of training jobs. What is named here is imported when used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.compare.compare import compare
    from analysis.compare.comparison import Comparison
    from analysis.config import FitConfig
    from analysis.laws.fit import LawFit, fit_law
    from analysis.laws.registry import LAWS
    from analysis.report.report import report
    from analysis.study.points import IsoflopFit, isoflop, read_points
    from analysis.study.study import StudyFit, fit
    from analysis.tables.readers import read_tables
    from analysis.tables.schema import TableError

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

_HOMES = {
    "LAWS": "analysis.laws.registry",
    "Comparison": "analysis.compare.comparison",
    "FitConfig": "analysis.config",
    "IsoflopFit": "analysis.study.points",
    "LawFit": "analysis.laws.fit",
    "StudyFit": "analysis.study.study",
    "TableError": "analysis.tables.schema",
    "compare": "analysis.compare.compare",
    "fit": "analysis.study.study",
    "fit_law": "analysis.laws.fit",
    "isoflop": "analysis.study.points",
    "read_points": "analysis.study.points",
    "read_tables": "analysis.tables.readers",
    "report": "analysis.report.report",
}
# Of these names there are sub-packages too: each is loaded now, for one loaded later would replace the function.
for _name in ("compare", "isoflop", "report"):
    importlib.import_module(f"analysis.{_name}")
    del globals()[_name]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def plot(result: StudyFit | IsoflopFit, ax: Axes | None = None) -> Axes:
    """Draw the isoFLOP curves of a result on a matplotlib axis and return it; a study's first group."""
    from analysis.figures.study import plot as draw  # matplotlib is imported here only

    return draw(result, ax)
