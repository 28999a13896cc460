"""Core: the fast path against the definition, task by task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.evaluation.bundle import read_items, read_suite
from harness.evaluation.prompts import encode, shuffled
from harness.evaluation.scores import predictions
from harness.evaluation.scoring import score_options
from model.depth import counter_seed
from tests.harness import core_data, reference_core

torch.set_num_threads(1)
TASKS = [
    "hellaswag_zeroshot",
    "jeopardy",
    "arc_easy",
    "copa",
    "commonsense_qa",
    "lambada_openai",
    "hellaswag",
    "winograd",
    "bigbench_dyck_languages",
    "bigbench_operators",
    "squad",
    "boolq",
]


@pytest.mark.parametrize("label", TASKS)
def test_the_fast_path_agrees_with_the_definition_on_every_item(label):
    (task,) = read_suite(core_data.bundle(), label).tasks
    items = shuffled(read_items(core_data.bundle(), task))
    model, tokenizer, count = core_data.model(), core_data.tokenizer(), 12
    encoded = encode(
        task, items, range(count), tokenizer, bos=core_data.BOS_ID, context=model.config.sequence_length
    )
    depths = [1, 3]
    fast = score_options(model, encoded, depths, seed=7, token_budget=6000)
    chosen = predictions(fast.nats, fast.exact, fast.tokens)
    data = reference_core.read(core_data.bundle() / "eval_data" / task.file)
    definition = core_data.definitions()[label]
    for at, depth in enumerate(depths):
        for index in range(count):
            sums, counts, expected = reference_core.score(
                model,
                tokenizer,
                data,
                index,
                definition,
                bos=core_data.BOS_ID,
                depth=depth,
                state_seed=counter_seed("options", 7),
            )
            own = slice(0, len(sums))
            assert fast.tokens[index, own].tolist() == counts
            np.testing.assert_allclose(-fast.nats[at, index, own], sums, rtol=0, atol=1e-4)
            assert chosen[at, index] == expected, (label, depth, index)
