from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loopscale
from harness.data.dataset import DataError, Dataset
from harness.data.loader import IGNORED, training_rows, validation_rows
from harness.data.prepare import prepare

NO_FOLDER = Path("/dev/null/nowhere")  # nothing can be kept there


def dataset(train, validation=100, bos=2**16 - 1):
    """A data set whose tokens are their own positions, or the given tokens."""
    train, validation = (
        np.arange(tokens, dtype=np.uint32) if isinstance(tokens, int) else tokens
        for tokens in (train, validation)
    )
    return Dataset(
        name="positions",
        digest="0" * 16,
        vocabulary_size=2**16,
        bos=bos,
        train=train,
        validation=validation,
        token_bytes=np.ones(2**16, np.int32),
        unigram_nats=1.0,
        folder=NO_FOLDER,
    )


def documents(lengths, bos=0):
    """A stream of documents, each `bos` and then tokens that occur once: number 1 upwards."""
    starts = np.cumsum([0, *lengths[:-1]])
    tokens = np.arange(sum(lengths), dtype=np.uint32) + 1
    tokens[starts] = bos
    return tokens


def rows_of(batch):
    """Inputs and labels as one array [B, L + 1]."""
    return np.concatenate([batch.tokens, batch.labels[:, -1:]], axis=1)


def batches(data, steps, **how):
    rows = training_rows(data, **how)
    return [rows_of(rows.batch(step)) for step in steps]


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
        with pytest.raises(DataError, match="too few for one sequence"):
            training_rows(data, **how)
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


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=40),
    sequence_length=st.integers(2, 40),
    batch_sequences=st.integers(1, 11),
    seed=st.integers(0, 2**32),
)
def test_ranks_see_every_token_of_every_document_once_per_epoch(
    ranks, lengths, sequence_length, batch_sequences, seed
):
    data = dataset(documents(lengths), bos=0)
    how = {"seed": seed, "batch_sequences": batch_sequences, "sequence_length": sequence_length}
    rows = training_rows(data, packing="best_fit", **how)
    per_epoch, epochs = len(rows.rows), 2
    own = [range(rank, batch_sequences, ranks) for rank in range(ranks)]
    seen = {}
    for step in range(-(-epochs * per_epoch // batch_sequences)):
        for mine in own:
            for place, row in zip(mine, rows_of(rows.batch(step, mine)), strict=True):
                seen[step * batch_sequences + place] = row
    for epoch in range(epochs):
        epoch_rows = np.stack([seen[epoch * per_epoch + at] for at in range(per_epoch)])
        tokens = epoch_rows[epoch_rows > 0]  # neither <|bos|> nor padding
        assert sorted(tokens.tolist()) == sorted(set(documents(lengths).tolist()) - {0})


@given(
    lengths=st.lists(st.integers(2, 200), min_size=1, max_size=60),
    sequence_length=st.integers(2, 64),
)
def test_packed_rows_start_with_bos_are_full_and_go_on_in_their_documents(lengths, sequence_length):
    stream = documents(lengths)
    how = {"seed": 0, "batch_sequences": 1, "sequence_length": sequence_length}
    rows = training_rows(dataset(stream, bos=0), packing="best_fit", **how)
    batch = rows.rows.batch(np.arange(len(rows.rows)))
    assert (batch.tokens[:, 0] == 0).all()
    padded = batch.labels == IGNORED
    assert padded.sum() == rows.padded_tokens(len(rows.rows))
    assert ((padded.sum(axis=1) > 1).sum()) <= 1  # one row in all has more than one slot to spare
    assert not (np.diff(padded.astype(int), axis=1) < 0).any()  # padding stands at the end
    # A token is followed by the next of its document, by a new document, or by the end.
    ends = set((np.cumsum(lengths) - 1).tolist())
    for now, then in zip(batch.tokens.ravel(), batch.labels.ravel(), strict=True):
        if then not in (IGNORED, 0) and now != 0:
            assert then == now + 1
        if then == 0 and now != 0:
            assert now - 1 in ends  # tokens are 1 + their position


@pytest.mark.parametrize("sequence_length", [256, 2048])
@pytest.mark.parametrize("length_of", ["short", "long", "one size", "mixed"])
def test_at_least_99_percent_of_packed_slots_are_tokens_of_the_documents(sequence_length, length_of):
    draw = np.random.default_rng(0)
    lengths = {
        "short": draw.integers(2, 60, 60_000),
        "long": draw.integers(3000, 30_000, 150),
        "one size": np.full(8_000, 150),  # a packing that cuts no document would leave 40 % of 257 empty
        "mixed": np.exp(draw.normal(6.5, 1.2, 2_000)).astype(int) + 2,
    }[length_of]
    stream = documents(lengths.tolist())
    how = {"seed": 0, "batch_sequences": 1, "sequence_length": sequence_length}
    rows = training_rows(dataset(stream, bos=0), packing="best_fit", **how)
    assert len(stream) / (len(rows.rows) * (sequence_length + 1)) >= 0.99


@pytest.mark.xdist_group("embedded set")  # it takes seconds to make
@pytest.mark.parametrize("sequence_length", [256, 2048])
def test_at_least_99_percent_of_the_embedded_sets_slots_are_tokens(cache, sequence_length):
    """Counted from the rows themselves: what is neither padding nor a <|bos|> put before a cut document."""
    (run,) = loopscale.compose(["data=installed_python_tiny", "data.vocabulary_size=512"]).runs.values()
    embedded = prepare(run.data, cache)
    how = {"seed": 0, "batch_sequences": 1, "sequence_length": sequence_length}
    rows = training_rows(embedded, packing="best_fit", **how).rows
    slots = len(rows) * (sequence_length + 1)
    assert len(embedded.train) / slots >= 0.99


def test_documents_that_fit_a_row_are_seldom_cut():
    draw = np.random.default_rng(1)
    lengths = (np.exp(draw.normal(5, 1.0, 5_000)).astype(int) + 2).tolist()
    how = {"seed": 0, "batch_sequences": 1, "sequence_length": 512}
    rows = training_rows(dataset(documents(lengths), bos=0), packing="best_fit", **how).rows
    batch = rows.batch(np.arange(len(rows)))
    repeated = (rows_of(batch) == 0).sum() - (batch.labels == IGNORED).sum() - len(lengths)
    too_long = sum((length - 2) // 512 for length in lengths if length > 513)
    assert repeated - too_long < 0.02 * len(lengths)


def test_a_packing_is_kept_and_refused_where_it_does_not_belong(tmp_path):
    from dataclasses import replace

    how = {"packing": "best_fit", "seed": 0, "batch_sequences": 4, "sequence_length": 32}
    data = replace(dataset(documents([50, 20, 70, 9]), bos=0), folder=tmp_path)
    made = rows_of(training_rows(data, **how).batch(0))
    (kept,) = tmp_path.glob("packed-*")
    np.testing.assert_array_equal(rows_of(training_rows(data, **how).batch(0)), made)
    np.testing.assert_array_equal(
        rows_of(training_rows(replace(data, folder=NO_FOLDER), **how).batch(0)), made
    )
    with pytest.raises(DataError, match=rf"{kept} does not fit its data set: delete that folder"):
        training_rows(replace(data, train=documents([50, 20, 70, 10])), **how)
    header = (kept / "rows.npy").read_bytes()
    (kept / "rows.npy").write_bytes(header.replace(b",)", b", ", 1))  # a tuple that does not end
    with pytest.raises(DataError, match=rf"{kept} does not fit its data set"):
        training_rows(data, **how)


def test_sequences_too_short_to_pack_are_refused():
    with pytest.raises(DataError, match="best-fit packing needs sequences of at least 2 tokens, not 1"):
        training_rows(
            dataset(documents([5]), bos=0), packing="best_fit", seed=0, batch_sequences=1, sequence_length=1
        )


@pytest.mark.parametrize("packing", ["blocks", "best_fit"])
@given(seed=st.integers(0, 2**32), steps=st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_batch_is_a_function_of_seed_and_step(packing, seed, steps):
    data = dataset(documents([7, 40, 3, 100, 150]), bos=0)
    how = {"packing": packing, "seed": seed, "batch_sequences": 4, "sequence_length": 9}
    in_turn = dict(enumerate(batches(data, range(41), **how)))
    for step in steps:
        np.testing.assert_array_equal(batches(data, [step], **how)[0], in_turn[step])


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
    (batch,) = batches(dataset(9), [0], seed=0, batch_sequences=8, sequence_length=1)
    assert batch[:, 0].tolist() == [4, 2, 7, 0, 6, 5, 1, 3]


def test_packing_is_frozen():
    # The same for packed rows: documents of 5, 9 and 3 tokens in rows of 6 slots, worked out by hand. The
    # long one fills a row; its 3 left over, with <|bos|>, take 4 slots; those of 5, 4 and 3 go largest first.
    rows = training_rows(
        dataset(documents([5, 9, 3]), bos=0), packing="best_fit", seed=0, batch_sequences=1, sequence_length=5
    ).rows
    # 5 leaves a gap of one; 4 leaves 2, into which the head of the last document goes; its tail remains.
    assert rows_of(rows.batch(np.arange(4))).tolist() == [
        [0, 7, 8, 9, 10, 11],
        [0, 2, 3, 4, 5, IGNORED],
        [0, 12, 13, 14, 0, 16],
        [0, 17, 0, 0, 0, IGNORED],
    ]


@given(tokens=st.integers(2, 500), sequence_length=st.integers(1, 30), blocks=st.integers(1, 40))
def test_validation_blocks_are_whole_distinct_and_spread(tokens, sequence_length, blocks):
    data = dataset(2, tokens)
    available = (tokens - 1) // sequence_length
    if blocks > available:
        with pytest.raises(DataError, match=f"has {available} validation blocks of {sequence_length} tokens"):
            validation_rows(data, sequence_length=sequence_length, blocks=blocks)
        return
    rows = rows_of(validation_rows(data, sequence_length=sequence_length, blocks=blocks))
    assert rows.shape == (blocks, sequence_length + 1)
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)
    gaps = np.diff(rows[:, 0])
    assert rows[0, 0] == 0
    assert all(gap >= sequence_length for gap in gaps)
    # Evenly: no two gaps differ by more than one block.
    assert not len(gaps) or gaps.max() - gaps.min() <= sequence_length


def test_packed_validation_rows_are_full_and_distinct():
    data = dataset(2, documents([30] * 20 + [5]), bos=0)
    batch = validation_rows(data, packing="best_fit", sequence_length=16, blocks=30)
    assert (batch.tokens[:, 0] == 0).all()
    assert ((batch.labels == IGNORED).sum(axis=1) <= 1).all()
    scored = batch.labels[batch.labels > 0]
    assert len(scored) == len(set(scored.tolist()))


@pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="Linux alone shows what a mapping is advised"
)
def test_rows_are_read_without_read_ahead(tiny_run, cache):
    """Read-ahead around rows at random places reads hundreds of times what a batch needs."""
    loopscale.data(tiny_run)
    data = prepare(loopscale.compose(tiny_run).runs["looped_40k"].data, cache)
    training_rows(data, seed=0, batch_sequences=4, sequence_length=32, packing="best_fit")
    maps = Path("/proc/self/smaps").read_text().split("VmFlags: ")
    flags = [
        after.splitlines()[0].split()
        for before, after in pairwise(maps)
        if str(data.folder / "train.bin") in before
    ]
    assert flags and "rr" in flags[-1]  # random read, see proc(5)
