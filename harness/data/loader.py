"""Batches of a data set: the data order is a function of seed and step."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from harness.data.dataset import DataError, Dataset, Split
from harness.data.order import ordered_rows
from harness.data.packed_files import stored_packing

IGNORED = -100  # label of a target that is not scored
PackingName = Literal["blocks", "best_fit"]
SPAN_ROWS = 1 << 22  # counted at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """`tokens` int64 [B, L] and the next tokens `labels` int64 [B, L], IGNORED where padded."""

    tokens: np.ndarray
    labels: np.ndarray

    def documents(self, bos: int) -> np.ndarray:
        """Return the number of the document of each token within its sequence, int64 [B, L]."""
        return np.cumsum(self.tokens == bos, axis=1)


class Rows(Protocol):
    """The rows of one split in a fixed order, each a sequence with its labels."""

    def __len__(self) -> int:
        """Return the number of rows, which is one epoch."""

    def batch(self, chosen: np.ndarray) -> Batch:
        """Return the rows `chosen`."""

    def padded(self, chosen: np.ndarray) -> int:
        """Return the number of labels of the rows `chosen` that are padding."""

    def full(self) -> np.ndarray:
        """Return the indices of the rows that are full but for at most one slot."""


def open_rows(dataset: Dataset, split: Split, packing: PackingName, sequence_length: int) -> Rows:
    """Return the rows of a split: blocks of the stream of documents, or documents packed best-fit."""
    tokens = dataset.train if split == "train" else dataset.validation
    if packing == "blocks":
        rows: Rows = _Blocks(tokens, sequence_length)
    else:
        rows = _Packed(dataset, split, tokens, sequence_length)
    shard = getattr(tokens, "_mmap", None)  # numpy offers no other way to the mapping
    if shard is not None and hasattr(mmap, "MADV_RANDOM"):
        shard.madvise(mmap.MADV_RANDOM)  # rows lie anywhere: read-ahead would read megabytes around each
    return rows


class _Blocks:
    """Consecutive blocks of the stream; the last label of a block is the next one's first token."""

    def __init__(self, tokens: np.ndarray, sequence_length: int) -> None:
        self._tokens, self._length = tokens, sequence_length

    def __len__(self) -> int:
        return max(0, (len(self._tokens) - 1) // self._length)

    def batch(self, chosen: np.ndarray) -> Batch:
        starts = chosen * self._length
        rows = np.stack([self._tokens[at : at + self._length + 1] for at in starts]).astype(np.int64)
        return Batch(tokens=rows[:, :-1], labels=rows[:, 1:])

    def padded(self, chosen: np.ndarray) -> int:
        return 0

    def full(self) -> np.ndarray:
        return np.arange(len(self))


class _Packed:
    """Rows that start with <|bos|> and hold whole documents where they fit."""

    def __init__(self, dataset: Dataset, split: Split, tokens: np.ndarray, sequence_length: int) -> None:
        self._tokens, self._bos, self._folder = tokens, dataset.bos, dataset.folder
        self._packing = stored_packing(dataset, split, sequence_length)

    def __len__(self) -> int:
        return len(self._packing)

    def batch(self, chosen: np.ndarray) -> Batch:
        try:
            rows = self._packing.fill(self._tokens, chosen, self._bos)
            empty = np.arange(1, rows.shape[1]) >= self._packing.filled[chosen][:, None]
            return Batch(tokens=rows[:, :-1], labels=np.where(empty, IGNORED, rows[:, 1:]))
        except (IndexError, ValueError):
            raise DataError(
                f"the packing in {self._folder} is damaged: delete its packed-* folders and run again"
            ) from None

    def padded(self, chosen: np.ndarray) -> int:
        return int((self._packing.slots - self._packing.filled[chosen]).sum())

    def full(self) -> np.ndarray:
        return np.flatnonzero(self._packing.filled >= self._packing.slots - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRows:
    """The training sequences of a run.

    An epoch visits every row once, in an order drawn from (seed, epoch). A batch may extend into the next
    epoch.
    """

    rows: Rows
    bos: int
    seed: int
    batch_sequences: int

    def batch(self, step: int, sequences: Sequence[int] | None = None) -> Batch:
        """Return the batch of `step`, or the given sequences of it."""
        within = np.arange(self.batch_sequences) if sequences is None else np.asarray(sequences, np.int64)
        return self.rows.batch(self._chosen(step * self.batch_sequences + within))

    def epoch(self, step: int) -> float:
        """Return the number of epochs before `step`."""
        return step * self.batch_sequences / len(self.rows)

    def padded_tokens(self, steps: int) -> int:
        """Return the number of labels of the first `steps` batches that are padding."""
        epochs, rest = divmod(steps * self.batch_sequences, len(self.rows))
        whole = sum(map(self.rows.padded, _spans(len(self.rows)))) if epochs else 0
        last = (ordered_rows(self.seed, epochs, len(self.rows), span) for span in _spans(rest))
        return epochs * whole + sum(map(self.rows.padded, last))

    def _chosen(self, places: np.ndarray) -> np.ndarray:
        epochs, within = np.divmod(places, len(self.rows))
        chosen = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = ordered_rows(self.seed, int(epoch), len(self.rows), within[here])
        return chosen


def _spans(rows: int) -> Iterator[np.ndarray]:
    """Yield 0 to `rows` - 1 in parts."""
    for first in range(0, rows, SPAN_ROWS):
        yield np.arange(first, min(first + SPAN_ROWS, rows))


def training_rows(
    dataset: Dataset,
    *,
    packing: PackingName = "blocks",
    seed: int,
    batch_sequences: int,
    sequence_length: int,
) -> TrainingRows:
    """Return the training sequences. Raises DataError if the data has none of this length."""
    rows = open_rows(dataset, "train", packing, sequence_length)
    if not len(rows):
        raise DataError(
            f"{dataset.name} has {len(dataset.train)} training tokens, too few for one sequence of "
            f"{sequence_length}: give more text or shorten the sequence"
        )
    return TrainingRows(rows=rows, bos=dataset.bos, seed=seed, batch_sequences=batch_sequences)


def validation_rows(
    dataset: Dataset, *, packing: PackingName = "blocks", sequence_length: int, blocks: int
) -> Batch:
    """Return `blocks` sequences spread evenly over the validation rows, the same for every run.

    Raises DataError if there are fewer of this length.
    """
    rows = open_rows(dataset, "validation", packing, sequence_length)
    full = rows.full()
    if blocks > len(full):
        raise DataError(
            f"{dataset.name} has {len(full)} validation blocks of {sequence_length} tokens, not {blocks}: "
            f"set evaluation.blocks={len(full)} or less, shorten the sequences, or hold out more text "
            "(data.validation_fraction)"
        )
    return rows.batch(full[np.arange(blocks) * len(full) // blocks])
