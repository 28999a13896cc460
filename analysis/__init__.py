"""Tables in, laws and figures out; knows nothing of training jobs."""

from analysis.compare import Comparison, compare
from analysis.config import FitConfig
from analysis.law_fit import LawFit, fit_law
from analysis.laws import LAWS
from analysis.points import IsoflopFit, isoflop, read_points
from analysis.report import report
from analysis.schema import TableError
from analysis.study import StudyFit, fit
from analysis.tables import read_tables

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
