"""What several processes exchange, and when."""

from __future__ import annotations

import torch
from torch import distributed

from harness.distributed.parallel import replicate
from harness.distributed.process_group import Ranks
from model.config import ModelConfig
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
