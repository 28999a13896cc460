"""The order in which an epoch visits its rows, a function of (seed, epoch); long ones are never stored."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_ORDER = 0x6F72646572  # separates the data order from other uses of a seed
# Up to here the order is a sort of random bits, as it always was: 16 bytes a row, in every process.
SORTED_ROWS = 1 << 24
_ROUNDS = 6


def ordered_rows(seed: int, epoch: int, rows: int, places: np.ndarray) -> np.ndarray:
    """Return the rows that an epoch visits at `places`, int64, each from 0 to `rows` - 1."""
    if rows <= SORTED_ROWS:
        return _sorted(seed, epoch, rows)[places]
    return permuted(places, rows, _sequence(seed, epoch).generate_state(_ROUNDS, np.uint64))


def permuted(places: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Return the image of `places` under a permutation of 0 to `size` - 1, one of each sequence of keys.

    Notes
    -----
    A balanced Feistel network over the next power of four (Luby & Rackoff 1988). What falls outside `size` is
    mapped again until it falls inside (Black & Rogaway 2002), in the mean fewer than four times.
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    images = places.astype(np.uint64)
    outside = np.arange(len(images))
    while len(outside):
        images[outside] = _feistel(images[outside], half, keys)
        outside = outside[images[outside] >= size]
    return images.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    mixed: np.ndarray = (left << half) | right
    return mixed


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return well-mixed bits, by the finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def _sequence(seed: int, epoch: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([_ORDER, seed, epoch])


@lru_cache(maxsize=2)
def _sorted(seed: int, epoch: int, rows: int) -> np.ndarray:
    # Raw bits of Philox are the same in every version of numpy, which permutation() does not promise.
    bits = np.random.Philox(_sequence(seed, epoch)).random_raw(rows)
    return np.argsort(bits, kind="stable")
