import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data import order
from harness.data.order import ordered_rows, permuted

WORD = 2**64 - 1


def permuted_one(place, size, keys):
    """The permutation as defined, in integers: halves, rounds of SplitMix64, again until inside."""
    half = max(1, -(-(size - 1).bit_length() // 2))
    value = place
    while True:
        left, right = value >> half, value & (2**half - 1)
        for key in keys:
            mixed = right ^ int(key)
            mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & WORD
            mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & WORD
            left, right = right, left ^ ((mixed ^ mixed >> 31) & (2**half - 1))
        value = left << half | right
        if value < size:
            return value


@given(size=st.integers(1, 700), keys=st.lists(st.integers(0, WORD), min_size=6, max_size=6))
def test_every_place_has_one_row_and_every_row_one_place(size, keys):
    images = permuted(np.arange(size), size, np.array(keys, np.uint64))
    assert sorted(images.tolist()) == list(range(size))


@given(
    size=st.integers(2**24 + 1, 2**40),
    share=st.floats(0, 1, exclude_max=True),
    keys=st.lists(st.integers(0, WORD), min_size=6, max_size=6),
)
def test_any_place_is_computed_as_defined_without_the_others(size, share, keys):
    place = int(share * size)
    image = permuted(np.array([place]), size, np.array(keys, np.uint64))
    assert image.dtype == np.int64
    assert image.tolist() == [permuted_one(place, size, keys)]


def test_a_long_epoch_is_a_permutation_that_looks_random(monkeypatch):
    monkeypatch.setattr(order, "SORTED_ROWS", 1000)
    rows = 100_003
    seen = [ordered_rows(seed, epoch, rows, np.arange(rows)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for one in seen:
        assert np.array_equal(np.sort(one), np.arange(rows))
        # Of a random permutation these have a standard deviation of 1 / sqrt(rows) = .003, and about 2 of the
        # steps are 1.
        assert abs(np.corrcoef(np.arange(rows), one)[0, 1]) < 0.015
        assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.015
        assert (np.diff(one) == 1).sum() < 12
    assert (seen[0] == seen[1]).sum() < 12 and (seen[0] == seen[2]).sum() < 12


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_a_short_epoch_keeps_the_order_it_always_had(rows):
    bits = np.random.Philox(np.random.SeedSequence([0x6F72646572, 5, 2])).random_raw(rows)
    np.testing.assert_array_equal(ordered_rows(5, 2, rows, np.arange(rows)), np.argsort(bits, kind="stable"))
