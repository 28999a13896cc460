from dataclasses import replace

import pytest
import torch

from model.decoding import Decoding
from model.generate import stream_tokens
from tests.model.test_transformer import TINY, VARIANTS, awake, batch

torch.set_num_threads(1)
TRANSFORMER = replace(TINY, kind="transformer", prelude_layers=3, core_layers=0, coda_layers=0)


@pytest.mark.parametrize("config", [*VARIANTS.values(), TRANSFORMER], ids=[*VARIANTS, "transformer"])
@pytest.mark.parametrize("depth", [1, 3])
def test_cached_tokens_are_those_of_full_forward_passes(config, depth):
    model, (prompt, _) = awake(config), batch(config, size=3)
    tokens = prompt[:, :6]
    for chosen in stream_tokens(
        model, tokens, new_tokens=6, decoding=Decoding(depth=depth), state_seeds=[1, 2, 3]
    ):
        expected = model.logits(tokens, [depth] * 3, [1, 2, 3])[:, -1].argmax(dim=1)
        assert torch.equal(chosen, expected)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)


def test_sampling_depends_on_the_seed_alone():
    model, (prompt, _) = awake(TINY), batch(TINY, size=3)
    options = {"new_tokens": 8, "decoding": Decoding(depth=2), "state_seeds": range(3), "temperature": 1.0}
    draws = [
        torch.stack(list(stream_tokens(model, prompt[:, :4], seed=seed, **options))) for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-6])
def test_the_limit_of_low_temperatures_is_the_likeliest_token(temperature):
    model, (prompt, _) = awake(TINY), batch(TINY, size=3)
    options = {"new_tokens": 8, "decoding": Decoding(depth=2), "state_seeds": range(3)}
    likeliest, drawn = (
        torch.stack(list(stream_tokens(model, prompt[:, :4], temperature=each, **options)))
        for each in (0.0, temperature)
    )
    assert torch.equal(drawn, likeliest)


def test_more_tokens_than_the_context_holds_are_refused():
    model, (prompt, _) = awake(TINY), batch(TINY, size=1)
    with pytest.raises(ValueError, match="do not fit sequence_length=16; ask for at most 4 new ones"):
        list(stream_tokens(model, prompt[:, :12], new_tokens=5, decoding=Decoding(depth=1), state_seeds=[0]))
