"""Tables in, laws and figures out; knows nothing of training jobs."""

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
    "read_points",
    "read_tables",
    "report",
]
