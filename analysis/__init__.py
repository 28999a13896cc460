"""Tables in, laws and figures out; knows nothing of training jobs."""

from analysis.compare import Comparison, compare
from analysis.config import FitConfig
from analysis.report import report
from analysis.schema import TableError
from analysis.study import StudyFit, fit
from analysis.tables import read_tables

__all__ = ["Comparison", "FitConfig", "StudyFit", "TableError", "compare", "fit", "read_tables", "report"]
