"""Best-fit packing of documents into full rows that start with <|bos|>; every token is in one row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.data.dataset import DataError
from harness.storage.files import new_folder

ARRAYS = ("pieces", "rows", "filled")  # of a packing, a file each
PACKING_VERSION = 1  # part of the name of the files that keep a packing
WINDOW_DOCUMENTS = 1 << 20  # packed together; bounds the memory that a large data set takes
_SHUFFLE = 0x7061636B  # sets the order of documents apart from other uses of a seed


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
    bits = np.random.Philox(np.random.SeedSequence([_SHUFFLE])).random_raw(len(starts))
    order = np.argsort(bits, kind="stable")
    lengths = np.diff(starts, append=total)
    parts = []
    for first in range(0, len(order), WINDOW_DOCUMENTS):
        window = order[first : first + WINDOW_DOCUMENTS]
        full, rest = _cut(starts[window], lengths[window], slots)
        parts.append((full, np.ones(len(full), np.int64), np.full(len(full), slots)))
        parts.append(_best_fit(rest, slots))
    pieces, counts, filled = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Packing(slots=slots, pieces=pieces, rows=np.concatenate([[0], np.cumsum(counts)]), filled=filled)


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


def stored_packing(
    tokens: np.ndarray, *, folder: Path, split: str, bos: int, sequence_length: int
) -> Packing:
    """Return the packing of a split, stored in the data set's `folder` on first use if it is writable.

    Raises DataError if the stored files do not belong to these tokens.
    """
    slots = sequence_length + 1  # inputs and, one on, targets
    place = folder / f"packed-{PACKING_VERSION}-{split}-{sequence_length}"
    if not place.is_dir():
        packing = pack(document_starts(tokens, bos), len(tokens), slots)
        try:
            with new_folder(place) as scratch:
                for name in ARRAYS:
                    np.save(scratch / f"{name}.npy", getattr(packing, name))
        except OSError:
            return packing
    arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    packing = Packing(slots=slots, **arrays)
    if packing.rows[-1] != len(packing.pieces) or int(packing.pieces[:, 1].sum()) != len(tokens):
        raise DataError(f"{place} does not fit its data set: delete that folder and run again")
    return packing


def document_starts(tokens: np.ndarray, bos: int) -> np.ndarray:
    """Return the starts of documents: the positions of `bos`, which occurs nowhere else."""
    step = 1 << 24
    parts = [np.flatnonzero(tokens[at : at + step] == bos) + at for at in range(0, len(tokens), step)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
