"""Best-fit packing of documents into full rows that start with <|bos|>; every token is in one row."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from harness.data.dataset import DataError
from harness.data.encoding import end_with_parent

WINDOW_DOCUMENTS = 1 << 20  # packed together; bounds the memory that a large data set takes
SORTED_DOCUMENTS = 1 << 23  # in memory at once while their order is drawn
DRAWN_DOCUMENTS = 1 << 22  # drawn at once
COARSE_BITS = 16
_SHUFFLE = 0x7061636B  # sets the order of documents apart from other uses of a seed

# Pieces [P, 2] of a window row by row, the number of pieces of each row, and the slots that it fills.
Window = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """The pieces of the token stream in each row of `slots` tokens.

    `pieces` int64 [P, 2] holds the start of a piece in the stream and its length. Row r consists of pieces
    `rows[r]` to `rows[r + 1] - 1` and fills `filled[r]` of its slots. A piece that starts inside a document
    gets a <|bos|> of its own.
    """

    slots: int
    pieces: np.ndarray
    rows: np.ndarray
    filled: np.ndarray

    def __len__(self) -> int:
        return len(self.filled)

    def fill(self, tokens: np.ndarray, chosen: np.ndarray, bos: int) -> np.ndarray:
        """Return the rows `chosen`, int64 [rows, slots]; slots left over hold `bos`."""
        out = np.full((len(chosen), self.slots), bos, np.int64)
        for number, row in enumerate(chosen):
            at = 0
            for start, length in self.pieces[self.rows[row] : self.rows[row + 1]].tolist():
                at += int(tokens[start] != bos)
                out[number, at : at + length] = tokens[start : start + length]
                at += length
        return out

    def real_share(self) -> float:
        """Return the share of all slots that hold tokens of documents; a repeated <|bos|> is none."""
        return float(self.pieces[:, 1].sum()) / (len(self) * self.slots)


def pack(starts: np.ndarray, total: int, slots: int) -> Packing:
    """Return the packing of a stream of `total` tokens, with documents at `starts`, into rows of `slots`.

    Raises
    ------
    DataError : a row is too short to hold <|bos|> and two tokens.

    Notes
    -----
    Documents longer than a row are cut into rows. Their remainders and the shorter documents are packed best
    fit: each time the largest piece that fits the gap. A gap that nothing fits is filled with the head of the
    longest remaining piece. All rows but the last of a window are therefore full, with at most one repeated
    <|bos|> and one empty slot. Documents are taken in a fixed random order.
    """
    assert len(starts), "a data set has documents"
    if slots < 3:
        raise DataError(f"best-fit packing needs sequences of at least 2 tokens, not {slots - 1}")
    parts = packed_windows(starts, total, slots)
    pieces, counts, filled = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Packing(slots=slots, pieces=pieces, rows=np.concatenate([[0], np.cumsum(counts)]), filled=filled)


def packed_windows(starts: np.ndarray, total: int, slots: int, workers: int = 1) -> Iterator[Window]:
    """Yield the packing window by window; several workers are separate processes."""
    windows = (
        (starts[chosen], _ends(starts, total, chosen) - starts[chosen], slots)
        for chosen in _random_windows(len(starts))
    )
    if workers == 1:
        yield from itertools.starmap(_pack_window, windows)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process that holds threads can hang
    with ProcessPoolExecutor(workers, context, end_with_parent) as pool:
        running: deque[Future[Window]] = deque()
        for window in windows:
            running.append(pool.submit(_pack_window, *window))
            if len(running) > workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _ends(starts: np.ndarray, total: int, chosen: np.ndarray) -> np.ndarray:
    last = chosen == len(starts) - 1
    return np.where(last, total, starts[np.minimum(chosen + 1, len(starts) - 1)])


def _pack_window(starts: np.ndarray, lengths: np.ndarray, slots: int) -> Window:
    full, rest = _cut(starts, lengths, slots)
    pieces, counts, filled = _best_fit(rest, slots)
    return (
        np.concatenate([full, pieces]),
        np.concatenate([np.ones(len(full), np.int64), counts]),
        np.concatenate([np.full(len(full), slots), filled]),
    )


def _random_windows(documents: int) -> Iterator[np.ndarray]:
    """Yield all documents in a fixed random order, by windows, holding `SORTED_DOCUMENTS` or so at once.

    They are sorted by bits that are drawn again for each group, in which the highest bits lie in one range.
    """
    counts = np.zeros(1 << COARSE_BITS, np.int64)
    for _, bits in _document_bits(documents):
        counts += np.bincount(_coarse(bits), minlength=len(counts))
    group_of = np.cumsum(counts) // SORTED_DOCUMENTS
    left = np.zeros(0, np.int64)
    for group in np.unique(group_of):
        parts = []
        for first, bits in _document_bits(documents):
            chosen = np.flatnonzero(group_of[_coarse(bits)] == group)
            parts.append((first + chosen, bits[chosen]))
        numbers, bits = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        left = np.concatenate([left, numbers[np.argsort(bits, kind="stable")]])
        while len(left) >= WINDOW_DOCUMENTS:
            yield left[:WINDOW_DOCUMENTS]
            left = left[WINDOW_DOCUMENTS:]
    if len(left):
        yield left


def _document_bits(documents: int) -> Iterator[tuple[int, np.ndarray]]:
    stream = np.random.Philox(np.random.SeedSequence([_SHUFFLE]))
    for first in range(0, documents, DRAWN_DOCUMENTS):
        yield first, stream.random_raw(min(DRAWN_DOCUMENTS, documents - first))


def _coarse(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(64 - COARSE_BITS)).astype(np.int64)


def _cut(starts: np.ndarray, lengths: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pieces [n, 2] that fill a row by themselves and remainders [m, 3]: start, length, slots."""
    long = lengths >= slots
    # The first piece brings its own <|bos|>; each later one spends a slot on another.
    further = np.where(long, (lengths - slots) // (slots - 1), 0)
    repeats = np.repeat(np.flatnonzero(long), further[long])
    number = np.arange(len(repeats)) - np.repeat(np.cumsum(further[long]) - further[long], further[long])
    first = np.stack([starts[long], np.full(long.sum(), slots)], axis=1)
    later = np.stack(
        [starts[repeats] + slots + number * (slots - 1), np.full(len(repeats), slots - 1)], axis=1
    )
    used = np.where(long, slots + further * (slots - 1), 0)
    remaining = lengths - used
    rest = np.stack([starts + used, remaining, remaining + long], axis=1)[remaining > 0]
    return np.concatenate([first, later]), rest


def _best_fit(rest: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pieces [m, 3] (start, length, slots taken) row by row, their number and slots per row."""
    pool: list[list[tuple[int, int]]] = [[] for _ in range(slots + 1)]  # by the slots that a piece takes
    for start, length, size in rest[::-1].tolist():
        pool[size].append((start, length))
    sizes = sum(1 << size for size, bucket in enumerate(pool) if bucket)  # bit s: there are pieces of s slots
    up_to = [(2 << size) - 1 for size in range(slots + 1)]
    placed: list[tuple[int, int]] = []
    counts: list[int] = []
    filled: list[int] = []
    while sizes:
        gap, before = slots, len(placed)
        while gap > 1 and sizes:
            size = (sizes & up_to[gap]).bit_length() - 1
            whole = size > 0
            if not whole:
                size = sizes.bit_length() - 1
            start, length = pool[size].pop()
            if not pool[size]:
                sizes ^= 1 << size
            if not whole:
                over = size - gap
                placed.append((start, length - over))
                pool[over + 1].append((start + length - over, over))
                sizes |= 1 << (over + 1)
                gap = 0
                break
            placed.append((start, length))
            gap -= size
        counts.append(len(placed) - before)
        filled.append(slots - gap)
    return np.array(placed, np.int64).reshape(-1, 2), np.array(counts, np.int64), np.array(filled, np.int64)
