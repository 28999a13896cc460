"""The ladder of a sweep: plain transformers of several sizes beside each looped model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from harness.run.config import RunConfig
from harness.run.length import BudgetError, solve
from model.config import ModelConfig
from model.config_validation import ConfigError
from sweeps.config.study import LadderConfig


def ladder_models(looped: ModelConfig, ladder: LadderConfig) -> dict[str, ModelConfig]:
    """Return the transformers beside a looped model by name, `transformer_LAYERSxWIDTH`.

    They have its layers, each counted once, and the widths `sizes`, or its width and `sizes` layers.

    Raises
    ------
    ConfigError : a width is no multiple of the looped model's head dimension.
    """
    models = {}
    for size in ladder.sizes:
        layers, width = (looped.layers, size) if ladder.at == "depth" else (size, looped.width)
        if width % looped.head_dim:
            raise ConfigError(
                f"sweep.ladder.sizes: a width of {width} is no multiple of the head dimension "
                f"{looped.head_dim}; try {max(1, round(width / looped.head_dim)) * looped.head_dim}"
            )
        models[f"transformer_{layers}x{width}"] = _transformer(looped, layers, width)
    return models


@cache  # so that a model's properties are computed once
def _transformer(looped: ModelConfig, layers: int, width: int) -> ModelConfig:
    """Return a transformer with the looped model's head dimension and shares of width."""
    heads = width // looped.head_dim
    kv_heads = looped.kv_heads and max(1, round(looped.kv_heads * heads / looped.heads))
    while kv_heads and heads % kv_heads:
        kv_heads -= 1
    return ModelConfig(
        kind="transformer",
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        mlp=looped.mlp,
        mlp_width=looped.mlp_width and round(looped.mlp_width * width / looped.width),
        prelude_layers=layers,
        core_layers=0,
        coda_layers=0,
        vocabulary_size=looped.vocabulary_size,
        sequence_length=looped.sequence_length,
        value_embeddings=looped.value_embeddings,
        rope_theta=looped.rope_theta,
        norm_eps=looped.norm_eps,
    )


def equal_lengths(looped: RunConfig, ladder: LadderConfig) -> Iterator[dict[str, Any]]:
    """Yield the length of a transformer at the tokens and at the training FLOPs of a looped run.

    FLOPs are nominal, those of the looped run's whole steps unless it has a budget; too short a run has none.
    """
    try:
        steps = solve(looped).steps
    except BudgetError:
        return
    assert steps is not None
    tokens = steps * looped.batch_tokens
    lengths: dict[str, Any] = dict.fromkeys(("budget_flops", "tokens", "tokens_per_param", "steps"))
    if "tokens" in ladder.equal:
        yield lengths | {"tokens": float(tokens)}
    if "flops" in ladder.equal:
        yield lengths | {"budget_flops": looped.budget_flops or tokens * looped.nominal_flops_per_token}
