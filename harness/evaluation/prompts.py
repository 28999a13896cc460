"""Prompts of items as tokens: few-shot examples, question and scored span, as nanochat defines Core.

Imports no torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from harness.evaluation.bundle import Item, Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")
SHUFFLE_SEED = 1337
FEWSHOT_SEED = 1234  # that of Core; the paper's three are 1234, 2345 and 3456
Ids = np.ndarray


@dataclass(frozen=True, slots=True)
class Scored:
    """One prompt with one option: ids[start:] are scored, each predicted from all ids before it."""

    ids: Ids
    start: int
    cropped: bool = False


def shuffle(items: Sequence[T]) -> list[T]:
    """Return the items in evaluation order; an item's position in it seeds its few-shot draw."""
    order = list(items)
    random.Random(SHUFFLE_SEED).shuffle(order)
    return order


def draw_examples(count: int, index: int, shots: int, seed: int = FEWSHOT_SEED) -> list[int]:
    """Return the positions of the few-shot examples of the item at `index`, its own excluded."""
    if not shots:
        return []
    drawn = random.Random(seed + index).sample(range(count - 1), shots)
    return [position + (position >= index) for position in drawn]


def render(task: Task, item: Item, examples: Sequence[Item]) -> list[str]:
    """Return the prompt with each option; for language modelling, without and with the answer."""
    examples_text = "".join(f"{stem}{task.delimiter}{ending}\n\n" for stem, ending in map(_solved, examples))
    if task.kind == "language_modeling":
        stem, ending = item.option(0)
        without = f"{examples_text}{stem}{task.delimiter}"
        # The first token of the answer includes the space at the end of the delimiter.
        return [without.strip(), without + ending]
    options = map(item.option, range(item.options))
    return [f"{examples_text}{stem}{task.delimiter}{ending}" for stem, ending in options]


def encode(
    task: Task,
    items: Sequence[Item],
    indices: Sequence[int],
    tokenizer: Tokenizer,
    *,
    bos: int,
    context: int,
    seed: int = FEWSHOT_SEED,
) -> list[list[Scored]]:
    """Return the sequences of the items at `indices`, one per option.

    Parameters
    ----------
    items : all items of the task, in evaluation order.
    bos : token id before each prompt.
    context : tokens; longer sequences lose their first tokens.
    seed : of the few-shot draws.
    """
    prompts = [
        render(task, items[i], [items[j] for j in draw_examples(len(items), i, task.shots, seed)])
        for i in indices
    ]
    flat = [prompt for item in prompts for prompt in item]
    encoded = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    return [_spans(task, [_ids(bos, next(encoded).ids) for _ in item], context) for item in prompts]


def common_length(sequences: Sequence[Ids]) -> int:
    """Return the length of the longest common prefix of the sequences."""
    shortest = min(map(len, sequences))
    first = sequences[0][:shortest]
    same = np.ones(shortest, bool)
    for other in sequences[1:]:
        same &= first == other[:shortest]
    return shortest if same.all() else int(same.argmin())


def _spans(task: Task, ids: list[Ids], context: int) -> list[Scored]:
    """Return the scored spans: after the common prefix (choices), the common suffix (schema), the answer."""
    if task.kind == "schema":
        shared = common_length([one[::-1] for one in ids])
        return [_crop(one, len(one) - shared, context) for one in ids]
    start = common_length(ids)
    return [_crop(one, start, context) for one in (ids[1:] if task.kind == "language_modeling" else ids)]


def _crop(ids: Ids, start: int, context: int) -> Scored:
    # The first token is never scored, because nothing precedes it.
    lost = max(0, len(ids) - context)
    return Scored(ids[lost:], max(1, start - lost), lost > 0)


def _ids(bos: int, ids: Sequence[int]) -> Ids:
    return np.array([bos, *ids], np.int32)


def _solved(item: Item) -> tuple[str, str]:
    return item.option(item.gold)
