"""The published implementation's config.json translated to our config and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from model.config import ModelConfig, gated_layers
from model.config_validation import ConfigError, build

# What a published model must say, or leave out, for ours to be the same function.
_FIXED: dict[str, Any] = {
    "bias": False,
    "tie_embeddings": True,
    "qk_norm": True,
    "logit_softcap": None,
    "block_class_name": "TransformerPreNormBlock",
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "BaseMLP",
    "nonlin_name": "ReLU2",
}
_FIXED_LOOP: dict[str, Any] = {"injection_type": "diagonal"}
_SHARED = {
    "n_embd": "width",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "mlp_width",
    "block_size": "sequence_length",
    "norm_eps": "norm_eps",
}
_LOOP = {
    "n_layers_in_prelude": "prelude_layers",
    "n_layers_in_recurrent_block": "core_layers",
    "n_layers_in_coda": "coda_layers",
    "prelude_norm": "prelude_norm",
    "state_init": "state_init",
    "mean_recurrence": "mean_recurrence",
    "mean_backprop_depth": "backprop_depth",
}
_CHOICES = {
    "sampling_scheme": (
        "depth_sampling",
        {
            "poisson-truncated-full": "poisson",
            "poisson-lognormal-filling": "poisson_lognormal",
            "fixed": "fixed",
        },
    ),
    "recurrent_iteration_method": ("depth_per", {"per-sequence": "sequence", "per-batch": "batch"}),
}

# Fields of ours with one value that the published implementation can express.
_ONLY = {
    "mlp": "relu2",
    "injection": "diagonal",
    "exact_zero_order_hold": False,
    "readout": True,
    "value_embeddings": True,
}


def config_from_published(values: Mapping[str, Any]) -> ModelConfig:
    """Return our config of a published config.json.

    Raises
    ------
    ConfigError : a missing key, or a choice that our model does not have, with the key and its value.
    """
    looped = "n_layers_in_recurrent_block" in values
    for key, expected in {**_FIXED, **(_FIXED_LOOP if looped else {})}.items():
        if values.get(key, expected) != expected:
            raise ConfigError(f"published config: {key}={values[key]!r} is not supported, only {expected!r}")
    renamed = {**_SHARED, **(_LOOP if looped else {"n_layer": "prelude_layers"})}
    fields = {ours: _need(values, theirs) for theirs, ours in renamed.items()}
    fields["vocabulary_size"] = values.get("padded_vocab_size") or _padded(values)
    rope = values.get("rope_settings", {})
    if not isinstance(rope, Mapping):
        raise ConfigError(f"published config: rope_settings={rope!r} must be a group of keys")
    fields["rope_theta"] = rope.get("rope_base", 50_000.0)
    if not looped:
        return build(ModelConfig, {**fields, "kind": "transformer", "core_layers": 0, "coda_layers": 0})
    for theirs, (ours, choices) in _CHOICES.items():
        value = _need(values, theirs)
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(
                f"published config: {theirs}={value!r} is not supported, only {', '.join(choices)}"
            )
        fields[ours] = choices[value]
    return build(ModelConfig, {**fields, "value_embedding_wiring": "published"})


def config_to_published(config: ModelConfig) -> dict[str, Any]:
    """Return the published config.json of one of our configs.

    Raises
    ------
    ConfigError : a model that the published implementation cannot express, with the field at fault.
    """
    looped = config.kind == "looped"
    for field, only in _ONLY.items():
        if getattr(config, field) != only:
            raise ConfigError(f"{field}={getattr(config, field)} has no published counterpart, only {only}")
    if gated_layers(config) != gated_layers(replace(config, value_embedding_wiring="published")):
        raise ConfigError(
            f"core_layers={config.core_layers} has no published counterpart: the value gates of that layout "
            "would sit on other layers; leave out format=published (a model to be trained for it needs "
            "model.value_embedding_wiring=published)"
        )
    fields = {**asdict(config), "mlp_width": config.resolved_mlp_width, "kv_heads": config.resolved_kv_heads}
    fields["backprop_depth"] = config.resolved_backprop_depth
    renamed = {**_SHARED, **(_LOOP if looped else {"n_layer": "prelude_layers"})}
    values = {
        **_FIXED,
        **{theirs: fields[ours] for theirs, ours in renamed.items()},
        "vocab_size": config.vocabulary_size,
        "padded_vocab_size": config.vocabulary_size,
        "rope_settings": {"rope_base": config.rope_theta},
        "init_strategy": "scaled-zero",
        "init_orthogonal": True,
    }
    if not looped:
        return values
    for theirs, (ours, choices) in _CHOICES.items():
        back = {name: published for published, name in choices.items()}
        if fields[ours] not in back:
            raise ConfigError(f"{ours}={fields[ours]} has no published counterpart, only {', '.join(back)}")
        values[theirs] = back[fields[ours]]
    return {
        **values,
        **_FIXED_LOOP,
        "recurrent_embedding_dimension": config.width,
        "recurrent_intermediation_embedding_dimension": config.resolved_mlp_width,
    }


def _need(values: Mapping[str, Any], key: str) -> Any:
    if key not in values:
        raise ConfigError(f"published config: {key} is missing")
    return values[key]


def _padded(values: Mapping[str, Any]) -> int:
    sizes = {"vocab_size": _need(values, "vocab_size"), "padding_multiple": values.get("padding_multiple", 1)}
    for key, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ConfigError(f"published config: {key}={size!r} must be a positive integer")
    return -(-sizes["vocab_size"] // sizes["padding_multiple"]) * int(sizes["padding_multiple"])
