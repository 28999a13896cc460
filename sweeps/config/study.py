"""What configures a study: its grid, the machine that runs it, and the folders; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, MinLen

from harness.run.config import RunConfig
from model.config_validation import ConfigError
from sweeps.config.cluster import ClusterConfig, RetryConfig

PositiveFloat = Annotated[float, Gt(0)]
Seed = Annotated[int, Ge(0)]
# The comparison at depth 1: exactly one loop, always; or the published clamped Poisson of mean 1.37.
Control = Literal["fixed", "poisson", "none"]
# Whether runs that differ in length alone are trained through a shared trunk: where it is exact, or refuse.
TrunkMode = Literal["auto", True, False]
ParameterCount = Literal["non_embedding", "no_token_embedding", "all", "flops_over_six"]


@dataclass(frozen=True, kw_only=True)
class ListedCells:
    """Cells beside the product, such as replicate seeds; an empty field stands for the sweep's own.

    Zipped, the i-th cell takes the i-th value of every list that is given; a list of one value serves all.
    """

    scales: list[str] = field(default_factory=list)
    mean_recurrences: list[Annotated[int, Ge(1)]] = field(default_factory=list)
    lengths: list[PositiveFloat] = field(default_factory=list)
    seeds: list[Seed] = field(default_factory=list)
    control: Control = "none"
    zipped: bool = False


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A grid: scales x recurrences x lengths x seeds x axes, plus a control at depth 1.

    Exactly one of `budgets_flops`, `tokens` and `tokens_per_param` gives the lengths. `axes` maps any key of
    a run (dotted, e.g. optimizer.muon_learning_rate) to its values. `per_scale` holds overrides per scale.
    """

    name: str | None = None
    scales: list[str] = field(default_factory=list)  # empty: the model chosen
    mean_recurrences: list[Annotated[int, Ge(1)]] = field(default_factory=list)
    control: Control = "fixed"
    budgets_flops: list[PositiveFloat] = field(default_factory=list)
    tokens: list[PositiveFloat] = field(default_factory=list)
    tokens_per_param: list[PositiveFloat] = field(default_factory=list)
    seeds: Annotated[list[Seed], MinLen(1)] = field(default_factory=lambda: [0])
    cells: dict[str, ListedCells] = field(default_factory=dict)
    axes: dict[str, list[Any]] = field(default_factory=dict)
    per_scale: dict[str, dict[str, Any]] = field(default_factory=dict)
    min_steps: Annotated[int, Gt(0)] = 20
    max_epochs: PositiveFloat = 1.0
    trunk: TrunkMode = "auto"

    def __post_init__(self) -> None:
        for scale, own in self.per_scale.items():
            if both := sorted(set(own) & set(self.axes)):
                raise ConfigError(
                    f"sweep.per_scale.{scale} and sweep.axes both set {', '.join(both)}: an axis takes its "
                    "values at every scale; keep one of the two"
                )


@dataclass(frozen=True, kw_only=True)
class AssumeConfig:
    """What `plan design=...` and `suggest=...` assume of a study that has not been run."""

    law: str | list[str] | None = None
    parameter_count: ParameterCount = "all"
    coupling: PositiveFloat = 1.0
    loop_power: PositiveFloat = 1.0
    seed_nats: PositiveFloat = 0.005
    noise_from: str | None = None
    trunk_nats: Annotated[float, Ge(0)] = 0.0
    evaluation_nats: Annotated[float, Ge(0)] = 0.0
    tail: Annotated[float, Gt(2)] | None = None
    studies: int = 1000
    analysts: int = 40
    bootstrap: int = 400
    seed: Seed = 0
    target_flops: PositiveFloat | None = None
    margin_nats: float = 0.01
    quantity: Literal["exponent", "optimum"] = "exponent"
    budgets_flops: list[PositiveFloat] = field(default_factory=list)
    recurrences: list[Annotated[int, Ge(2)]] = field(default_factory=lambda: list(range(2, 34, 2)))
    max_runs: Annotated[int, Ge(16)] = 72
    max_seeds: Annotated[int, Ge(1)] = 2


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A composed command: one run template per scale, the sweep over them and the machine."""

    runs: dict[str, RunConfig]  # by scale
    sweep: SweepConfig = field(default_factory=SweepConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    root: str = "runs"
    cache: str = "runs/.data"
    format: Literal["text", "json"] = "text"
    confirm: bool = True
    quick: bool = False
    retry_failed: bool = False
    dry_run: bool = False
    calibrate: bool = False
    run: str | None = None
    tasks: list[Annotated[str, MinLen(1)]] = field(default_factory=list)
    design: Literal[False, True, "search"] = False
    suggest: Annotated[int, Ge(1)] | None = None
    allowance: float | str | None = None
    assume: AssumeConfig = field(default_factory=AssumeConfig)


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """What every command on a launched sweep takes."""

    sweep: Annotated[str, MinLen(1)]
    root: str = "runs"
    format: Literal["text", "json"] = "text"

    @property
    def folder(self) -> Path:
        """Return the sweep's folder."""
        return Path(self.root) / self.sweep


@dataclass(frozen=True, kw_only=True)
class StatusConfig(TableConfig):
    """`loopscale status`; `run` is a run id of the sweep, or the end of one."""

    watch: bool = False
    run: str | None = None


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
    """`loopscale fit`, `report` and `compare`; beside the table's, the fields of `analysis.FitConfig`.

    `data` stands in for the collected sweep: a CSV, a folder of tables, or wandb:ENTITY/PROJECT.
    """

    data: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    law: str = "isoflop"
    x: Literal["params", "tokens"] = "params"
    bootstrap: int = 1000
    seed: int = 0
    confidence: float = 0.95
    resampling: str = "noise"
    block: str = "trunk_id"
    shared_noise: float = 1.0
    huber_delta: float = 1e-3
    parameter_count: str = "non_embedding"
    validation: bool = True
    max_epochs: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """`loopscale export`: one model's config, weights and tokenizer as a folder that stands alone."""

    checkpoint: Annotated[str, MinLen(1)]
    folder: Annotated[str, MinLen(1)]
    cache: str = "runs/.data"
    published: bool = False


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """`loopscale generate`; a depth of None stands for the model's mean recurrence."""

    checkpoint: Annotated[str, MinLen(1)]
    prompt: str
    cache: str = "runs/.data"
    tokens: Annotated[int, Gt(0)] = 64
    depth: Annotated[int, Gt(0)] | None = None
    temperature: Annotated[float, Ge(0)] = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """`loopscale eval` of one run, a checkpoint's folder or all finished runs of a sweep.

    `run` is a folder, or with `sweep` a run id or the end of one.

    Without `tasks`, the validation loss of a run, or of a checkpoint on the data of the run `data`; None
    stands for that run's own evaluation settings.
    """

    run: Annotated[str, MinLen(1)] | None = None
    checkpoint: Annotated[str, MinLen(1)] | None = None
    sweep: Annotated[str, MinLen(1)] | None = None
    root: str = "runs"
    cache: str = "runs/.data"
    format: Literal["text", "json"] = "text"
    data: Annotated[str, MinLen(1)] | None = None
    blocks: Annotated[int, Gt(1)] | None = None
    max_depth: Annotated[int, Gt(0)] | None = None
    tasks: Annotated[list[Annotated[str, MinLen(1)]], MinLen(1)] | None = None
    bundle: Annotated[str, MinLen(1)] | None = None
    depths: Annotated[list[Annotated[int, Gt(0)]], MinLen(1)] | None = None
    seeds: Annotated[list[Seed], MinLen(1)] = field(default_factory=lambda: [1234])
    limit: Annotated[int, Gt(0)] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    token_budget: Annotated[int, Gt(0)] | None = None
    folder: Annotated[str, MinLen(1)] | None = None

    def __post_init__(self) -> None:
        if self.tasks is not None:
            if self.data is not None:
                raise ValueError("data is for the validation loss: leave out data or tasks")
            return
        if (self.run is None) == (self.checkpoint is None):
            raise ValueError(
                "set run=..., or checkpoint=... with data=RUN; a whole sweep=... needs tasks=..."
            )
        if self.run is None and self.data is None:
            raise ValueError(
                "data is not set: data=RUN names the run whose held-out data the checkpoint is scored on"
            )


# The settings of every command on finished runs, whose defaults are conf/table/<command>.yaml.
TABLES: dict[str, type] = {
    "eval": EvalConfig,
    "export": ExportConfig,
    "generate": GenerateConfig,
    "status": StatusConfig,
    "cancel": ChangeConfig,
    "retry": ChangeConfig,
    "collect": CollectConfig,
    "sync": SyncConfig,
    "fit": FitTableConfig,
    "report": FitTableConfig,
    "compare": FitTableConfig,
}
