"""What several processes exchange, and when."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed

from harness.distributed.parallel import assign_sequences, check_divisible, replicate
from harness.distributed.process_group import Ranks
from model.config import ModelConfig
from model.config_validation import ConfigError
from model.depth import draw_depths
from model.transformer import build_model

SMALL = ModelConfig(
    width=32, heads=1, prelude_layers=1, core_layers=1, coda_layers=1, vocabulary_size=64, sequence_length=16
)


def test_gradients_are_exchanged_in_the_last_micro_batch_alone(tmp_path):
    exchanged: list[int] = []

    def hook(_, bucket):
        exchanged.append(bucket.index())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        replica = replicate(build_model(SMALL, seed=0), Ranks(world=2), "ddp")
        replica.forward.register_comm_hook(None, hook)
        tokens = torch.zeros(2, 16, dtype=torch.int64)
        counts = []
        for last in (False, False, True):
            with replica.micro_batch(last=last):
                replica.backward(replica.forward(tokens, tokens, [2, 1], [0, 1]), tokens.numel())
            counts.append(len(exchanged))
    finally:
        distributed.destroy_process_group()
    assert counts[:2] == [0, 0] and counts[2] >= 1


MODEL = ModelConfig(
    width=32, heads=2, prelude_layers=1, core_layers=2, coda_layers=1, vocabulary_size=64, sequence_length=16
)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 8))
def test_every_sequence_is_taken_once_and_all_processes_take_as_many(depths, world):
    depths = depths * world
    shares = assign_sequences(MODEL, depths, world)
    assert sorted(index for own in shares for index in own) == list(range(len(depths)))
    assert {len(own) for own in shares} == {len(depths) // world}
    assert all(own == sorted(own) for own in shares)


def test_one_process_takes_the_batch_as_it_comes():
    assert assign_sequences(MODEL, [3, 9, 1], 1) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("sampling", "excess"), [("poisson", 0.02), ("stratified", 0.02), ("poisson_lognormal", 0.05)]
)
@pytest.mark.parametrize("world", [2, 4, 8])
def test_processes_carry_equal_work(sampling, excess, world):
    model = ModelConfig(**{**vars(MODEL), "depth_sampling": sampling})
    heaviest, dealt_as_they_come = [], []
    for step in range(50):
        depths = draw_depths(model, seed=0, step=step, batch=64).tolist()
        mean = sum(depths) / world
        heaviest.append(
            max(sum(depths[i] for i in own) for own in assign_sequences(model, depths, world)) / mean
        )
        size = 64 // world
        slices = [sum(depths[start : start + size]) for start in range(0, 64, size)]
        dealt_as_they_come.append(max(slices) / mean)
    # What all wait for is the process with the most loops.
    assert sum(heaviest) / 50 < 1 + excess
    if sampling != "stratified":
        assert sum(heaviest) / 50 < sum(dealt_as_they_come) / 50


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does():
    with pytest.raises(ConfigError, match=r"batch_sequences=10 does not divide over 4 .* such as 8"):
        check_divisible(10, 4)
    with pytest.raises(ConfigError, match="such as 4"):
        check_divisible(1, 4)
    check_divisible(12, 4)
