from dataclasses import replace

import pytest
import torch

from model.config import ModelConfig
from model.kernels import reference
from model.memory import LOGITS_AT_ONCE, memory_estimate_bytes
from model.transformer import build_model
from validation.memory import traced_peak

torch.set_num_threads(1)
CONFIG = ModelConfig(
    width=96,  # heads of 24 channels, for which the CPU has no kernel: what is kept is what a GPU keeps
    heads=4,
    prelude_layers=2,
    core_layers=2,
    coda_layers=2,
    vocabulary_size=128,
    sequence_length=64,
)


def saved_bytes(config, batch, loops_without_gradient=0):
    """Add up what autograd keeps for the backward pass, each storage once, parameters apart."""
    model = build_model(config, seed=0)
    tokens = torch.zeros(batch, config.sequence_length, dtype=torch.int64)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages, kept = {}, []

    def pack(tensor):
        kept.append(tensor)  # so that no address is used twice
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    depths = [config.resolved_backprop_depth + loops_without_gradient] * batch
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(tokens, tokens, depths, range(batch))
    return sum(size for address, size in storages.items() if address not in parameters)


@pytest.mark.parametrize(
    "fields", [{}, {"backprop_depth": 8}, {"mlp": "swiglu"}, {"core_layers": 1, "width": 144}]
)
def test_what_autograd_keeps_is_estimated(fields):
    config = replace(CONFIG, **fields)
    estimate = memory_estimate_bytes(config, 8).activations
    assert saved_bytes(config, 8) == pytest.approx(estimate, rel=0.05)


@pytest.mark.parametrize(
    ("precision", "fields"),
    [
        ("bfloat16", {"sequence_length": 512, "vocabulary_size": 2048}),
        ("float32", {"kind": "transformer", "prelude_layers": 4, "core_layers": 0, "coda_layers": 0}),
    ],
)
def test_the_peak_of_a_step_is_estimated(precision, fields):
    """The reduced form of validation/memory.py."""
    config = replace(CONFIG, **fields)
    estimate = memory_estimate_bytes(config, 4, precision=precision).total
    assert estimate == pytest.approx(traced_peak(config, 4, precision), rel=0.05)


def test_where_little_is_kept_the_optimiser_sets_the_peak():
    small = replace(CONFIG, width=384, sequence_length=2, core_layers=1, backprop_depth=1)
    estimate = memory_estimate_bytes(small, 1)
    assert estimate.total == pytest.approx(traced_peak(small, 1, "float32"), rel=0.05)
    assert memory_estimate_bytes(small, 2).total == estimate.total


def test_logits_at_once_are_those_of_the_reference():
    assert reference._CHUNK_ELEMENTS["other"] == LOGITS_AT_ONCE


def test_loops_without_gradient_keep_nothing():
    assert saved_bytes(CONFIG, 4, loops_without_gradient=20) == saved_bytes(CONFIG, 4)


def test_recomputed_loops_keep_one_loop_and_the_states():
    everything = memory_estimate_bytes(replace(CONFIG, backprop_depth=32), 8)
    recomputed = memory_estimate_bytes(replace(CONFIG, backprop_depth=32), 8, checkpoint_loops=True)
    assert recomputed.activations < 0.2 * everything.activations
    assert recomputed.weights == everything.weights
