"""The settings of the commands on launched sweeps, and the table of all; their defaults are in conf/table."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt, MinLen

from model.config_validation import check_name
from sweeps.config.model_commands import EvalConfig, ExportConfig, GenerateConfig, ServeCostConfig
from sweeps.config.study import PositiveFloat

LAWS = "laws.json"  # of fit, beside a sweep's tables
TRANSFORMER = "transformer"  # value of `against` that names no sweep: the ladder of plain transformers


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Settings of every command on a launched sweep."""

    sweep: Annotated[str, MinLen(1)]
    root: str = "runs"
    format: Literal["text", "json"] = "text"

    def __post_init__(self) -> None:
        check_name("sweep", self.sweep)

    @property
    def folder(self) -> Path:
        """Return the sweep's folder."""
        return Path(self.root) / self.sweep


@dataclass(frozen=True, kw_only=True)
class StatusConfig(TableConfig):
    """`loopscale status`; `run` is a run id of the sweep, or the end of one; `html` may name the page."""

    watch: bool = False
    html: bool | str = False
    run: str | None = None

    @property
    def page(self) -> Path | None:
        """Return the path of the live page, None if none is wanted."""
        if self.html is True:
            return self.folder / "status.html"
        return Path(self.html) if self.html else None


@dataclass(frozen=True, kw_only=True)
class ChangeConfig(TableConfig):
    """`loopscale cancel` and `retry`: one run, or all that qualify."""

    run: str | None = None
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class CollectConfig(TableConfig):
    """`loopscale collect`; `also` names further sweeps, as folders, that join the tables."""

    also: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SyncConfig(TableConfig):
    """`loopscale sync`; None stands for the run's own logger settings."""

    run: Annotated[str, MinLen(1)] | None = None
    mode: Literal["offline", "online"] = "offline"
    project: Annotated[str, MinLen(1)] | None = None
    entity: Annotated[str, MinLen(1)] | None = None


@dataclass(frozen=True, kw_only=True)
class FitTableConfig(TableConfig):
    """`loopscale fit`, `report` and `compare`: a source of data and the fields of `analysis.FitConfig`."""

    data: str | None = (
        None  # in place of the sweep: a CSV or Parquet file, a folder of tables, or wandb:ENTITY/PROJECT
    )
    out: Annotated[str, MinLen(1)] | None = None  # folder of the results
    columns: dict[str, str] = field(default_factory=dict)
    where: str | None = None  # rows to keep, a query of pandas
    law: str = "isoflop"
    cost: Literal["flops", "device_hours"] = "flops"
    x: Literal["params", "tokens", "recurrence"] | None = None
    unit: str | None = None  # of the loss of points
    budget_tolerance: Annotated[float, Gt(0), Lt(1)] | None = None
    envelope: list[str] = field(default_factory=list)  # settings of points
    bootstrap: int = 1000
    seed: int = 0
    confidence: float = 0.95
    resampling: str = "noise"
    block: str = "trunk_id"
    shared_noise: float = 1.0
    huber_delta: float | None = None
    parameter_count: str = "non_embedding"
    validation: bool = True
    max_epochs: float = 1.0

    @property
    def results(self) -> Path:
        """Return the folder of the results: `out`, the sweep's, or ./SWEEP where that may not be written."""
        if self.out is not None:
            return Path(self.out)
        effective = os.access in os.supports_effective_ids
        writable = os.access(self.folder, os.W_OK, effective_ids=effective)
        return self.folder if writable else Path(self.sweep)

    @property
    def keeps_results(self) -> bool:
        """Return True if results become files; those of other data than a sweep do where `out` is set."""
        return self.data is None or self.out is not None


@dataclass(frozen=True, kw_only=True)
class FitCommandConfig(FitTableConfig):
    """`loopscale fit`; `details` prints everything that laws.json holds."""

    details: bool = False


@dataclass(frozen=True, kw_only=True)
class CompareConfig(FitTableConfig):
    """`loopscale compare` and `report`: looped against fixed depth or transformers, and arms."""

    arms: Annotated[str, MinLen(1)] | None = None
    reference: str | float | None = None
    against: Annotated[str, MinLen(1)] | None = None
    ladder: Literal["depth", "width", "any"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against == TRANSFORMER and (self.arms or self.reference is not None):
            raise ValueError(
                f"against={TRANSFORMER} compares with a ladder of sizes, which has no arms: leave out "
                f"{'arms' if self.arms else 'reference'}"
            )
        if self.reference is not None and not (self.arms or self.against):
            raise ValueError(
                f"reference={self.reference} is a value of an axis: set arms=AXIS or against=SWEEP"
            )


@dataclass(frozen=True, kw_only=True)
class NewConfig:
    """`loopscale new`; None is asked for on a terminal, else it is as in a shipped sweep of the scale."""

    sweep: Annotated[str, MinLen(1)]
    scale: str | None = None
    budgets_flops: Annotated[list[PositiveFloat], MinLen(1)] | None = None
    allowance: float | str | None = None
    mean_recurrences: Annotated[list[Annotated[int, Ge(1)]], MinLen(1)] | None = None
    data: str | None = None
    path: str | None = None
    cluster: str = "local"
    root: str = "runs"
    cache: str = "runs/.data"

    def __post_init__(self) -> None:
        if self.budgets_flops is not None and self.allowance is not None:
            raise ValueError("budgets_flops and allowance both set the budgets: leave one out")
        if self.path is not None and self.data is None:
            object.__setattr__(self, "data", "text")


@dataclass(frozen=True, kw_only=True)
class CompletionConfig:
    """`loopscale completion`."""

    shell: Literal["bash", "zsh", "fish"]


# By command; the defaults are in conf/table/<command>.yaml.
TABLES: dict[str, type] = {
    "new": NewConfig,
    "completion": CompletionConfig,
    "eval": EvalConfig,
    "export": ExportConfig,
    "generate": GenerateConfig,
    "serve_cost": ServeCostConfig,
    "status": StatusConfig,
    "cancel": ChangeConfig,
    "retry": ChangeConfig,
    "collect": CollectConfig,
    "sync": SyncConfig,
    "fit": FitCommandConfig,
    "report": CompareConfig,
    "compare": CompareConfig,
}
