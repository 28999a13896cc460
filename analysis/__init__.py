"""Tables in, laws and figures out; independent of training jobs."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.compare.compare import compare
    from analysis.compare.comparison import Comparison
    from analysis.config import FitConfig
    from analysis.laws.fit import fit_law
    from analysis.laws.function_law import as_law
    from analysis.laws.registry import LAWS
    from analysis.laws.result import LawFit
    from analysis.report.report import report
    from analysis.serialize import Result
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
    "as_law",
    "compare",
    "fit",
    "fit_law",
    "isoflop",
    "plot",
    "read_points",
    "read_tables",
    "report",
]

_MODULES = {  # of the public names
    "compare": "analysis.compare.compare",
    "Comparison": "analysis.compare.comparison",
    "FitConfig": "analysis.config",
    "LawFit": "analysis.laws.result",
    "fit_law": "analysis.laws.fit",
    "as_law": "analysis.laws.function_law",
    "LAWS": "analysis.laws.registry",
    "report": "analysis.report.report",
    "IsoflopFit": "analysis.study.points",
    "isoflop": "analysis.study.points",
    "read_points": "analysis.study.points",
    "StudyFit": "analysis.study.study",
    "fit": "analysis.study.study",
    "read_tables": "analysis.tables.readers",
    "TableError": "analysis.tables.schema",
}


class _Package(ModuleType):
    """Imports a public name when it is first used, so that planning reaches a constant without scipy.

    Some sub-packages are called like a public function (compare, isoflop, report) and may not hide it.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def plot(result: Result, ax: Axes | None = None) -> Axes:
    """Draw a result on a matplotlib axis and return it.

    Of a study or a table of points, the isoFLOP curves of the first group. Of a law of one column, its curve;
    of several columns, observed losses over those of the law. Of depth curves, each with its law. Of a task,
    the score over the loss.
    """
    from analysis.figures.study import plot as draw  # matplotlib is imported here only

    return draw(result, ax)
