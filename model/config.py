"""The configuration of a model and of its loop: exactly the fields that change what is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

GATE_CHANNELS = 32  # a value-embedding gate reads at most this many leading channels of the normed stream

# The upper ends only stop what a damaged file may ask for before anything of that size is made.
Positive = Annotated[int, Gt(0), Le(1 << 24)]
Count = Annotated[int, Ge(0), Le(4096)]  # of layers


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One looped or plain transformer; the defaults are those of the paper.

    A plain transformer keeps all its layers in `prelude_layers` and ignores the fields of the loop.

    Raises
    ------
    ValueError : fields that contradict each other, in one line.
    """

    kind: Literal["looped", "transformer"] = "looped"
    width: Positive
    heads: Positive
    kv_heads: Positive | None = None  # key/value heads; None: as many as `heads`
    mlp: Literal["relu2", "swiglu"] = "relu2"
    mlp_width: Positive | None = None  # None: 4 * width

    prelude_layers: Count
    core_layers: Count
    coda_layers: Count
    vocabulary_size: Positive
    sequence_length: Annotated[int, Gt(0), Le(1 << 20)]  # tokens

    injection: Literal["diagonal", "linear", "add"] = "diagonal"
    exact_zero_order_hold: bool = False  # input gain (1 - exp(-dt a)) / a in place of Euler's dt
    prelude_norm: bool = True  # norm between prelude and loop
    readout: bool = True  # the matrix C between loop and coda
    state_init: Literal["like-init", "zero"] = "like-init"

    mean_recurrence: Annotated[float | int, Ge(1), Le(4096)] = 8  # µ, mean number of loops
    backprop_depth: Positive | None = None  # loops that carry gradient at most; None: ceil(µ / 2)
    depth_sampling: Literal["poisson", "poisson_lognormal", "stratified", "fixed"] = "poisson"
    depth_per: Literal["sequence", "batch"] = "sequence"

    value_embeddings: bool = True
    value_embedding_wiring: Literal["matched", "published"] = "matched"  # see `gated_layers`
    rope_theta: Annotated[float, Gt(0), Le(1e15)] = 50_000.0
    norm_eps: Annotated[float, Gt(0), Le(1)] = 1e-5

    def __post_init__(self) -> None:
        if float(self.mean_recurrence).is_integer():  # 8 and 8.0 are one model, so they must be one identity
            object.__setattr__(self, "mean_recurrence", int(self.mean_recurrence))
        if self.width % self.heads or self.head_dim % 2:
            raise ValueError(
                f"width must be an even multiple of heads (rotary pairs), got width={self.width} "
                f"heads={self.heads}; try width={2 * self.heads * max(1, round(self.width / 2 / self.heads))}"
            )
        if self.heads % self.resolved_kv_heads:
            raise ValueError(f"kv_heads must divide heads={self.heads}, got kv_heads={self.kv_heads}")
        if self.kind == "looped" and self.core_layers == 0:
            raise ValueError(
                "a looped model needs core_layers >= 1, got 0; a model without a loop is kind=transformer"
            )
        if self.kind == "transformer" and (self.core_layers or self.coda_layers):
            raise ValueError(
                f"a transformer has all its layers in prelude_layers, got core_layers={self.core_layers} "
                f"coda_layers={self.coda_layers}; set both to 0"
            )
        if self.depth_sampling == "fixed" and not isinstance(self.mean_recurrence, int):
            raise ValueError(
                f"depth_sampling=fixed needs a whole mean_recurrence, got {self.mean_recurrence}; "
                f"try {round(self.mean_recurrence)}"
            )

    @property
    def head_dim(self) -> int:
        """Return the number of channels of one attention head."""
        return self.width // self.heads

    @property
    def resolved_kv_heads(self) -> int:
        """Return the number of key/value heads."""
        return self.kv_heads or self.heads

    @property
    def kv_width(self) -> int:
        """Return the number of channels of all keys, of all values and of a value-embedding row."""
        return self.resolved_kv_heads * self.head_dim

    @property
    def resolved_mlp_width(self) -> int:
        """Return the number of hidden channels of the MLP."""
        return self.mlp_width or 4 * self.width

    @property
    def resolved_backprop_depth(self) -> int:
        """Return µ_bwd, the number of last loops that carry gradient: ceil(µ / 2) unless set."""
        return self.backprop_depth or max(1, math.ceil(self.mean_recurrence / 2))

    @property
    def own_depth(self) -> int:
        """Return the depth T = µ at which the model is evaluated by default; 1 for a model without a loop."""
        return round(self.mean_recurrence) if self.kind == "looped" else 1

    @property
    def gate_channels(self) -> int:
        """Return how many leading channels a value-embedding gate reads."""
        return min(GATE_CHANNELS, self.width)

    @property
    def layers(self) -> int:
        """Return the number of layers of prelude, core and coda, each counted once."""
        return self.prelude_layers + self.core_layers + self.coda_layers

    @property
    def table_kind(self) -> Literal["looped", "fixed", "transformer"]:
        """Return the kind of model in tables: "fixed" is a looped model whose depth is always exactly 1.

        The published control at µ = 1 samples a clamped Poisson (mean depth 1.37) and is therefore "looped".
        """
        if self.kind == "looped" and self.depth_sampling == "fixed" and self.mean_recurrence == 1:
            return "fixed"
        return self.kind


def value_table_layers(config: ModelConfig) -> tuple[int, ...]:
    """Return the layers that own a table: every second one of all, counted back from the last."""
    if not config.value_embeddings:
        return ()
    return tuple(i for i in range(config.layers) if (config.layers - 1 - i) % 2 == 0)


def gated_layers(config: ModelConfig) -> tuple[int, ...]:
    """Return the layers that own a gate: those with a table, unless the wiring is the published one.

    The published code numbers core layers by core_layers * backprop_depth and coda layers after all loops, so
    that with an odd core gates and tables lie on different layers; these exist but are never used.
    """
    if config.value_embedding_wiring == "matched" or config.kind == "transformer":
        return value_table_layers(config)
    if not config.value_embeddings:
        return ()
    last = config.core_layers * config.resolved_backprop_depth - 1
    coda_shift = round(config.core_layers * config.mean_recurrence) - config.core_layers
    coda_start = config.prelude_layers + config.core_layers
    ids = [i + coda_shift if i >= coda_start else i for i in range(config.layers)]
    return tuple(i for i, layer_id in enumerate(ids) if (last - layer_id) % 2 == 0)
