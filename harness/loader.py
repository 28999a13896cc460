"""Batches out of a data set, as functions of their arguments alone."""

from functools import lru_cache

import numpy as np

from harness.dataset import DataError, Dataset

_ORDER = 0x6F72646572  # sets the stream of data orders apart from other uses of a seed


def train_batch(
    dataset: Dataset, *, seed: int, step: int, batch_sequences: int, sequence_length: int
) -> np.ndarray:
    """Return the batch of `step`, int64 [batch_sequences, sequence_length + 1]: inputs and, one on, targets.

    Documents, each after <|bos|>, run on through the blocks. An epoch visits every block once, in an order
    drawn from (seed, epoch). Raises DataError when the data holds no block of this length.
    """
    blocks = count_blocks(dataset.train, sequence_length)
    if not blocks:
        raise DataError(
            f"{dataset.name} has {len(dataset.train)} training tokens, too few for one block of "
            f"{sequence_length}: give more text or shorten the sequence"
        )
    places = np.arange(step * batch_sequences, (step + 1) * batch_sequences)
    chosen = [_order(seed, int(place // blocks), blocks)[place % blocks] for place in places]
    return _blocks(dataset.train, np.array(chosen) * sequence_length, sequence_length)


def validation_blocks(dataset: Dataset, *, sequence_length: int, blocks: int) -> np.ndarray:
    """Return `blocks` blocks spread evenly over the validation tokens, int64 [blocks, sequence_length + 1].

    They are the same for every run. Raises DataError when there are fewer blocks of this length.
    """
    available = count_blocks(dataset.validation, sequence_length)
    if blocks > available:
        raise DataError(
            f"{dataset.name} has {available} validation blocks of {sequence_length} tokens, not {blocks}: "
            "ask for fewer or shorter blocks, or hold out more text"
        )
    return _blocks(
        dataset.validation, np.arange(blocks) * available // blocks * sequence_length, sequence_length
    )


def count_blocks(tokens: np.ndarray, sequence_length: int) -> int:
    """Return how many blocks a stream holds; each takes its last target from the next one's first token."""
    return max(0, (len(tokens) - 1) // sequence_length)


def _blocks(tokens: np.ndarray, starts: np.ndarray, sequence_length: int) -> np.ndarray:
    return np.stack([tokens[start : start + sequence_length + 1] for start in starts]).astype(np.int64)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, blocks: int) -> np.ndarray:
    # Raw bits of Philox are the same in every version of numpy, which permutation() does not promise.
    bits = np.random.Philox(np.random.SeedSequence([_ORDER, seed, epoch])).random_raw(blocks)
    return np.argsort(bits, kind="stable")
