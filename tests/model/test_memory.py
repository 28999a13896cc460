from dataclasses import replace

import pytest
import torch

from model.config import ModelConfig
from model.memory import memory_estimate_bytes
from model.transformer import build_model

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
def test_activations_are_estimated_to_a_fifth(fields):
    config = replace(CONFIG, **fields)
    estimate = memory_estimate_bytes(config, 8).activations
    assert saved_bytes(config, 8) == pytest.approx(estimate, rel=0.2)


def test_loops_without_gradient_keep_nothing():
    assert saved_bytes(CONFIG, 4, loops_without_gradient=20) == saved_bytes(CONFIG, 4)


def test_recomputed_loops_keep_one_loop_and_the_states():
    everything = memory_estimate_bytes(replace(CONFIG, backprop_depth=32), 8)
    recomputed = memory_estimate_bytes(replace(CONFIG, backprop_depth=32), 8, checkpoint_loops=True)
    assert recomputed.activations < 0.2 * everything.activations
    assert recomputed.weights == everything.weights
