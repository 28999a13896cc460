"""Log-probabilities of the options of a task's items, at several depths in one pass.

Prompts become prefixes with branches, which are batched by length under a token budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from harness.evaluation.prompts import Ids, Scored, common_length
from harness.evaluation.results import Array
from model.depth import counter_seed
from model.kernels import autocast
from model.prefix_scoring import BranchBatch, branch_scores, state_table
from model.transformer import LoopedTransformer

TOKEN_BUDGET = {"cpu": 4096, "other": 65536}  # tokens of one batch: bounded by a CPU's cache, a GPU's memory
# Sequences share a prefix if it is at least this part of the shortest one, because a branch costs a mask.
MIN_SHARED = 0.5


@dataclass(frozen=True, kw_only=True)
class OptionScores:
    """Scores of the options of N items at D depths; K is the largest number of options of an item."""

    nats: Array  # [D, N, K], sum of -log p over the scored tokens; NaN where an option is absent
    exact: Array  # [D, N, K], True if every scored token has the highest probability
    tokens: Array  # [N, K], number of scored tokens; 0 where an option is absent


def score_options(
    model: LoopedTransformer,
    items: Sequence[Sequence[Scored]],
    depths: Sequence[int],
    *,
    seed: int,
    token_budget: int | None = None,
    bfloat16: bool = False,
    on_batch: Callable[[int], None] = lambda tokens: None,
) -> OptionScores:
    """Score every option of every item at all depths in one pass.

    Parameters
    ----------
    items : per item, one sequence per option.
    depths : ascending.
    seed : of h_0, which is the same at a position for all sequences.
    token_budget : padded tokens of one batch; by default `TOKEN_BUDGET` of the model's device.
    on_batch : called with the number of tokens of each batch.
    """
    shape = (len(items), max(map(len, items), default=1))
    nats = np.full((len(depths), *shape), np.nan)
    exact = np.zeros((len(depths), *shape), bool)
    tokens = np.zeros(shape, np.int64)
    device = model.embedding.device
    states = state_table(model, counter_seed("options", seed))
    budget = token_budget or TOKEN_BUDGET["cpu" if device.type == "cpu" else "other"]
    for batch in batches_by_length(group_by_prefix(enumerate(items)), budget):
        with autocast(device, "bfloat16" if bfloat16 else "float32"):
            scores = branch_scores(model, branch_batch(batch).to(device), depths, states)
        sums, counts, hits = _by_branch(scores, [len(b.targets) for group in batch for b in group.branches])
        first = 0
        for group in batch:
            item, option, branch = np.array(group.owners).T
            nats[:, item, option] = sums[:, first + branch]
            exact[:, item, option] = hits[:, first + branch]
            tokens[item, option] = counts[first + branch]
            first += len(group.branches)
        on_batch(sum(len(group.prefix) + group.branch_tokens for group in batch))
    return OptionScores(nats=nats, exact=exact, tokens=tokens)


def _by_branch(
    scores: tuple[torch.Tensor, torch.Tensor], lengths: Iterable[int]
) -> tuple[Array, Array, Array]:
    """Return nats summed over each branch's targets, their number, and whether all were exact."""
    counts = np.fromiter(lengths, np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    nats, hits = (part.double().cpu().numpy() for part in scores)
    return (
        np.add.reduceat(nats, starts, axis=1),
        counts,
        np.minimum.reduceat(hits, starts, axis=1).astype(bool),
    )


@dataclass(frozen=True, slots=True)
class Branch:
    """The tokens after a prefix except the last; `targets` are predicted from index `first` on."""

    inputs: Ids
    first: int
    targets: Ids


@dataclass(slots=True)
class PrefixGroup:
    """A prefix, its distinct branches, and the branch of each (item, option)."""

    prefix: Ids
    branches: list[Branch] = field(default_factory=list)
    owners: list[tuple[int, int, int]] = field(default_factory=list)  # item, option, branch

    @property
    def branch_tokens(self) -> int:
        """Return the total length of the branches."""
        return sum(len(branch.inputs) for branch in self.branches)


def group_by_prefix(items: Iterable[tuple[int, Sequence[Scored]]]) -> list[PrefixGroup]:
    """Group the sequences of (item, sequences) pairs by the prefix that they share, token for token.

    Notes
    -----
    An item whose options share too little, for example after cropping, yields one group per option. Items
    with the same prefix share a group. Equal branches are computed once, so equal options get equal scores.
    Sequences without a scored token are left out.
    """
    groups: dict[bytes, PrefixGroup] = {}
    finished = []
    for item, sequences in items:
        scored = {i: sequence for i, sequence in enumerate(sequences) if sequence.start < len(sequence.ids)}
        for options, length in _shared_prefixes(scored):
            prefix = scored[options[0]].ids[:length]
            key = prefix.tobytes()
            if key in groups and groups[key].branch_tokens > len(prefix):
                finished.append(groups.pop(key))  # the mask of more branches would cost more than it saves
            group = groups.setdefault(key, PrefixGroup(prefix))
            known = {(b.inputs.tobytes(), b.targets.tobytes()): n for n, b in enumerate(group.branches)}
            for option in options:
                branch = _branch(scored[option], length)
                content = (branch.inputs.tobytes(), branch.targets.tobytes())
                if content not in known:
                    known[content] = len(group.branches)
                    group.branches.append(branch)
                group.owners.append((item, option, known[content]))
    return [*finished, *groups.values()]


def _shared_prefixes(sequences: dict[int, Scored]) -> list[tuple[list[int], int]]:
    """Split an item's options into those that share a prefix, with its length."""
    if not sequences:
        return []
    own = [sequence.start - 1 for sequence in sequences.values()]
    length = min(common_length([sequence.ids for sequence in sequences.values()]), *own)
    if length >= MIN_SHARED * min(len(sequence.ids) for sequence in sequences.values()):
        return [(list(sequences), length)]
    return [([option], sequence.start - 1) for option, sequence in sequences.items()]


def _branch(sequence: Scored, length: int) -> Branch:
    return Branch(sequence.ids[length:-1], sequence.start - 1 - length, sequence.ids[sequence.start :])


def batches_by_length(groups: Iterable[PrefixGroup], token_budget: int) -> Iterator[list[PrefixGroup]]:
    """Yield batches of groups of similar length, longest first, within a budget of padded tokens."""
    ordered = sorted(groups, key=lambda group: (len(group.prefix), group.branch_tokens), reverse=True)
    batch: list[PrefixGroup] = []
    prefix = branches = 0
    for group in ordered:
        wider = max(prefix, len(group.prefix)), max(branches, group.branch_tokens)
        if batch and sum(wider) * (len(batch) + 1) > token_budget:
            yield batch
            batch, wider = [], (len(group.prefix), group.branch_tokens)
        batch.append(group)
        prefix, branches = wider
    if batch:
        yield batch


def branch_batch(batch: Sequence[PrefixGroup]) -> BranchBatch:
    """Return the groups of a batch as one tensor of tokens with its mask; targets by group, then branch."""
    split, longest = max(len(group.prefix) for group in batch), max(group.branch_tokens for group in batch)
    shape = (len(batch), split + longest)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    visible = np.zeros((len(batch), longest, split + longest), bool)
    # Padding sees itself, because a softmax over nothing is NaN.
    visible[:, np.arange(longest), split + np.arange(longest)] = True
    rows, columns, targets = [], [], []
    for row, group in enumerate(batch):
        before = len(group.prefix)
        tokens[row, :before], positions[row, :split] = group.prefix, np.arange(split)
        visible[row, : group.branch_tokens, :before] = True
        start = 0
        for branch in group.branches:
            count = len(branch.inputs)
            own, place = slice(start, start + count), slice(split + start, split + start + count)
            tokens[row, place] = branch.inputs
            positions[row, place] = np.arange(before, before + count)
            visible[row, own, place] = np.tri(count, dtype=bool)
            rows.append(np.full(len(branch.targets), row))
            columns.append(np.arange(start + branch.first, start + count))
            targets.append(branch.targets.astype(np.int64))
            start += count
    mask = np.where(visible, np.float32(0), np.float32(-np.inf))
    return BranchBatch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        prefix=split,
        mask=torch.from_numpy(mask[:, None]),
        rows=torch.from_numpy(np.concatenate(rows)),
        columns=torch.from_numpy(np.concatenate(columns)),
        targets=torch.from_numpy(np.concatenate(targets)),
    )
