"""Budgets of keys and values and exit rules, against a decoder written from their definition."""

from dataclasses import replace

import pytest
import torch

from model.config_validation import ConfigError
from model.decoding import Decoding, kv_bytes_per_token
from model.generate import Decoder, decoded_losses, stream_tokens
from model.injection import first_states
from tests.model.test_transformer import TINY, awake, batch

torch.set_num_threads(1)
T, SEEDS = 4, [1, 2, 3]
MODELS = {
    "published": TINY,
    "two core layers, grouped": replace(TINY, core_layers=2, heads=4, kv_heads=2),
    "linear": replace(TINY, injection="linear", readout=False),
}
PLAIN = replace(TINY, kind="transformer", prelude_layers=3, core_layers=0, coda_layers=0)


def losses(model, decoding, documents=None):
    tokens, labels = batch(model.config, size=3)
    return decoded_losses(model, tokens, labels, decoding, SEEDS, documents)


def by_definition(model, tokens, seed, decoding):
    """Decode one sequence; keys and values are kept by (layer, loop), those of prelude and coda at loop 0.

    Returns the logits [L, V], and the loops of each token.
    """
    store, logits, spent = {}, [], []
    states = first_states(model.config.state_init, [seed], torch.empty(1, len(tokens), model.config.width))
    oldest = max(0, decoding.depth - (decoding.kv_budget or decoding.depth))  # kept loop, from 0

    def block(layer, module, x, position, context, write, read):
        rows = context.value_rows.get(layer)
        q, k, v = module.attn.project(module.norm_1(x), model.rope[position : position + 1], rows)
        store[layer, write, position] = k, v
        kv = [store[layer, max(read, write if p == position else read), p] for p in range(position)]
        kv.append((k, v))
        keys, values = (torch.cat(part, dim=2) for part in zip(*kv, strict=True))
        groups = q.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        weights = (q @ keys.transpose(2, 3) / model.config.head_dim**0.5).softmax(dim=-1)
        x = x + module.attn.merge(weights @ values)
        return x + module.mlp(module.norm_2(x))

    core, coda = model.first_layer, model.first_layer + len(model.core)
    for position, token in enumerate(tokens):
        x, context = model._embed(token.view(1, 1))
        for layer, module in enumerate(model.prelude):
            x = block(layer, module, x, position, context, 0, 0)
        drive, carry = model.injection.prepare(model.prelude_norm(x))
        state, loops = states[:, position : position + 1], 0
        while loops < decoding.depth:
            new = model.injection.mix(state, drive, carry)
            for layer, module in enumerate(model.core, start=core):
                new = block(layer, module, new, position, context, loops, max(loops, oldest))
            change, state, loops = (new - state).norm() / new.norm(), new, loops + 1
            x = model.readout(state)
            for layer, module in enumerate(model.coda, start=coda):
                x = block(layer, module, x, position, context, 0, 0)
            out = torch.nn.functional.linear(model.final_norm(x), model.embedding)[0, 0]
            p = out.softmax(dim=0)
            entropy = -(p * p.log()).sum()
            measure = {"fixed": torch.inf, "convergence": change, "entropy": entropy}[decoding.exit]
            if measure < decoding.threshold:
                break
        for later in range(loops, decoding.depth):
            for layer in range(core, coda):
                store[layer, later, position] = store[layer, loops - 1, position]
        logits.append(out)
        spent.append(loops)
    return torch.stack(logits), spent


RULES = {
    "all loops": Decoding(depth=T),
    "budget 1": Decoding(depth=T, kv_budget=1),
    "budget 2": Decoding(depth=T, kv_budget=2),
    "convergence": Decoding(depth=T, exit="convergence", threshold=0.25),
    "entropy": Decoding(depth=T, exit="entropy", threshold=3.8),
    "convergence, budget 2": Decoding(depth=T, kv_budget=2, exit="convergence", threshold=0.25),
}


@torch.no_grad()
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("decoding", RULES.values(), ids=RULES)
def test_decoding_follows_its_definition(config, decoding):
    model, (tokens, labels) = awake(config), batch(config, size=3)
    found = losses(model, decoding)
    for row, seed in enumerate(SEEDS):
        logits, loops = by_definition(model, tokens[row], seed, decoding)
        nats = torch.nn.functional.cross_entropy(logits, labels[row], reduction="none", ignore_index=-100)
        torch.testing.assert_close(found.nats[row], nats, rtol=1e-4, atol=1e-4)
        assert found.loops[row].tolist() == loops
    if decoding.exit != "fixed" and config is TINY:
        assert 1 < found.loops.float().mean() < T  # or no rule was tested


@pytest.mark.parametrize("config", [*MODELS.values(), PLAIN], ids=[*MODELS, "transformer"])
def test_a_budget_of_all_loops_and_a_threshold_of_zero_change_no_bit(config):
    model = awake(config)
    full = losses(model, Decoding(depth=T))
    for decoding in (
        Decoding(depth=T, kv_budget=T),
        Decoding(depth=T, exit="convergence", threshold=0),
        Decoding(depth=T, exit="entropy", threshold=0),
    ):
        found = losses(model, decoding)
        assert torch.equal(found.nats, full.nats) and torch.equal(found.loops, full.loops)
    tokens, labels = batch(config, size=3)
    whole = model.depth_losses(tokens, labels, T, SEEDS)[-1]
    torch.testing.assert_close(full.nats.sum(dim=1), whole, rtol=1e-5, atol=1e-4)
    spent = 1 if config.kind == "transformer" else T
    assert (full.loops == spent).all()


def test_leaving_at_once_is_a_depth_of_one():
    model = awake(TINY)
    one = losses(model, Decoding(depth=1))
    for rule in ("convergence", "entropy"):
        found = losses(model, Decoding(depth=T, exit=rule, threshold=1e9))
        assert torch.equal(found.nats, one.nats) and (found.loops == 1).all()


def test_tokens_read_together_leave_as_those_read_one_by_one():
    model, (tokens, _) = awake(TINY), batch(TINY, size=3)
    decoding = Decoding(depth=T, exit="convergence", threshold=0.25)
    options = {"batch": 3, "length": TINY.sequence_length, "state_seeds": SEEDS}
    together, alone = Decoder(model, decoding, **options), Decoder(model, decoding, **options)
    logits, loops = together.read(tokens[:, :9])
    single = [alone.read(tokens[:, i, None]) for i in range(9)]
    torch.testing.assert_close(logits, single[-1][0], rtol=1e-4, atol=1e-4)
    assert torch.equal(loops, torch.cat([spent for _, spent in single], dim=1))
    after, before = together.read(tokens[:, 9:10])[0], alone.read(tokens[:, 9:10])[0]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_documents_are_decoded_as_if_each_stood_alone():
    model = awake(replace(TINY, state_init="zero"))
    tokens, labels = batch(TINY, size=3)
    documents = torch.tensor([[0] * 6 + [1] * 10] * 3)
    found = losses(model, Decoding(depth=T, kv_budget=2), documents).nats[:, 6:]
    alone = decoded_losses(model, tokens[:, 6:], labels[:, 6:], Decoding(depth=T, kv_budget=2), SEEDS)
    torch.testing.assert_close(found, alone.nats, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kv_budget", "layers"), [(None, 2 + 4 * 2), (4, 2 + 4 * 2), (1, 2 + 2), (2, 2 + 4)])
def test_keys_and_values_take_the_bytes_of_the_formula(kv_budget, layers):
    config = replace(TINY, core_layers=2, heads=4, kv_heads=2)  # 16 of 32 channels in keys and in values
    decoding = Decoding(depth=T, kv_budget=kv_budget)
    assert kv_bytes_per_token(config, decoding, element_bytes=4) == 2 * 16 * 4 * layers
    decoder = Decoder(awake(config), decoding, batch=3, length=5, state_seeds=SEEDS)
    assert decoder.cache.size_bytes == 3 * 5 * 2 * 16 * 4 * layers


def test_generation_takes_the_same_rules():
    model, (prompt, _) = awake(TINY), batch(TINY, size=3)

    def generated(**rule):
        stream = stream_tokens(
            model, prompt[:, :5], new_tokens=8, decoding=Decoding(depth=T, **rule), state_seeds=SEEDS
        )
        return torch.stack(list(stream))

    full = generated()
    assert torch.equal(generated(kv_budget=T), full)
    assert torch.equal(generated(exit="convergence"), full)
    assert not torch.equal(generated(kv_budget=1), full)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 0}, r"^depth=0 must be at least 1$"),
        ({"depth": 4, "kv_budget": 5}, r"^kv_budget=5 must be from 1 to the depth, 4$"),
        ({"depth": 4, "kv_budget": 0}, r"^kv_budget=0 must be from 1"),
        ({"depth": 4, "exit": "entropy", "threshold": -1.0}, r"^threshold=-1.0 must be at least 0$"),
    ],
)
def test_what_cannot_be_decoded_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Decoding(**fields)
