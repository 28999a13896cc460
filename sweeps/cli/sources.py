"""What `fit`, `compare` and `report` read, and where their results go."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from model.config_validation import ConfigError, build
from sweeps.config.commands import FitTableConfig
from sweeps.state.ledger import in_its_place

if TYPE_CHECKING:
    import pandas as pd

    from analysis import FitConfig
    from analysis.tables.points import PointsTable

PUBLISHED = "parcae_published"
Settings = TypeVar("Settings", bound=FitTableConfig)
Result = TypeVar("Result")


def names_source(function: Callable[[Settings], Result]) -> Callable[[Settings], Result]:
    """Let every refusal of a table name the file or folder that it comes from."""

    @functools.wraps(function)
    def naming(settings: Settings) -> Result:
        from analysis.tables.schema import TableError

        try:
            return function(settings)
        except TableError as error:
            source = settings.data or str(settings.folder)
            if Path(source).name in str(error):
                raise
            raise TableError(f"{source}: {error}") from error

    return naming


def source_of(settings: FitTableConfig) -> tuple[pd.DataFrame, pd.DataFrame] | PointsTable:
    """Return the runs and depths tables, or the points of a table of another kind."""
    from analysis import read_tables
    from analysis.tables.points import filtered, points_table
    from analysis.tables.readers import read_source

    if settings.data == PUBLISHED:
        raise ConfigError(f"data={PUBLISHED} has tables but no runs: loopscale report or compare")
    if settings.data is None and not settings.folder.is_dir():
        missing = f"no runs table in {settings.folder}, which does not exist"
        raise ConfigError(f"{missing} {in_its_place(settings.folder)}")
    data = settings.data or str(settings.folder)
    source = read_source(data, bool(settings.columns)) if settings.data else read_tables(settings.folder)
    if isinstance(source, tuple):
        return filtered(source[0], settings.where, "the runs table"), source[1]
    name = data if data.startswith("wandb:") else Path(data).name
    return points_table(
        source, settings.columns, where=settings.where, x=settings.x, unit=settings.unit, name=name
    )


def results_folder(settings: FitTableConfig) -> Path:
    """Return the folder of the results, made if it is not there."""
    folder = settings.results
    if settings.out is None and folder != settings.folder and not folder.is_dir():
        print(f"{settings.folder} may not be written: results go to ./{folder}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def report_folder(settings: FitTableConfig) -> Path:
    suffix = "" if settings.cost == "flops" else f"_{settings.cost}"
    if settings.out is not None or settings.data is None:
        return results_folder(settings) / f"report{suffix}"
    name = settings.data.removeprefix("wandb:").rstrip("/")
    return Path(settings.root) / "reports" / f"{Path(name).stem}{suffix}"


def fit_config(settings: FitTableConfig) -> FitConfig:
    from analysis import FitConfig

    names = {item.name for item in dataclasses.fields(FitConfig)}
    known: dict[str, Any] = {key: value for key, value in vars(settings).items() if key in names}
    return build(FitConfig, known)
