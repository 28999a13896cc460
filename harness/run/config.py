"""Configuration of one run as checked dataclasses, and its file config.yaml. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from annotated_types import Ge, Gt, Lt, MinLen
from pydantic_core import to_json

from harness.data.dataset import DataConfig
from model.config import ModelConfig
from model.config_validation import ConfigError, build
from model.flops import Accounting, flops_per_token

CONFIG = "config.yaml"
# libyaml's, where it is built in: ten times as fast
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

Rate = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Constants of the optimiser; the defaults are those of the published 140M and 370M runs."""

    name: Literal["muon_adamw", "adamw"] = "muon_adamw"

    adamw_learning_rate: Rate = 8e-3  # peak
    adamw_beta1: Fraction = 0.8
    adamw_beta2: Fraction = 0.95
    adamw_eps: Rate = 1e-10
    adamw_weight_decay: Rate = 0.0  # peak; of matrices and tables, vectors never decay

    muon_learning_rate: Rate = 8e-3  # peak
    muon_weight_decay: Rate = 0.2  # peak
    cautious_weight_decay: bool = True  # decay only the weights that the update shrinks too
    muon_momentum: Fraction = 0.95
    muon_momentum_start: Fraction = 0.85
    muon_momentum_warmup_steps: Annotated[int, Ge(0)] = 300
    muon_variance_beta2: Fraction = 0.95
    newton_schulz_steps: Annotated[int, Gt(0), Lt(6)] = 5
    newton_schulz_dtype: Literal["float32", "bfloat16"] = "float32"  # published: bfloat16, slow on most CPUs
    muon_value_gates: bool = True  # value-embedding gates under Muon, as in the code; the text says AdamW

    # mup_width scales AdamW's rates by lr_base_width / width (see `harness.optim.parameter_groups`).
    lr_scaling: Literal["none", "mup_width"] = "none"
    lr_base_width: Annotated[int, Gt(0)] | None = None  # the width that the rates were tuned at

    def __post_init__(self) -> None:
        if self.lr_scaling == "mup_width" and self.lr_base_width is None:
            raise ValueError(
                "lr_scaling=mup_width needs lr_base_width, the width that the rates were tuned at"
            )
        if self.lr_scaling == "none" and self.lr_base_width is not None:
            raise ValueError(
                f"lr_base_width={self.lr_base_width} has no effect with lr_scaling=none: "
                "set lr_scaling=mup_width or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Factors of the peak learning rate and weight decay over the steps.

    With weight_decay="follow" the stable phase of a trapezoid depends only on the step, and runs of different
    lengths can share it. "linear" is the published decay to zero over the whole run.
    """

    shape: Literal["trapezoid", "cosine", "linear"] = "trapezoid"
    warmup_steps: Annotated[int, Ge(0)] = 0
    cooldown_fraction: Fraction = 0.5
    weight_decay: Literal["follow", "linear", "constant"] = "follow"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Batch, clipping, precision, devices, and intervals of logs and checkpoints."""

    batch_sequences: Annotated[int, Gt(0)] = 16  # over all processes
    packing: Literal["blocks", "best_fit"] = "blocks"  # documents into sequences; conf/ chooses best_fit
    document_mask: bool = False  # attention stays within a document
    max_epochs: Annotated[float, Gt(0)] = 1.0  # training tokens over unique tokens; more is refused
    micro_batch: Annotated[int, Gt(0)] | None = None  # sequences at once on a device; None: found
    gradient_clip: Annotated[float, Gt(0)] = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"  # several processes: whole replicas, or sharded weights (FSDP2)
    threads: Annotated[int, Gt(0)] | None = None  # None: as torch chooses
    compile: bool = False
    deterministic: bool = True  # false: faster kernels on a GPU; a resumed run has other bits
    checkpoint_loops: bool = False  # recompute each loop in the backward pass: less memory, more time
    kernels: Literal["auto", "reference", "cpu"] = "auto"  # how a step is computed: `model.kernels`
    log_every: Annotated[int, Gt(0)] = 10  # steps
    checkpoint_every_s: Annotated[float, Gt(0)] = 300.0
    keep_checkpoints: Annotated[int, Gt(0)] = 2
    checkpoint_at: list[Annotated[int, Gt(0)]] = field(default_factory=list)  # steps, kept for good
    peak_flops_per_s: Annotated[float, Gt(0)] | None = None  # of a device; None: by its name, else measured
    device_peaks: dict[str, Annotated[float, Gt(0)]] = field(default_factory=dict)  # FLOP/s by part of a name

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch > self.batch_sequences:
            raise ValueError(
                f"micro_batch={self.micro_batch} is more than batch_sequences={self.batch_sequences}: "
                f"at most {self.batch_sequences}"
            )
        if self.kernels == "cpu" and (self.device == "cuda" or self.precision == "bfloat16"):
            raise ValueError(
                f"kernels=cpu computes in float32 on a CPU, got device={self.device} "
                f"precision={self.precision}; use kernels=auto"
            )


@dataclass(frozen=True, kw_only=True)
class GuardrailsConfig:
    """Criteria of divergence, of a hang and of a lost process, and the interval of the spectral radius."""

    max_skipped_steps: Annotated[int, Gt(0)] = 10  # in a row, for a loss or gradient that is not finite
    average_steps: Annotated[int, Gt(1)] = 50  # horizon of the running mean and spread of the loss
    spike_deviations: Annotated[float, Gt(0)] = 6.0  # a loss this many deviations above its mean is a spike
    max_rise_nats: Annotated[float, Gt(0)] | None = 3.0  # running mean above its lowest value; None: no limit
    spectral_radius_every: Annotated[int, Gt(0)] = 100  # steps
    hang_s: Annotated[float, Gt(0)] = 600.0  # without a step, and 20 times its median time: the run hangs
    peer_timeout_s: Annotated[float, Gt(0)] = 900.0  # that one process waits for another, at any time


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The fixed held-out blocks and the depths at which they are scored."""

    blocks: Annotated[int, Gt(1)] = 64
    batch_blocks: Annotated[int, Gt(0)] = 16
    max_depth: Annotated[int, Gt(0)] = 24


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    """Destination of metrics in addition to metrics.jsonl.

    Raises ValueError if mode=online is set without wandb.
    """

    name: Literal["none", "wandb"] = "none"
    mode: Literal["offline", "online"] = "offline"
    project: Annotated[str, MinLen(1)] = "loopscale"
    entity: Annotated[str, MinLen(1)] | None = None

    def __post_init__(self) -> None:
        if self.name == "none" and self.mode == "online":
            raise ValueError("logger.mode=online logs nowhere with logger.name=none: set logger=wandb")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run; exactly one of budget_flops, tokens, tokens_per_param and steps is set."""

    scale: str
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    guardrails: GuardrailsConfig = field(default_factory=GuardrailsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: Annotated[int, Ge(0)] = 0
    accounting: Accounting = "paper"
    budget_flops: Annotated[float, Gt(0)] | None = None
    tokens: Annotated[float, Gt(0)] | None = None
    tokens_per_param: Annotated[float, Gt(0)] | None = None
    steps: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps={self.schedule.warmup_steps} leaves nothing of steps={self.steps}: "
                f"at most {self.steps - 1}"
            )

    @property
    def batch_tokens(self) -> int:
        """Tokens in one optimiser step."""
        return self.training.batch_sequences * self.model.sequence_length

    @property
    def nominal_flops_per_token(self) -> float:
        """FLOPs per token at the mean recurrence and the backprop depth, under the run's accounting."""
        model = self.model
        flops = flops_per_token(model, self.accounting)
        return flops.at(model.mean_recurrence, model.resolved_backprop_depth)


def parse_config(text: str, path: Path) -> RunConfig:
    """Return the configuration in `text`. Raises ConfigError naming `path` if it is damaged."""
    try:
        fields = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} is damaged: it holds no settings")
    try:
        return build(RunConfig, fields)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def config_text(run: RunConfig) -> str:
    """Return `run` as YAML."""
    return "".join(_yaml(item.name, to_json(getattr(run, item.name))) for item in dataclasses.fields(run))


@lru_cache(maxsize=4096)
def _yaml(name: str, content: bytes) -> str:
    # Cached, because thousands of runs of a sweep share most sections and YAML is slow to write.
    return str(yaml.dump({name: json.loads(content)}, Dumper=_Dumper, sort_keys=False))
