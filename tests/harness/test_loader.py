from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data_config import DataError
from harness.dataset import Dataset
from harness.loader import train_batch, validation_blocks


def dataset(train_tokens, validation_tokens=100):
    """A data set whose tokens are their own positions."""
    return Dataset(
        name="positions",
        digest="0" * 16,
        vocabulary_size=2**16,
        bos=0,
        train=np.arange(train_tokens, dtype=np.uint16),
        validation=np.arange(validation_tokens, dtype=np.uint16),
        token_bytes=np.ones(2**16, np.int32),
        unigram_nats=1.0,
        folder=Path(),
    )


def batches(data, steps, **how):
    return [train_batch(data, step=step, **how) for step in steps]


@given(
    train_tokens=st.integers(2, 400),
    sequence_length=st.integers(1, 20),
    batch_sequences=st.integers(1, 7),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_block_is_seen_exactly_once_per_epoch(train_tokens, sequence_length, batch_sequences, seed):
    data = dataset(train_tokens)
    blocks = (train_tokens - 1) // sequence_length
    how = {"seed": seed, "batch_sequences": batch_sequences, "sequence_length": sequence_length}
    if blocks == 0:
        with pytest.raises(DataError, match="too few for one block"):
            train_batch(data, step=0, **how)
        return
    epochs = 3
    rows = np.concatenate(batches(data, range(-(-epochs * blocks // batch_sequences)), **how))
    assert rows.dtype == np.int64
    assert rows.shape[1] == sequence_length + 1
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)  # consecutive tokens: targets are inputs, one on
    starts = rows[:, 0].tolist()
    for epoch in range(epochs):
        seen = starts[epoch * blocks : (epoch + 1) * blocks]
        assert sorted(seen) == [block * sequence_length for block in range(blocks)]


@given(seed=st.integers(0, 2**32), steps=st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_batch_is_a_function_of_seed_and_step(seed, steps):
    data = dataset(300)
    how = {"seed": seed, "batch_sequences": 4, "sequence_length": 9}
    in_turn = {step: train_batch(data, step=step, **how) for step in range(41)}
    for step in steps:
        np.testing.assert_array_equal(train_batch(data, step=step, **how), in_turn[step])


def test_batch_size_does_not_change_the_order_of_sequences():
    data = dataset(5000)
    by_4 = batches(data, range(12), seed=3, batch_sequences=4, sequence_length=16)
    by_16 = batches(data, range(3), seed=3, batch_sequences=16, sequence_length=16)
    np.testing.assert_array_equal(np.concatenate(by_4), np.concatenate(by_16))


def test_seeds_and_epochs_have_orders_of_their_own():
    data = dataset(3201)
    how = {"batch_sequences": 200, "sequence_length": 16}
    first, second = batches(data, [0, 1], seed=0, **how)
    (other,) = batches(data, [0], seed=1, **how)
    for batch in (second, other):
        # A random permutation leaves one block in its place on average.
        assert np.sum(batch[:, 0] == first[:, 0]) < 10
    assert abs(np.corrcoef(first[:, 0], np.arange(200))[0, 1]) < 0.3


def test_order_is_frozen():
    # A changed order would make two runs of the same identity differ: written down once, 8 blocks of 1 token.
    batch = train_batch(dataset(9), seed=0, step=0, batch_sequences=8, sequence_length=1)
    assert batch[:, 0].tolist() == [4, 2, 7, 0, 6, 5, 1, 3]


@given(tokens=st.integers(2, 500), sequence_length=st.integers(1, 30), blocks=st.integers(1, 40))
def test_validation_blocks_are_whole_distinct_and_spread(tokens, sequence_length, blocks):
    data = dataset(2, tokens)
    available = (tokens - 1) // sequence_length
    if blocks > available:
        with pytest.raises(DataError, match=f"has {available} validation blocks of {sequence_length} tokens"):
            validation_blocks(data, sequence_length=sequence_length, blocks=blocks)
        return
    rows = validation_blocks(data, sequence_length=sequence_length, blocks=blocks)
    assert rows.shape == (blocks, sequence_length + 1)
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)
    gaps = np.diff(rows[:, 0])
    assert rows[0, 0] == 0
    assert all(gap >= sequence_length for gap in gaps)
    # Evenly: no two gaps differ by more than one block.
    assert not len(gaps) or gaps.max() - gaps.min() <= sequence_length
