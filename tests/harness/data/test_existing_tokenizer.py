import json
import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from harness.data.dataset import DataConfig, DataError, token_bytes
from harness.data.prepare import prepare
from harness.data.tokenizer import find_bos, splits_like_ours
from harness.data.tokenizer_file import read_tokenizer_file

TEXT = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text("utf-8")
TEXTS = [*TEXT.split("\n\n"), "naïve “quotes” 日本\n", "a document that says <|endoftext|> in its text"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": text, "split": "train" if i else "val"} for i, text in enumerate(TEXTS) if text.strip()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def foreign(tmp_path):
    """A tokenizer like that of GPT-2: its own split pattern, its special token last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def config(corpus, tokenizer, **changes):
    return DataConfig(name="test", source="text", path=str(corpus), tokenizer=str(tokenizer), **changes)


def test_documents_are_encoded_as_the_foreign_tokenizer_does(corpus, foreign, tmp_path):
    data = prepare(config(corpus, foreign), tmp_path / "cache")
    library = Tokenizer.from_file(str(foreign))
    assert (data.vocabulary_size, data.bos) == (401, 400)
    library.encode_special_tokens = True
    texts = [text for text in TEXTS[1:] if text.strip()]
    encoded = [[400, *library.encode(text, add_special_tokens=False).ids] for text in texts]
    assert data.train.tolist() == [token for tokens in encoded for token in tokens]
    size = sum(len(text.encode()) for text in texts)
    assert data.token_bytes[data.train].sum() == size
    assert data.token_bytes[400] == 0


def test_a_tokenizer_trained_here_is_the_same_when_it_comes_from_a_file(corpus, tmp_path):
    trained = prepare(
        DataConfig(name="test", source="text", path=str(corpus), vocabulary_size=400), tmp_path / "a"
    )
    assert splits_like_ours((trained.folder / "tokenizer.json").read_text())
    again = prepare(config(corpus, trained.folder / "tokenizer.json"), tmp_path / "b")
    assert again.digest == trained.digest
    np.testing.assert_array_equal(again.train, trained.train)


def test_another_tokenizer_or_another_bos_is_another_data_set(corpus, foreign, tmp_path):
    first = prepare(config(corpus, foreign), tmp_path / "cache").digest
    tokenizer = Tokenizer.from_file(str(foreign))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(foreign))
    second = prepare(config(corpus, foreign), tmp_path / "cache")
    assert second.bos == 401  # <s> is looked for before <|endoftext|>
    third = prepare(config(corpus, foreign, bos_token="<|endoftext|>"), tmp_path / "cache")
    assert third.bos == 400
    assert len({first, second.digest, third.digest}) == 3


def test_a_tokenizer_saved_for_batches_of_one_length_loses_nothing(corpus, foreign, tmp_path):
    """Truncation and padding belong to another use of it."""
    clean = prepare(config(corpus, foreign), tmp_path / "clean")
    tokenizer = Tokenizer.from_file(str(foreign))
    tokenizer.enable_truncation(max_length=16)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(foreign))
    batched = prepare(config(corpus, foreign), tmp_path / "batched")
    assert batched.digest == clean.digest
    np.testing.assert_array_equal(batched.train, clean.train)
    assert json.loads((batched.folder / "tokenizer.json").read_text())["truncation"] is None


def test_a_tokenizer_that_loses_text_is_refused_with_what_it_loses(corpus, foreign, tmp_path):
    tokenizer = Tokenizer.from_file(str(foreign))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "lower.json"))
    with pytest.raises(DataError, match=r"lower\.json loses text: 'ABCD' becomes 'abcd'; use one that keeps"):
        prepare(config(corpus, tmp_path / "lower.json"), tmp_path / "cache")
    few = json.loads(foreign.read_text())
    del few["model"]["vocab"]["Q"]
    few["model"]["merges"] = [pair for pair in few["model"]["merges"] if "Q" not in "".join(pair)]
    (tmp_path / "few.json").write_text(json.dumps(few))
    with pytest.raises(DataError, match=r"few\.json loses text: 'QRST' becomes 'RSTU'"):
        prepare(config(corpus, tmp_path / "few.json"), tmp_path / "cache")


def test_a_tokenizer_saved_with_dropout_gives_the_same_tokens_each_time(corpus, foreign, tmp_path):
    clean = prepare(config(corpus, foreign), tmp_path / "clean")
    content = json.loads(foreign.read_text())
    content["model"]["dropout"] = 0.5
    foreign.write_text(json.dumps(content))
    again = prepare(config(corpus, foreign), tmp_path / "again")
    assert again.digest == clean.digest
    np.testing.assert_array_equal(again.train, clean.train)


def with_added_token(content, **changes):
    token = {"id": 401, "content": "foo", "special": False, "normalized": False, "single_word": False}
    content["added_tokens"].append(token | {"lstrip": False, "rstrip": False} | changes)


def with_step(name, **step):
    def change(content):
        steps = [step, *([content[name]] if content[name] else [])]
        content[name] = {"type": "Sequence", f"{name.replace('_', '')}s": steps}

    return change


LOSSY = {
    "an added token takes the blanks before it": lambda content: with_added_token(content, lstrip=True),
    "an added token takes the blanks after it": lambda content: with_added_token(content, rstrip=True),
    "a word is replaced": with_step(
        "normalizer", type="Replace", pattern={"String": "house"}, content="home"
    ),
    "blanks become one": with_step("normalizer", type="Replace", pattern={"Regex": " +"}, content=" "),
    "the ends are stripped": with_step("normalizer", type="Strip", strip_left=True, strip_right=True),
    "a word is removed": with_step(
        "pre_tokenizer", type="Split", pattern={"String": "ouse"}, behavior="Removed", invert=False
    ),
}


@pytest.mark.parametrize("loss", LOSSY)
def test_a_tokenizer_that_loses_blanks_or_words_of_its_own_is_refused(corpus, foreign, tmp_path, loss):
    content = json.loads(foreign.read_text())
    LOSSY[loss](content)
    foreign.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"tokenizer\.json loses text: .* becomes .*; use one that keeps"):
        prepare(config(corpus, foreign), tmp_path / "cache")


def test_an_added_token_that_takes_no_blanks_is_kept(corpus, foreign, tmp_path):
    content = json.loads(foreign.read_text())
    with_added_token(content)
    foreign.write_text(json.dumps(content))
    assert prepare(config(corpus, foreign), tmp_path / "cache").vocabulary_size == 402


def test_a_vocabulary_past_65536_is_kept_in_32_bits(corpus, tmp_path):
    narrow = prepare(
        DataConfig(name="test", source="text", path=str(corpus), vocabulary_size=400), tmp_path / "cache"
    )
    tokenizer = json.loads((narrow.folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"~{i}": i for i in range(400, 70_000)}
    path = tmp_path / "wide.json"
    path.write_text(json.dumps(tokenizer))
    data = prepare(config(corpus, path), tmp_path / "cache")
    assert data.train.dtype == np.uint32 and data.vocabulary_size == 70_000
    np.testing.assert_array_equal(data.train, narrow.train)


def test_added_tokens_count_their_bytes_unless_they_are_special(foreign):
    tokenizer = Tokenizer.from_file(str(foreign))
    tokenizer.add_tokens(["    ", "日本語"])
    assert token_bytes(tokenizer.to_str())[400:].tolist() == [0, 4, 9]


def word_level(path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"tokenizer\.json cannot be read \(No such file or directory\): name a tokeni"),
        (lambda path: path.write_text("{}"), r"is not a tokenizer\.json \("),
        (lambda path: path.write_text("not JSON"), r"is not a tokenizer\.json \("),
        (word_level, r"is not byte-level: use one like that of GPT-2"),
    ],
)
def test_what_is_no_byte_level_tokenizer_is_refused(corpus, tmp_path, make, message):
    make(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match=message) as caught:
        prepare(config(corpus, tmp_path / "tokenizer.json"), tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_bos_that_is_not_there_is_refused_with_those_that_are(foreign):
    text = foreign.read_text()
    with pytest.raises(DataError, match=r"data\.bos_token=<x> is no special .* \(it has <\|endoftext\|>\)"):
        find_bos(text, "<x>")


def changed(change):
    def make(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return make


def vocabulary_of(value):
    return changed(lambda content: content["model"].update(vocab=value))


def added(token):
    return changed(lambda content: content["added_tokens"].append(token))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"\xff"), "is not JSON"),
        (lambda path: path.write_text("[" * 100_000), "nested too deeply"),
        (lambda path: path.write_text("[]"), "holds list, not a JSON object"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no regular file"),
        (changed(lambda content: content.pop("model")), "it has no model with a vocab of tokens"),
        (changed(lambda content: content.update(model=[])), "it has no model with a vocab of tokens"),
        (vocabulary_of({}), "it has no model with a vocab of tokens"),
        (vocabulary_of({"a": -1}), "the token 'a' has the id -1, not one from 0 to 16777215"),
        (vocabulary_of({"a": 10**9}), "the token 'a' has the id 1000000000, not one from 0"),
        (vocabulary_of({"a": 1.5}), "the token 'a' has the id 1.5, not one"),
        (vocabulary_of({"a": True}), "the token 'a' has the id True, not one"),
        (vocabulary_of({"a": None}), "the token 'a' has the id None, not one"),
        (changed(lambda content: content.pop("added_tokens")), "it has no list of added_tokens"),
        (changed(lambda content: content.update(added_tokens={})), "it has no list of added_tokens"),
        (added("x"), "an added token has no content"),
        (added({"id": 1, "content": 5, "special": True}), "an added token has no content"),
        (added({"id": "1", "content": "x", "special": True}), "the token 'x' has the id '1', not one"),
        (added({"id": 1, "content": "x"}), "does not say whether it is special"),
        (changed(lambda content: content.update(pre_tokenizer=None)), "is not byte-level"),
        (changed(lambda content: content.update(pre_tokenizer=5)), r"is not a tokenizer\.json \("),
        (changed(lambda content: content["model"].update(merges=[["no", "such"]])), r"is not a tokenizer"),
    ],
)
def test_a_damaged_tokenizer_is_refused_in_one_line(foreign, make, message):
    make(foreign)
    with pytest.raises(DataError, match=message) as caught:
        read_tokenizer_file(foreign)
    assert "\n" not in str(caught.value) and str(foreign) in str(caught.value)
