"""The configuration of a study: its grid, its assumptions, its cluster and its folders; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, MinLen

from harness.run.config import RunConfig
from model.config_validation import ConfigError, check_name
from sweeps.config.cluster import ClusterConfig, RetryConfig
from sweeps.config.numerics import Device

PositiveFloat = Annotated[float, Gt(0)]
Seed = Annotated[int, Ge(0)]
# The comparison at depth 1: exactly one loop, always; or the published clamped Poisson of mean 1.37.
Control = Literal["fixed", "poisson", "none"]
# Whether runs that differ in length alone are trained through a shared trunk: where it is exact, or refuse.
TrunkMode = Literal["auto", True, False]
Asked = Literal[
    "exponent", "exponent_tokens", "optimum", "optimum_tokens", "looped_or_fixed", "multiplier", "rate"
]
ParameterCount = Literal["non_embedding", "no_token_embedding", "all", "flops_over_six"]


@dataclass(frozen=True, kw_only=True)
class ListedCells:
    """Cells beside the product, such as replicate seeds; an empty list stands for the sweep's own values.

    If `zipped`, cell i takes value i of every list, and a list of one value serves all cells.
    """

    scales: list[str] = field(default_factory=list)
    mean_recurrences: list[Annotated[int, Ge(1)]] = field(default_factory=list)
    lengths: list[PositiveFloat] = field(default_factory=list)
    seeds: list[Seed] = field(default_factory=list)
    control: Control = "none"
    zipped: bool = False


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """Plain transformers beside every looped run, which `compare against=transformer` reads.

    At its "depth" they have its layers, each counted once, and the widths `sizes`; at its "width", `sizes`
    layers. They are trained at the looped run's tokens, at its training FLOPs, or both.
    """

    at: Literal["depth", "width"]
    sizes: Annotated[list[Annotated[int, Ge(1)]], MinLen(5)]
    equal: Annotated[list[Literal["tokens", "flops"]], MinLen(1)] = field(default_factory=lambda: ["tokens"])
    seeds: list[Seed] = field(default_factory=list)  # empty: the sweep's


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A grid: scales x recurrences x lengths x seeds x axes, plus a control at depth 1.

    Exactly one of `budgets_flops`, `tokens` and `tokens_per_param` gives the lengths.
    """

    ALSO_CALLED: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("budgets", "flops"), "budgets_flops"),
        **dict.fromkeys(("mu", "recurrences", "mean_recurrence", "loops"), "mean_recurrences"),
        "scale": "scales",
    }

    name: str | None = None
    scales: list[str] = field(default_factory=list)  # empty: the model chosen
    mean_recurrences: list[Annotated[int, Ge(1)]] = field(default_factory=list)
    control: Control = "fixed"
    budgets_flops: list[PositiveFloat] = field(default_factory=list)
    tokens: list[PositiveFloat] = field(default_factory=list)
    tokens_per_param: list[PositiveFloat] = field(default_factory=list)
    seeds: Annotated[list[Seed], MinLen(1)] = field(default_factory=lambda: [0])
    cells: dict[str, ListedCells] = field(default_factory=dict)
    ladder: LadderConfig | None = None
    axes: dict[str, list[Any]] = field(default_factory=dict)  # values by dotted key of a run
    per_scale: dict[str, dict[str, Any]] = field(default_factory=dict)  # overrides by scale
    min_steps: Annotated[int, Gt(0)] = 20  # shorter cells are dropped
    max_epochs: PositiveFloat = 1.0  # of the training data; longer cells are dropped
    trunk: TrunkMode = "auto"

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name("sweep.name", self.name)
        for scale in self.scales:
            check_name("sweep.scales", scale)
        for scale, own in self.per_scale.items():
            if both := sorted(set(own) & set(self.axes)):
                raise ConfigError(
                    f"sweep.per_scale.{scale} and sweep.axes both set {', '.join(both)}: remove one of them; "
                    "an axis takes its values at every scale"
                )


@dataclass(frozen=True, kw_only=True)
class AssumeConfig:
    """The assumptions of `plan design=...` and `suggest=...`; conf/loopscale.yaml explains each."""

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
    devices: dict[str, Device] = field(default_factory=dict)  # by scale: what `auto` was resolved for
    overrides: list[str] = field(default_factory=list, compare=False)  # of which it was composed
    profile: list[str] = field(default_factory=list)  # the overrides that chose the cluster
    root: str = "runs"
    cache: str = "runs/.data"
    format: Literal["text", "json"] = "text"
    confirm: bool = True
    quick: bool = False
    retry_failed: bool = False
    resubmit: bool = False
    dry_run: bool = False
    calibrate: bool = False
    run: str | None = None
    tasks: list[Annotated[str, MinLen(1)]] = field(default_factory=list)
    design: Literal[False, True, "search"] = False
    suggest: Annotated[int, Ge(1)] | None = None
    allowance: float | str | None = None
    question: Asked = "exponent"
    target_width: PositiveFloat = 0.1
    confirm_rounds: bool = False
    detach: bool = False
    assume: AssumeConfig = field(default_factory=AssumeConfig)
