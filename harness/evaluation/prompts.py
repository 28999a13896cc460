"""From an item to tokens: few-shot examples, prompt and the span that is scored, as nanochat defines Core.

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


def shuffled(items: Sequence[T]) -> list[T]:
    """Return the items in the order of the evaluation, whose positions seed the few-shot draws."""
    order = list(items)
    random.Random(SHUFFLE_SEED).shuffle(order)
    return order


def draw_examples(count: int, index: int, shots: int, seed: int = FEWSHOT_SEED) -> list[int]:
    """Draw the positions of the few-shot examples of the item at `index`, never its own."""
    if not shots:
        return []
    drawn = random.Random(seed + index).sample(range(count - 1), shots)
    return [position + (position >= index) for position in drawn]


def render(task: Task, item: Item, examples: Sequence[Item]) -> list[str]:
    """Return the prompt with each option; for language modelling, the prompt without and with its answer."""
    shown = "".join(f"{stem}{task.delimiter}{ending}\n\n" for stem, ending in map(_solved, examples))
    if task.kind == "language_modeling":
        stem, ending = item.option(0)
        without = f"{shown}{stem}{task.delimiter}"
        # The answer's tokens begin with the space that the delimiter ends in.
        return [without.strip(), without + ending]
    options = map(item.option, range(item.options))
    return [f"{shown}{stem}{task.delimiter}{ending}" for stem, ending in options]


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

    `items` are all of the task, in the order of the evaluation. A sequence longer than `context` loses its
    first tokens.
    """
    prompts = [
        render(task, items[i], [items[j] for j in draw_examples(len(items), i, task.shots, seed)])
        for i in indices
    ]
    flat = [prompt for item in prompts for prompt in item]
    encoded = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    return [_spans(task, [_ids(bos, next(encoded).ids) for _ in item], context) for item in prompts]


def common_length(sequences: Sequence[Ids]) -> int:
    """Return how many tokens at their beginning all sequences share."""
    shortest = min(map(len, sequences))
    first = sequences[0][:shortest]
    same = np.ones(shortest, bool)
    for other in sequences[1:]:
        same &= first == other[:shortest]
    return shortest if same.all() else int(same.argmin())


def _spans(task: Task, ids: list[Ids], context: int) -> list[Scored]:
    """Find what is scored: after the shared beginning (choices), the shared end (schema), the answer."""
    if task.kind == "schema":
        shared = common_length([one[::-1] for one in ids])
        return [_crop(one, len(one) - shared, context) for one in ids]
    start = common_length(ids)
    return [_crop(one, start, context) for one in (ids[1:] if task.kind == "language_modeling" else ids)]


def _crop(ids: Ids, start: int, context: int) -> Scored:
    # The first token of all has nothing before it to be predicted from.
    lost = max(0, len(ids) - context)
    return Scored(ids[lost:], max(1, start - lost), lost > 0)


def _ids(bos: int, ids: Sequence[int]) -> Ids:
    return np.array([bos, *ids], np.int32)


def _solved(item: Item) -> tuple[str, str]:
    return item.option(item.gold)
