"""From a collected sweep to laws, comparison and report: tables in, files beside them out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from harness.files import write_text
from model.checked import build
from sweeps.config import FitTableConfig, TableConfig

if TYPE_CHECKING:
    from analysis import Comparison, FitConfig, StudyFit


def fit_sweep(settings: FitTableConfig) -> StudyFit:
    """Fit the sweep's tables and write laws.json beside them."""
    from analysis import fit, read_tables

    study = fit(*read_tables(settings.folder), _fit_config(settings))
    write_text(settings.folder / "laws.json", study.to_json() + "\n")
    return study


def compare_sweep(settings: FitTableConfig) -> Comparison:
    """Compare looped with fixed depth in the sweep's runs table and write comparison.json beside it."""
    from analysis import compare, read_tables

    comparison = compare(read_tables(settings.folder)[0], _fit_config(settings))
    write_text(settings.folder / "comparison.json", comparison.to_json() + "\n")
    return comparison


def report_sweep(settings: FitTableConfig) -> tuple[Path, StudyFit]:
    """Write `<sweep>/report/` with its figures; return the path of its page and the laws in it."""
    from analysis import read_tables, report

    study, comparison = fit_sweep(settings), compare_sweep(settings)
    tables = read_tables(settings.folder)
    page = report(*tables, study, comparison, settings.folder / "report", title=settings.sweep)
    return page, study


def _fit_config(settings: FitTableConfig) -> FitConfig:
    from analysis import FitConfig

    table = {item.name for item in dataclasses.fields(TableConfig)}
    return build(FitConfig, {key: value for key, value in vars(settings).items() if key not in table})
