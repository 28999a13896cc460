"""The evaluation bundle of the tests, a tokenizer for its texts, and a model that is not at its start."""

from __future__ import annotations

import itertools
import os
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from harness.data.tokenizer import BOS, train_tokenizer
from model.config import ModelConfig
from model.transformer import build_model

BUNDLE = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "core_bundle"
BOS_ID = BOS


def bundle() -> Path:
    if not BUNDLE.exists():
        message = f"there is no evaluation bundle at {BUNDLE}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return BUNDLE


def definitions() -> dict:
    tasks = yaml.safe_load((bundle() / "core.yaml").read_text())["icl_tasks"]
    return {task["label"]: task for task in tasks}


@cache
def tokenizer():
    """A vocabulary of 2,000 from the first lines of every task."""
    lines = []
    for path in sorted((bundle() / "eval_data").rglob("*.jsonl")):
        with path.open(encoding="utf-8") as handle:
            lines += itertools.islice(handle, 150)
    return train_tokenizer([line[:600] for line in lines], 2000)


def model(sequence_length=1024, **more):
    config = ModelConfig(
        **{
            "width": 32,
            "heads": 2,
            "prelude_layers": 1,
            "core_layers": 1,
            "coda_layers": 2,
            "vocabulary_size": 2000,
            "sequence_length": sequence_length,
            "mean_recurrence": 2,
            **more,
        }
    )
    built = build_model(config, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=draw))
    return built
