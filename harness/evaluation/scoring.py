"""Score the options of a task's items with a model: log-probabilities at every depth asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from harness.evaluation.batching import as_tensors, batches, group
from harness.evaluation.prompts import Scored
from model.depth import counter_seed
from model.prefix_scoring import branch_scores, state_table
from model.transformer import LoopedTransformer

Array = np.ndarray
TOKEN_BUDGET = {"cpu": 4096, "other": 65536}  # tokens of one batch: a CPU's cache, a GPU's appetite


@dataclass(frozen=True, kw_only=True)
class OptionScores:
    """What the options of N items got; K is the most options that an item has, absent ones are NaN or 0.

    nats [D, N, K] sums -log p over the option's scored tokens, whose number is tokens [N, K]; exact
    [D, N, K] says that each of them was the likeliest token.
    """

    nats: Array
    exact: Array
    tokens: Array


def score_options(
    model: LoopedTransformer,
    items: Sequence[Sequence[Scored]],
    depths: Sequence[int],
    *,
    seed: int,
    token_budget: int | None = None,
    bfloat16: bool = False,
    done: Callable[[int], None] = lambda tokens: None,
) -> OptionScores:
    """Score every option of every item at the ascending `depths`, all from one pass.

    `seed` is that of h_0, one and the same state at a position for all sequences. `done` is called with the
    tokens of each batch.
    """
    shape = (len(items), max(map(len, items), default=1))
    nats = np.full((len(depths), *shape), np.nan)
    exact = np.zeros((len(depths), *shape), bool)
    tokens = np.zeros(shape, np.int64)
    device = model.embedding.device
    states = state_table(model, counter_seed("options", seed))
    budget = token_budget or TOKEN_BUDGET["cpu" if device.type == "cpu" else "other"]
    for batch in batches(group(enumerate(items)), budget):
        with torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext():
            scores = branch_scores(model, as_tensors(batch).to(device), depths, states)
        sums, counts, hits = _by_branch(scores, [len(b.targets) for one in batch for b in one.branches])
        first = 0
        for one in batch:
            item, option, branch = np.array(one.owners).T
            nats[:, item, option] = sums[:, first + branch]
            exact[:, item, option] = hits[:, first + branch]
            tokens[item, option] = counts[first + branch]
            first += len(one.branches)
        done(sum(len(one.prefix) + one.branch_tokens for one in batch))
    return OptionScores(nats=nats, exact=exact, tokens=tokens)


def _by_branch(
    scores: tuple[torch.Tensor, torch.Tensor], lengths: Iterable[int]
) -> tuple[Array, Array, Array]:
    """Sum nats [D, branches] over each branch's targets, count them, and say where all were hit."""
    counts = np.fromiter(lengths, np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    nats, hits = (part.double().cpu().numpy() for part in scores)
    return (
        np.add.reduceat(nats, starts, axis=1),
        counts,
        np.minimum.reduceat(hits, starts, axis=1).astype(bool),
    )
