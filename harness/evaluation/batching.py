"""Prompts as prefixes with branches, and those in batches of like length under a token budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from harness.evaluation.prompts import Ids, Scored, common_length
from model.prefix_scoring import BranchBatch

# Two sequences share a prefix where that is at least this part of the shorter one: a branch costs a mask.
LEAST_SHARED = 0.5


@dataclass(frozen=True, slots=True)
class Branch:
    """The tokens after a prefix, the last one left out; the `targets` are predicted from `first` on."""

    inputs: Ids
    first: int
    targets: Ids


@dataclass(slots=True)
class Group:
    """A prefix, its distinct branches, and which branch belongs to which (item, option)."""

    prefix: Ids
    branches: list[Branch] = field(default_factory=list)
    owners: list[tuple[int, int, int]] = field(default_factory=list)  # item, option, branch

    @property
    def branch_tokens(self) -> int:
        """Return the length of all branches, one after the other."""
        return sum(len(branch.inputs) for branch in self.branches)


def group(items: Iterable[tuple[int, Sequence[Scored]]]) -> list[Group]:
    """Gather the sequences of (item, its sequences) under the prefixes that they share, token for token.

    An item whose options share too little, as after cropping, gives one group per option. Items with one
    and the same prefix share a group. Equal branches are computed once, so equal options get equal scores.
    Sequences without a scored token are left out.
    """
    groups: dict[bytes, Group] = {}
    finished = []
    for item, sequences in items:
        scored = {i: sequence for i, sequence in enumerate(sequences) if sequence.start < len(sequence.ids)}
        for options, length in _shared(scored):
            prefix = scored[options[0]].ids[:length]
            key = prefix.tobytes()
            if key in groups and groups[key].branch_tokens > len(prefix):
                finished.append(groups.pop(key))  # more branches would make its mask outgrow what it saves
            target = groups.setdefault(key, Group(prefix))
            known = {(b.inputs.tobytes(), b.targets.tobytes()): n for n, b in enumerate(target.branches)}
            for option in options:
                branch = _branch(scored[option], length)
                content = (branch.inputs.tobytes(), branch.targets.tobytes())
                if content not in known:
                    known[content] = len(target.branches)
                    target.branches.append(branch)
                target.owners.append((item, option, known[content]))
    return [*finished, *groups.values()]


def _shared(sequences: dict[int, Scored]) -> list[tuple[list[int], int]]:
    """Split an item's options into those that share a prefix, with its length."""
    if not sequences:
        return []
    own = [sequence.start - 1 for sequence in sequences.values()]
    length = min(common_length([sequence.ids for sequence in sequences.values()]), *own)
    if length >= LEAST_SHARED * min(len(sequence.ids) for sequence in sequences.values()):
        return [(list(sequences), length)]
    return [([option], sequence.start - 1) for option, sequence in sequences.items()]


def _branch(sequence: Scored, length: int) -> Branch:
    return Branch(sequence.ids[length:-1], sequence.start - 1 - length, sequence.ids[sequence.start :])


def batches(groups: Iterable[Group], token_budget: int) -> Iterator[list[Group]]:
    """Yield groups of like length whose padded tokens stay within the budget; longest first."""
    ordered = sorted(groups, key=lambda one: (len(one.prefix), one.branch_tokens), reverse=True)
    batch: list[Group] = []
    prefix = branches = 0
    for one in ordered:
        wider = max(prefix, len(one.prefix)), max(branches, one.branch_tokens)
        if batch and sum(wider) * (len(batch) + 1) > token_budget:
            yield batch
            batch, wider = [], (len(one.prefix), one.branch_tokens)
        batch.append(one)
        prefix, branches = wider
    if batch:
        yield batch


def as_tensors(batch: Sequence[Group]) -> BranchBatch:
    """Lay the groups of a batch out as one tensor of tokens with its mask.

    Targets stand group by group, branch by branch.
    """
    split, longest = max(len(one.prefix) for one in batch), max(one.branch_tokens for one in batch)
    shape = (len(batch), split + longest)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    looks = np.zeros((len(batch), longest, split + longest), bool)
    looks[:, np.arange(longest), split + np.arange(longest)] = True  # padding too, or its softmax has no term
    rows, columns, targets = [], [], []
    for row, one in enumerate(batch):
        before = len(one.prefix)
        tokens[row, :before], positions[row, :split] = one.prefix, np.arange(split)
        looks[row, : one.branch_tokens, :before] = True
        start = 0
        for branch in one.branches:
            count = len(branch.inputs)
            own = slice(start, start + count)
            tokens[row, split + start : split + start + count] = branch.inputs
            positions[row, split + start : split + start + count] = np.arange(before, before + count)
            looks[row, own, split + start : split + start + count] = np.tri(count, dtype=bool)
            rows.append(np.full(len(branch.targets), row))
            columns.append(np.arange(start + branch.first, start + count))
            targets.append(branch.targets.astype(np.int64))
            start += count
    mask = np.where(looks, np.float32(0), np.float32(-np.inf))
    return BranchBatch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        prefix=split,
        mask=torch.from_numpy(mask[:, None]),
        rows=torch.from_numpy(np.concatenate(rows)),
        columns=torch.from_numpy(np.concatenate(columns)),
        targets=torch.from_numpy(np.concatenate(targets)),
    )
