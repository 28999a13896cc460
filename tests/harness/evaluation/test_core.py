"""Core: the fast path against the definition, task by task."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch

from harness.evaluation.bundle import read_items, read_suite
from harness.evaluation.prompts import encode, shuffle
from harness.evaluation.results import TaskResult, grade, predictions
from harness.evaluation.scores import suite_score, task_score
from harness.evaluation.scoring import score_options
from model.depth import counter_seed
from tests.harness.evaluation import core_data, reference_core

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
    items = shuffle(read_items(core_data.bundle(), task))
    model, tokenizer, count = core_data.model(), core_data.tokenizer(), 8
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


def random_scorer(task, items, seeds, draw):
    """What a scorer gets that knows nothing: each seed one row, uniform numbers for log-probabilities."""
    options = np.array([item.options for item in items])
    shape = (seeds, len(items), options.max())
    absent = np.arange(shape[2]) >= options[:, None]
    nats = np.where(absent, np.nan, draw.random(shape))
    ones = np.where(absent, 0, 1)
    golds = np.array([item.gold for item in items])
    judged = grade(nats, np.zeros(shape, bool), ones, ones, golds, options)
    return TaskResult(
        task=task, seed=1234, depths=tuple(range(1, seeds + 1)), options=options, cropped=0, **judged
    )


def test_a_random_scorer_is_at_chance_and_off_the_official_baselines():
    seeds, folder = 50, core_data.bundle()
    suite, draw = read_suite(folder, "core"), np.random.default_rng(0)
    results = [[random_scorer(task, read_items(folder, task), seeds, draw)] for task in suite.tasks]
    # From the bundle's own manifest and table, not from the code: options per item and official baseline.
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    with (folder / "eval_meta_data.csv").open() as handle:
        official = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(handle)}
    offsets = {}
    for (result,) in results:
        label, options = result.task.label, manifest[result.task.file].get("n_choices")
        chance = 1 / int(next(iter(options))) if options else 0.0
        scores = [task_score([result], at) for at in range(seeds)]
        error = math.sqrt(chance * (1 - chance) / len(result.options) / seeds)
        assert abs(np.mean([score.accuracy for score in scores]) - chance) <= 4 * error, label
        offset = (chance - official[label]) / (1 - official[label])
        centred, error = np.mean([score.centred for score in scores]), error / (1 - official[label])
        assert abs(centred - offset) <= 4 * error, label
        if abs(centred) > 4 * error:
            offsets[label] = offset
    # Guessing scores these at the four tasks whose official baseline does not match their files.
    assert offsets == pytest.approx(
        {
            "commonsense_qa": 0.0625,
            "agi_eval_lsat_ar": 0.0625,
            "bigbench_language_identification": 0.1749,
            "boolq": -0.3158,
        },
        abs=1e-4,
    )
    scores = [suite_score("core", suite.size, results, at) for at in range(seeds)]
    error = scores[0].chance_corrected_se / math.sqrt(seeds)
    assert scores[0].tasks == "21 of 22 tasks" and suite.absent == ("coqa",)
    assert abs(np.mean([score.chance_corrected for score in scores])) <= 3 * error
    # In the mean the four nearly cancel.
    official_core = sum(offsets.values()) / 21
    assert official_core == pytest.approx(-0.00076, abs=1e-5)
    error = scores[0].se / math.sqrt(seeds)
    assert abs(np.mean([score.centred for score in scores]) - official_core) <= 3 * error
