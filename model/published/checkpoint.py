"""Published checkpoints: parameter names, config and files, both ways."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig
from model.config_validation import ConfigError, build
from model.outside_files import check_regular, read_json_object
from model.published.config import config_from_published, config_to_published
from model.published.transformers_layout import PREFIX, config_for_transformers, is_for_transformers
from model.transformer import LoopedTransformer, build_model, model_from_weights

LISTED = 20  # names of tensors in an error
Layout = Literal["loopscale", "published", "transformers"]

_EXACT = {
    "transformer.wte.weight": "embedding",
    "transformer.ln_f.weight": "final_norm.weight",
    "transformer.ln_prelude.weight": "prelude_norm.weight",
    "transformer.C.weight": "readout.weight",
}
_PREFIX = {
    "transformer.prelude.": "prelude.",
    "transformer.core_block.": "core.",
    "transformer.coda.": "coda.",
    "transformer.adapter.": "injection.",
}
_TRANSFORMER_PREFIX = {"transformer.h.": "prelude."}
# The head is tied to the embedding (and unused in the plain transformer), the angles are recomputed.
_LEFT_OUT = ("lm_head.weight", "freqs_cis")


def our_name(published: str) -> str | None:
    """Return our name of a published parameter; None if our model has no such parameter."""
    if published in _EXACT:
        return _EXACT[published]
    for theirs, ours in {**_PREFIX, **_TRANSFORMER_PREFIX}.items():
        if published.startswith(theirs):
            return ours + published.removeprefix(theirs)
    if published.startswith("value_embeds."):
        return "value_tables." + published.removeprefix("value_embeds.").removesuffix(".weight")
    return None


def published_name(ours: str, kind: str) -> str:
    """Return the published name of a parameter of a model of this kind."""
    for theirs, name in _EXACT.items():
        if name == ours:
            return theirs
    if ours.startswith("value_tables."):
        return f"value_embeds.{ours.removeprefix('value_tables.')}.weight"
    prefixes = _TRANSFORMER_PREFIX if kind == "transformer" else _PREFIX
    for theirs, prefix in prefixes.items():
        if ours.startswith(prefix):
            return theirs + ours.removeprefix(prefix)
    raise ValueError(f"no published name for parameter {ours}")


def check_weights(config: ModelConfig, tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that these tensors are the weights of a model, under our names.

    Raises
    ------
    ConfigError : missing, unexpected or wrongly shaped tensors, all of them named; a tensor of something else
        than floating-point numbers, or whose numbers are not finite.
    """
    _check_shapes(config, tensors, source)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.device.type != "cpu":
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ConfigError(
                f"{source}: {name} holds {kind}, a dense array of floating-point numbers is needed"
            )
        if not torch.isfinite(tensor).all():
            raise ConfigError(f"{source}: {name} holds numbers that are not finite: its training diverged")


def _check_shapes(config: ModelConfig, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise ConfigError unless names and shapes are those of the model."""
    if config.layers > len(tensors):  # every layer has several; a damaged config may ask for any number
        raise ConfigError(f"{source} has {len(tensors)} tensors, too few for {config.layers} layers")
    model = build_model(config, seed=None, device="meta")
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if given == expected:
        return
    misshaped = [
        f"{name} {given[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & given)
        if given[name] != expected[name]
    ]
    raise ConfigError(
        f"{source} does not fit its config: missing {_listed(expected.keys() - given)}, unexpected "
        f"{_listed(given.keys() - expected)}, misshaped {_listed(misshaped)}"
    )


def _listed(names: Collection[str]) -> str:
    first = sorted(names)[:LISTED]
    return str(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or torch file; code inside a pickle is never executed.

    Raises
    ------
    ConfigError : a damaged file, or one that holds more than tensors.
    OSError : it cannot be read.
    """
    check_regular(path)
    try:
        if path.suffix == ".safetensors":
            tensors: Any = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise anything, from KeyError to struct.error
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ConfigError(
            f"{path} is damaged or holds more than tensors, nothing was run: {reason}"
        ) from None
    if isinstance(tensors, dict) and isinstance(tensors.get("model"), dict):
        tensors = tensors["model"]
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise ConfigError(
            f"{path} holds no state dict: expected names with tensors, got {type(tensors).__name__}"
        )
    return tensors


def load_model(folder: Path) -> LoopedTransformer:
    """Load a published checkpoint or one of our exports, whatever its layout, in float32.

    The folder holds config.json beside model.safetensors or pytorch_model.bin.

    Raises
    ------
    ConfigError : no weights, a config or tensors that do not fit our model.
    """
    values = read_json_object(folder / "config.json")
    paths = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    source = next((path for path in paths if path.exists()), None)
    if source is None:
        raise ConfigError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
    published, for_transformers = "n_embd" in values, is_for_transformers(values)
    try:
        if published:
            config = config_from_published(values)
        else:
            config = build(ModelConfig, _fields(values) if for_transformers else values)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from None
    tensors = read_tensors(source)
    if published:
        kept = {name: value for name, value in tensors.items() if not _is_left_out(name)}
        tensors = {our_name(name) or name: value for name, value in kept.items()}
    if for_transformers:
        tensors = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    check_weights(config, tensors, str(source))
    # Copied, as the file may be written again, and in it tensors lie at any address, where a matrix product
    # may end in other bits.
    weights = {name: value.to(torch.float32, copy=True) for name, value in tensors.items()}
    return model_from_weights(config, weights)


def _fields(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of ModelConfig in the config.json of an export for transformers."""
    fields = values.get("model")
    if not isinstance(fields, Mapping):
        raise ConfigError(f"model={fields!r} must be a group of keys")
    return fields


def _is_left_out(name: str) -> bool:
    return name.removeprefix("transformer.") in _LEFT_OUT


def export_model(model: LoopedTransformer, folder: Path, *, layout: Layout = "loopscale") -> None:
    """Write config.json and model.safetensors, under our names or in another layout.

    Raises
    ------
    ValueError : the published layout cannot express the config; nothing is written then.
    """
    values = _config(model.config, layout)
    tensors = {
        _name(name, model.config, layout): value.detach().cpu().contiguous()
        for name, value in model.named_parameters()
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".model.safetensors.partial"
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n")
    save_file(tensors, partial, {"format": "pt"} if layout == "transformers" else None)
    # safetensors makes files that their owner alone may read, whatever the umask.
    partial.chmod((folder / "config.json").stat().st_mode)
    partial.replace(folder / "model.safetensors")


def _config(config: ModelConfig, layout: Layout) -> dict[str, Any]:
    if layout == "published":
        return config_to_published(config)
    return config_for_transformers(config) if layout == "transformers" else asdict(config)


def _name(name: str, config: ModelConfig, layout: Layout) -> str:
    if layout == "published":
        return published_name(name, config.kind)
    return PREFIX + name if layout == "transformers" else name
