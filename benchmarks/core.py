"""How fast are the tasks of Core scored? Against one item at a time, on the CPU.

    python benchmarks/core.py [BUNDLE]

The same model scores subsets of four tasks in two ways, in turn: one item at a time, all its options padded
into one batch, logits and losses at every position, as nanochat does; and by `score_options`. Printed are
the medians in CPU seconds of one thread, the ratios of the medians, and the largest difference of a
log-probability. Then one pass at 8 depths is timed against the deepest alone. BUNDLE is a folder with
core.yaml. The model is `model=looped_1m data=fineweb_edu` at the published context of 2,048 tokens; how much
a smaller vocabulary gains less shows `VOCABULARY=8192` in the environment.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.data.tokenizer import BOS, train_tokenizer
from harness.evaluation.bundle import read_items, read_suite
from harness.evaluation.prompts import encode, shuffle
from harness.evaluation.scoring import score_options
from model.config import ModelConfig
from model.depth import counter_seed
from model.transformer import build_model

BUNDLE = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "core_bundle"
THREADS, REPEATS, DEPTH, SEED = 1, 3, 8, 0
VOCABULARY = int(os.environ.get("VOCABULARY", 32768))
TASKS = {"hellaswag": 6, "arc_easy": 6, "lambada_openai": 6, "squad": 6}  # label: items
CHOICES = ("hellaswag", "arc_easy")  # few-shot multiple choice
CONFIG = ModelConfig(
    width=128,
    heads=4,
    prelude_layers=2,
    core_layers=2,
    coda_layers=2,
    vocabulary_size=VOCABULARY,
    sequence_length=2048,
    mean_recurrence=DEPTH,
)


def built():
    """Build the model, away from its start, where every block is the identity."""
    model, draw = build_model(CONFIG, seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return model


def one_at_a_time(model, tokenizer, task, items, count):
    """Return nats [item][option], each item by itself."""
    out = []
    for index in range(count):
        (options,) = encode(task, items, [index], tokenizer, bos=BOS, context=CONFIG.sequence_length)
        longest = max(len(option.ids) for option in options)
        ids = torch.full((len(options), longest), BOS)
        for row, option in enumerate(options):
            ids[row, : len(option.ids)] = torch.from_numpy(option.ids.astype(np.int64))
        seeds = [counter_seed("options", SEED)] * len(options)
        logits = model.logits(ids, [DEPTH] * len(options), seeds)
        losses = F.cross_entropy(logits.flatten(0, 1), ids.roll(-1, dims=1).flatten(), reduction="none")
        losses, _ = losses.view(ids.shape), logits.argmax(dim=-1)
        out.append(
            [losses[i, one.start - 1 : len(one.ids) - 1].sum().item() for i, one in enumerate(options)]
        )
    return out


def fast(model, tokenizer, task, items, count, depths=(DEPTH,)):
    """Return nats [item][option] at the deepest of `depths`."""
    encoded = encode(task, items, range(count), tokenizer, bos=BOS, context=CONFIG.sequence_length)
    return score_options(model, encoded, depths, seed=SEED).nats[-1]


def timed(action, *arguments):
    start = time.process_time()
    result = action(*arguments)
    return time.process_time() - start, result


def main():
    torch.set_num_threads(THREADS)
    bundle = Path(sys.argv[1]) if len(sys.argv) > 1 else BUNDLE
    texts = []
    for path in sorted((bundle / "eval_data").rglob("*.jsonl")):
        with path.open(encoding="utf-8") as handle:
            texts += [line[:2000] for line in itertools.islice(handle, 1000)]
    model, tokenizer = built(), train_tokenizer(texts, VOCABULARY)
    slow_s, fast_s = {}, {}
    for label, count in TASKS.items():
        (task,) = read_suite(bundle, label).tasks
        items = shuffle(read_items(bundle, task))
        ways = {one_at_a_time: [], fast: []}
        for repeat in range(REPEATS):
            results = {}
            for way in list(ways)[:: 1 if repeat % 2 else -1]:
                taken, results[way] = timed(way, model, tokenizer, task, items, count)
                ways[way].append(taken)
        pairs = zip(results[one_at_a_time], results[fast], strict=True)
        worst = max(np.abs(np.array(a) - b[: len(a)]).max() for a, b in pairs)
        slow_s[label], fast_s[label] = (median(ways[way]) for way in ways)
        print(
            f"{label:<15} {count} items: {slow_s[label]:6.2f} s one at a time, {fast_s[label]:6.2f} s here: "
            f"{slow_s[label] / fast_s[label]:4.1f} times as fast, log-probabilities within {worst:.0e}",
            flush=True,
        )
    for name, labels in (("few-shot multiple choice", CHOICES), ("all four", TASKS)):
        ratio = sum(slow_s[label] for label in labels) / sum(fast_s[label] for label in labels)
        print(f"{name}: {ratio:.1f} times as fast")
    (task,) = read_suite(bundle, "arc_easy").tasks
    items = shuffle(read_items(bundle, task))
    alone, eight = [], []
    for _ in range(REPEATS):
        alone.append(timed(fast, model, tokenizer, task, items, 6)[0])
        eight.append(timed(fast, model, tokenizer, task, items, 6, range(1, DEPTH + 1))[0])
    print(f"depths 1..{DEPTH} in one pass: {median(eight) / median(alone):.2f} times the deepest alone")


if __name__ == "__main__":
    main()
