"""Branches of a shared prefix: each token's log-probability is that of a pass over its sequence alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.evaluation.prompts import Scored
from harness.evaluation.scoring import batches_by_length, branch_batch, group_by_prefix
from model.prefix_scoring import branch_scores, state_table
from tests.model.test_transformer import TINY, VARIANTS, awake

torch.set_num_threads(1)
MORE = {
    "transformer": replace(TINY, kind="transformer", prelude_layers=3, core_layers=0, coda_layers=0),
    "no coda": replace(TINY, coda_layers=0),
    "no prelude": replace(TINY, prelude_layers=0),
}
SEED, DEPTHS = 5, (1, 2, 4)


def sequences(config, draw, prefix, lengths):
    """Sequences that share `prefix` tokens, all tokens after those scored."""
    shared = draw.integers(config.vocabulary_size, size=prefix)
    return [
        Scored(np.append(shared, draw.integers(config.vocabulary_size, size=n)).astype(np.int32), prefix)
        for n in lengths
    ]


@pytest.mark.parametrize("config", [*VARIANTS.values(), *MORE.values()], ids=[*VARIANTS, *MORE])
def test_every_branch_is_scored_as_its_sequence_alone(config):
    model, draw = awake(config), np.random.default_rng(0)
    items = [sequences(config, draw, prefix, ns) for prefix, ns in ((7, (3, 1, 4)), (5, (2, 2)), (1, (6,)))]
    (batch,) = batches_by_length(group_by_prefix(enumerate(items)), 10_000)
    nats, hits = branch_scores(model, branch_batch(batch), DEPTHS, state_table(model, SEED))
    at = 0
    for one in batch:
        first_owner = {branch: (item, option) for item, option, branch in reversed(one.owners)}
        for number in range(len(one.branches)):
            item, option = first_owner[number]
            sequence = items[item][option]
            ids = torch.from_numpy(sequence.ids.astype(np.int64))
            for row, depth in enumerate(DEPTHS):
                logits = model.logits(ids[None], [depth], [SEED])[0, sequence.start - 1 : -1]
                wanted = torch.nn.functional.cross_entropy(logits, ids[sequence.start :], reduction="none")
                own = slice(at, at + len(wanted))
                torch.testing.assert_close(nats[row, own], wanted, rtol=0, atol=1e-5)
                assert torch.equal(hits[row, own], logits.argmax(dim=1) == ids[sequence.start :])
            at += len(wanted)
    assert at == nats.shape[1] == 3 + 1 + 4 + 2 + 2 + 6


def test_equal_options_share_a_branch_and_items_a_prefix():
    ids = np.arange(10, dtype=np.int32)
    twice = [Scored(ids, 8), Scored(ids.copy(), 8)]
    other = [Scored(np.append(ids[:8], [3, 4]).astype(np.int32), 8)]
    (one,) = group_by_prefix([(0, twice), (1, other)])
    assert len(one.prefix) == 7 and len(one.branches) == 2
    assert one.owners == [(0, 0, 0), (0, 1, 0), (1, 0, 1)]


def test_batches_keep_to_the_budget():
    draw = np.random.default_rng(1)
    items = [sequences(TINY, draw, int(n), (3, 2)) for n in draw.integers(4, 40, size=50)]
    made = list(batches_by_length(group_by_prefix(enumerate(items)), 200))
    sizes = [
        (max(len(g.prefix) for g in batch) + max(g.branch_tokens for g in batch)) * len(batch)
        for batch in made
    ]
    assert sum(len(batch) for batch in made) == 50 and max(sizes) <= 200 and len(made) < 25
