"""Everything that configures one run, as checked dataclasses; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt, MinLen

from harness.data_config import DataConfig
from model.config import ModelConfig
from model.flops import Accounting

Rate = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Set every constant of the optimiser; the defaults are those of the published 140M and 370M runs."""

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


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How learning rate and weight decay move over the steps; factors multiply the peaks.

    The stable phase of a trapezoid depends on the step alone when `weight_decay` is "follow", so that runs
    of different lengths share it; "linear" is the published decay to zero over the whole run.
    """

    shape: Literal["trapezoid", "cosine", "linear"] = "trapezoid"
    warmup_steps: Annotated[int, Ge(0)] = 0
    cooldown_fraction: Fraction = 0.5
    weight_decay: Literal["follow", "linear", "constant"] = "follow"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The step: batch, clipping, precision, device, and how often something is written."""

    batch_sequences: Annotated[int, Gt(0)] = 16
    packing: Literal["blocks", "best_fit"] = "blocks"  # documents into sequences; conf/ chooses best_fit
    document_mask: bool = False  # attention stays within a document
    max_epochs: Annotated[float, Gt(0)] = 1.0  # training tokens over unique tokens; more is refused
    micro_batch: Annotated[int, Gt(0)] | None = None  # sequences; None: the whole batch
    gradient_clip: Annotated[float, Gt(0)] = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Gt(0)] | None = None  # None: as torch chooses
    compile: bool = False
    log_every: Annotated[int, Gt(0)] = 10  # steps
    checkpoint_every_s: Annotated[float, Gt(0)] = 300.0
    keep_checkpoints: Annotated[int, Gt(0)] = 2


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The fixed held-out blocks and the depths at which they are scored."""

    blocks: Annotated[int, Gt(1)] = 64
    batch_blocks: Annotated[int, Gt(0)] = 16
    max_depth: Annotated[int, Gt(0)] = 24


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    """Where metrics go beside metrics.jsonl.

    Raises ValueError where keys of wandb are set without wandb.
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
    """One run. Exactly one of budget_flops, tokens, tokens_per_param and steps says how long it trains."""

    scale: str
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: Annotated[int, Ge(0)] = 0
    accounting: Accounting = "paper"
    budget_flops: Annotated[float, Gt(0)] | None = None
    tokens: Annotated[float, Gt(0)] | None = None
    tokens_per_param: Annotated[float, Gt(0)] | None = None
    steps: Annotated[int, Gt(0)] | None = None

    @property
    def batch_tokens(self) -> int:
        """Tokens in one optimiser step."""
        return self.training.batch_sequences * self.model.sequence_length
