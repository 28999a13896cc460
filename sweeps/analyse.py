"""From a collected sweep to laws, comparison and report: tables in, files beside them out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.runfolder import write_text
from model.checked import build

if TYPE_CHECKING:
    from analysis import Comparison, FitConfig, StudyFit


def fit_sweep(settings: dict[str, Any]) -> StudyFit:
    """Fit the sweep's tables and write laws.json beside them."""
    from analysis import fit, read_tables

    folder = _folder(settings)
    study = fit(*read_tables(folder), _fit_config(settings))
    write_text(folder / "laws.json", study.to_json() + "\n")
    return study


def compare_sweep(settings: dict[str, Any]) -> Comparison:
    """Compare looped with fixed depth in the sweep's runs table and write comparison.json beside it."""
    from analysis import compare, read_tables

    folder = _folder(settings)
    comparison = compare(read_tables(folder)[0], _fit_config(settings))
    write_text(folder / "comparison.json", comparison.to_json() + "\n")
    return comparison


def report_sweep(settings: dict[str, Any]) -> tuple[Path, StudyFit]:
    """Write `<sweep>/report/` with its figures; return the path of its page and the laws in it."""
    from analysis import read_tables, report

    folder = _folder(settings)
    study, comparison = fit_sweep(settings), compare_sweep(settings)
    page = report(*read_tables(folder), study, comparison, folder / "report", title=settings["sweep"])
    return page, study


def _folder(settings: dict[str, Any]) -> Path:
    return Path(settings["root"]) / settings["sweep"]


def _fit_config(settings: dict[str, Any]) -> FitConfig:
    from analysis import FitConfig

    return build(FitConfig, {k: v for k, v in settings.items() if k not in ("sweep", "root", "format")})
