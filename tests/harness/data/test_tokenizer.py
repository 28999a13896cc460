import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from harness.data.dataset import DataError, token_bytes
from harness.data.documents import Document
from harness.data.encoding import Encoder, encode_documents
from harness.data.tokenizer import SPECIAL_TOKENS, Sample, merges_digest, train_tokenizer, training_stage

pytestmark = pytest.mark.xdist_group("tokenizer")  # what they share is made once

U2 = np.dtype("<u2")
MODULES = ("argparse.py", "typing.py", "json/decoder.py", "ast.py", "datetime.py")
TEXTS = [(Path(sysconfig.get_path("stdlib")) / name).read_text("utf-8") for name in MODULES] + [
    "é日本 naïve\n" * 3
]


@pytest.fixture(scope="module")
def tokenizer_json():
    return train_tokenizer(TEXTS, 1024).to_str()


@pytest.fixture(scope="module")
def library(tokenizer_json):
    """The tokenizers library alone, which decides what is right."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def encoder(tokenizer_json):
    return Encoder(tokenizer_json, U2)


def ids(encoded, dtype=U2):
    return np.frombuffer(encoded, dtype).tolist()


def test_special_tokens_come_first(library):
    assert [library.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    assert library.get_vocab_size() == 1024


def test_split_pattern_is_that_of_gpt4(library):
    pieces = library.pre_tokenizer.pre_tokenize_str("I'll pay  $12345.60,\n\n  it's MINE'S\tübrig ")
    # Ġ, Ċ and ĉ stand for space, line feed and tab in the byte-level alphabet.
    assert [piece for piece, _ in pieces] == [
        *("I", "'ll", "Ġpay", "Ġ", "Ġ$", "123", "45", ".", "60", ",ĊĊ", "Ġ", "Ġit", "'s", "ĠMINE", "'S"),
        *("ĉÃ¼brig", "Ġ"),
    ]


def test_training_again_gives_the_same_tokenizer(tokenizer_json, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert train_tokenizer(TEXTS, 1024).to_str() == tokenizer_json
    other = train_tokenizer(TEXTS[:-1], 1024).to_str()
    assert merges_digest(other) != merges_digest(tokenizer_json)


def test_a_long_training_says_what_it_costs_and_how_far_it_has_read():
    assert training_stage(10_000_000) == "training the tokenizer"
    assert training_stage(2_000_000_000) == (
        "training the tokenizer on 2 GB: about 14 CPU minutes, 6.2 GB of memory"
    )
    done = []
    train_tokenizer(["a word and a word"] * 2500, 264, done.append)
    assert done == [0.0, 0.4, 0.8]


def test_vocabulary_that_the_text_cannot_fill_is_refused():
    with pytest.raises(
        DataError, match=r"supports a vocabulary of 2\d\d, not 1024: set data.vocabulary_size"
    ):
        train_tokenizer(["aaaa bbbb"], 1024)


def test_token_bytes_add_up_to_the_text(tokenizer_json, encoder):
    lengths = token_bytes(tokenizer_json)
    assert lengths.shape == (1024,)
    assert lengths[:3].tolist() == [0, 0, 0]
    for text in TEXTS:
        assert lengths[ids(encoder(text))].sum() == len(text.encode())


def test_documents_decode_to_themselves_after_bos(encoder, library):
    for text in TEXTS:
        first, *rest = ids(encoder(text))
        assert first == 0
        assert library.decode(rest, skip_special_tokens=False) == text


def test_special_tokens_in_a_document_are_text(encoder, library):
    for text in ("a<|bos|>b", "é<|bos|>b"):
        tokens = ids(encoder(text))[1:]
        assert not {0, 1, 2} & set(tokens)
        assert library.decode(tokens) == text


def test_encoder_gives_the_ids_of_the_library_on_real_text(encoder, library):
    for text in TEXTS:
        assert ids(encoder(text))[1:] == library.encode(text, add_special_tokens=False).ids


AWKWARD = st.lists(
    st.sampled_from(
        [*" \n\r\t\v\f'sSlL.,_!09²Ⅷ٣一aZéſ", "\x1c", "\x85", "\xa0", "\u2028", "\u0301", "\ufeff", "\r\n"]
    )
    | st.text(max_size=3),
    max_size=30,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(text=AWKWARD)
def test_encoder_gives_the_ids_of_the_library_on_any_text(encoder, library, text):
    assert ids(encoder(text))[1:] == library.encode(text, add_special_tokens=False).ids


def test_wide_ids_are_written_as_32_bits(tokenizer_json, encoder):
    wide = np.dtype("<u4")
    assert ids(Encoder(tokenizer_json, wide)(TEXTS[0]), wide) == ids(encoder(TEXTS[0]))


def test_processes_give_the_same_ids_in_order(tokenizer_json, encoder):
    texts = [f"{i} {TEXTS[i % 3][:200]}" for i in range(700)]
    documents = [Document(split="train", source="", name=str(i), text=text) for i, text in enumerate(texts)]
    encoded = list(encode_documents(documents, tokenizer_json, U2, workers=2))
    assert [document.name for document, _ in encoded] == [str(i) for i in range(700)]
    assert [tokens for _, tokens in encoded] == [encoder(text) for text in texts]


def drawn(texts, limit_bytes, window_characters):
    sample = Sample(limit_bytes, window_characters)
    for text in texts:
        sample.add(text)
    return sample.texts()


def test_sample_keeps_all_of_a_small_corpus_in_order():
    texts = ["one", "zwölf", "three"]
    assert drawn(texts, 1000, 100) == texts


@given(texts=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=20, unique=True), data=st.data())
def test_sample_holds_its_limits_and_does_not_depend_on_order(texts, data):
    windows = drawn(texts, 60, 10)
    assert sum(len(window.encode()) for window in windows) <= 60
    assert all(len(window) <= 10 and any(window in text for text in texts) for window in windows)
    shuffled = data.draw(st.permutations(texts))
    assert sorted(drawn(shuffled, 60, 10)) == sorted(windows)


def test_sample_is_spread_over_the_documents():
    texts = [f"{i:05d}" for i in range(10_000)]
    chosen = [int(text) for text in drawn(texts, 5 * 1000, 100)]
    # Of 1,000 chosen, 250 in each quarter with a standard deviation of 13.
    counts = np.histogram(chosen, bins=4, range=(0, 10_000))[0]
    assert counts.sum() == 1000
    assert counts.min() > 190
