"""Loads the numbers that were computed with the published implementation."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.published.checkpoint import our_name
from model.transformer import LoopedTransformer, build_model

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures"
_TINY = {"width": 64, "heads": 4, "vocabulary_size": 512, "sequence_length": 64}


def _path(name: str) -> Path:
    path = FOLDER / name
    if not path.exists():
        message = f"the published implementation's numbers are not at {path}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(_path(f"{name}.npz")) as arrays:
        return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}


def described(name: str):
    return json.loads(_path("fixtures.json").read_text())[name]


def config(name: str) -> ModelConfig:
    if name == "gpt_4l":
        return ModelConfig(kind="transformer", prelude_layers=4, core_layers=0, coda_layers=0, **_TINY)
    layers = int(name[-1])
    return ModelConfig(
        prelude_layers=layers,
        core_layers=layers,
        coda_layers=layers,
        mean_recurrence=4,
        backprop_depth=2,
        state_init="zero",
        value_embedding_wiring="published",
        **_TINY,
    )


def renamed(arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {ours: value for key, value in arrays.items() if (ours := our_name(key)) is not None}


def model(name: str) -> LoopedTransformer:
    built = build_model(config(name), seed=0)
    built.load_state_dict(renamed(load(f"{name}_weights")))
    return built
