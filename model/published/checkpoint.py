"""Published checkpoints: parameter names, config and files, both ways."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig
from model.config_validation import build
from model.published.config import config_from_published, config_to_published
from model.transformer import LoopedTransformer, build_model

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


def build_from_tensors(config: ModelConfig, tensors: Mapping[str, Tensor], source: str) -> LoopedTransformer:
    """Return a model with these weights, under our names.

    Raises
    ------
    ValueError : missing, unexpected or wrongly shaped tensors, all of them named.
    """
    model = build_model(config, seed=0, device="meta")
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if given != expected:
        missing, unexpected = sorted(expected.keys() - given), sorted(given.keys() - expected)
        misshaped = [
            f"{name} {given[name]} instead of {expected[name]}"
            for name in sorted(expected.keys() & given)
            if given[name] != expected[name]
        ]
        raise ValueError(
            f"{source} does not fit its config: missing {missing}, unexpected {unexpected}, "
            f"misshaped {misshaped}"
        )
    loaded = LoopedTransformer(config)
    loaded.load_state_dict(dict(tensors))
    return loaded


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or torch file; code inside a pickle is never executed.

    Raises
    ------
    ValueError : a damaged file, or one that holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            tensors: Any = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged or holds more than tensors, nothing was run: {reason}") from None
    if isinstance(tensors, dict) and isinstance(tensors.get("model"), dict):
        tensors = tensors["model"]
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(
            f"{path} holds no state dict: expected names with tensors, got {type(tensors).__name__}"
        )
    return tensors


def load_model(folder: Path) -> LoopedTransformer:
    """Load a published checkpoint or one of our exports: config.json beside its weights, in float32.

    Raises
    ------
    ValueError : no weights, a config or tensors that do not fit our model.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'config.json'} is not JSON: {error}") from None
    weights = [
        folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).exists()
    ]
    if not weights:
        raise ValueError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
    tensors = read_tensors(weights[0])
    if "n_embd" not in values:
        return build_from_tensors(build(ModelConfig, values), tensors, str(weights[0]))
    renamed = {}
    for name, value in tensors.items():
        if name.removeprefix("transformer.") not in _LEFT_OUT:
            renamed[our_name(name) or name] = value.float()
    return build_from_tensors(config_from_published(values), renamed, str(weights[0]))


def export_model(model: LoopedTransformer, folder: Path, *, published: bool = False) -> None:
    """Write config.json and model.safetensors, under our names or in the published layout.

    Raises
    ------
    ValueError : the published layout cannot express the config; nothing is written then.
    """
    config = model.config
    values = config_to_published(config) if published else asdict(config)
    tensors = {
        published_name(name, config.kind) if published else name: value.detach().cpu().contiguous()
        for name, value in model.named_parameters()
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".model.safetensors.partial"
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n")
    save_file(tensors, partial)
    # safetensors makes files that their owner alone may read, whatever the umask.
    partial.chmod((folder / "config.json").stat().st_mode)
    partial.replace(folder / "model.safetensors")
