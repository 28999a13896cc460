"""The files of an export for transformers, which need not be installed to write or read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.config import ModelConfig

MODEL_TYPE = "loopscale"
STATE_SEED = 1234  # of `loopscale eval` and lm_eval
PREFIX = "model."  # of the weights


def is_for_transformers(values: Mapping[str, Any]) -> bool:
    """Return True if a config.json is that of an export for transformers."""
    return values.get("model_type") == MODEL_TYPE


def config_for_transformers(config: ModelConfig) -> dict[str, Any]:
    """Return the config.json of a model, its token ids left out."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["LoopscaleForCausalLM"],
        "dtype": "float32",
        "model": asdict(config),
        "depth": None,
        "state_seed": STATE_SEED,
    }


def write_tokenizer_files(folder: Path, config: ModelConfig, bos: int, bos_token: str) -> None:
    """Write what transformers reads beside tokenizer.json.

    Documents begin with the token `bos`, which therefore also ends the one before.
    """
    ids = {"bos_token_id": bos, "eos_token_id": bos, "pad_token_id": bos}
    values = json.loads((folder / "config.json").read_text())
    _write(folder / "config.json", {**values, **ids})
    _write(folder / "generation_config.json", ids)
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos_token,
        "eos_token": bos_token,
        "pad_token": bos_token,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.sequence_length,
    }
    _write(folder / "tokenizer_config.json", tokenizer)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")
