"""Which layers carry a value-embedding table, a gate, or both."""

from __future__ import annotations

from model.config import ModelConfig


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
