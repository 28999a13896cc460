import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from tokenizers import Tokenizer

from harness.data.dataset import DataConfig, DataError, open_dataset
from harness.data.prepare import find_prepared, prepare

SOURCES = ("argparse.py", "ast.py", "datetime.py", "inspect.py", "typing.py", "json/decoder.py", "shlex.py")
TEXTS = [(Path(sysconfig.get_path("stdlib")) / name).read_text("utf-8") for name in SOURCES]


@pytest.fixture
def corpus(tmp_path):
    """A folder with one JSONL file; the last of its documents is for validation."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"text": text, "split": "val" if text is TEXTS[-1] else "train"} for text in TEXTS]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def config(corpus):
    return DataConfig(name="test", source="text", path=str(corpus), vocabulary_size=512)


def entries(folder):
    return (
        sorted(path.name for path in folder.rglob("*") if path.suffix != ".lock") if folder.exists() else []
    )


def test_shards_hold_the_documents(config, tmp_path):
    data = prepare(config, tmp_path / "cache")
    tokenizer = Tokenizer.from_file(str(data.folder / "tokenizer.json"))
    assert (data.name, data.vocabulary_size, data.bos) == ("test", 512, tokenizer.token_to_id("<|bos|>"))
    assert data.train.dtype == data.validation.dtype == np.uint16
    assert data.unique_tokens == len(data.train)
    for tokens, texts in ((data.train, TEXTS[:-1]), (data.validation, TEXTS[-1:])):
        text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        assert text == "".join("<|bos|>" + text for text in texts)
        assert data.token_bytes[tokens].sum() == sum(len(text.encode()) for text in texts)
    frequencies = np.unique(data.validation, return_counts=True)[1]
    assert data.unigram_nats == pytest.approx(scipy.stats.entropy(frequencies), rel=1e-12)


def test_index_tells_counts_and_provenance(config, corpus, tmp_path):
    with (corpus / "a.jsonl").open("a") as file:
        file.write('{"text": " "}\n')
    data = prepare(config, tmp_path / "cache")
    index = json.loads((data.folder / "index.json").read_text())
    assert data.folder.name == index["digest"] == data.digest
    assert len(bytes.fromhex(data.digest)) == 8
    assert index["splits"]["train"]["documents"] == len(TEXTS) - 1
    assert index["splits"]["validation"]["bytes"] == len(TEXTS[-1].encode())
    assert index["splits"]["validation"]["tokens"] == len(data.validation)
    assert index["left_out"] == {"empty": 1}
    assert index["provenance"]["python"] == sys.version.split()[0]


def test_second_call_opens_what_the_first_made(config, tmp_path):
    told = []
    first = prepare(config, tmp_path / "cache", lambda stage, fraction: told.append((stage, fraction)))
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages == ["reading documents", "training the tokenizer", "tokenizing"]
    fractions = [fraction for stage, fraction in told if stage == "tokenizing"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    told.clear()
    before = entries(tmp_path / "cache")
    second = prepare(
        replace(config, name="other"), tmp_path / "cache", lambda *progress: told.append(progress)
    )
    assert told == []
    assert (second.name, second.digest, second.folder) == ("other", first.digest, first.folder)
    assert entries(tmp_path / "cache") == before


def test_find_prepared_writes_nothing(config, tmp_path):
    assert find_prepared(config, tmp_path / "cache") is None
    assert not (tmp_path / "cache").exists()
    made = prepare(config, tmp_path / "cache")
    found = find_prepared(config, tmp_path / "cache")
    assert found is not None
    assert found.digest == made.digest
    shutil.rmtree(made.folder)
    assert find_prepared(config, tmp_path / "cache") is None
    assert prepare(config, tmp_path / "cache").digest == made.digest


def test_digest_knows_the_content_and_not_the_place(config, corpus, tmp_path):
    digest = prepare(config, tmp_path / "cache").digest
    moved = tmp_path / "moved"
    shutil.copytree(corpus, moved)
    assert prepare(replace(config, path=str(moved)), tmp_path / "elsewhere").digest == digest
    assert prepare(replace(config, vocabulary_size=400), tmp_path / "cache").digest != digest
    text = (corpus / "a.jsonl").read_text()
    (corpus / "a.jsonl").write_text(text.replace("argparse", "argparze", 1))
    assert prepare(config, tmp_path / "cache").digest != digest


def test_installed_packages_are_split_by_package(tmp_path, monkeypatch):
    for package, texts in (("lp_train", TEXTS[:-1]), ("lp_held_out", TEXTS[-1:])):
        (tmp_path / package).mkdir()
        for number, text in enumerate(texts):
            (tmp_path / package / f"m{number}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = prepare(
        DataConfig(
            name="installed",
            source="installed_python",
            packages=["lp_train"],
            validation_packages=["lp_held_out"],
            vocabulary_size=512,
        ),
        tmp_path / "cache",
    )
    assert np.sum(data.train == data.bos) == len(TEXTS) - 1
    assert data.token_bytes[data.validation].sum() == len(TEXTS[-1].encode())


def test_large_data_gives_the_same_shards(config, tmp_path, monkeypatch):
    alone = prepare(config, tmp_path / "alone")
    monkeypatch.setattr("harness.data.shards.PARALLEL_BYTES", 0)
    monkeypatch.setattr("harness.data.shards.available_cores", lambda: 2)
    together = prepare(config, tmp_path / "together")
    assert together.digest == alone.digest
    np.testing.assert_array_equal(together.train, alone.train)


SMALL_PARTS = {
    "harness.data.shards.PART_BYTES": 50_000,
    "harness.data.documents.POSITION_DOCUMENTS": 2,
    "harness.data.shards.PROGRESS_STEP": 0.0,
}
PREPARE = f"""
import json, os, sys
from pathlib import Path
import harness.data.documents, harness.data.shards
from harness.data.dataset import DataConfig
from harness.data.prepare import prepare

fields, cache, how = sys.argv[1:]
{"; ".join(f"{name} = {value}" for name, value in SMALL_PARTS.items())}
def progress(stage, fraction):
    if stage == "tokenizing" and fraction > float(how):
        os.kill(os.getpid(), 9)
if __name__ == "__main__":
    print(prepare(DataConfig(**json.loads(fields)), Path(cache), progress).digest)
"""


def described(path, source):
    own = {"path": str(path)} if source == "text" else {"repository": str(path), "max_documents": 7}
    return {"name": "test", "source": source, "vocabulary_size": 512, "validation_fraction": 0.3, **own}


@pytest.fixture
def in_small_parts(monkeypatch):
    """Prepare in this process as `start` does; return the data set and the stages that it went through."""
    for name, value in SMALL_PARTS.items():
        monkeypatch.setattr(name, value)

    def prepared(path, cache, source="text"):
        stages = []
        data = prepare(DataConfig(**described(path, source)), cache, lambda stage, _: stages.append(stage))
        return data, stages

    return prepared


def start(corpus, cache, how="2", source="text"):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-c", PREPARE, json.dumps(described(corpus, source)), str(cache), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_processes_that_prepare_at_once_get_one_data_set(corpus, tmp_path):
    processes = [start(corpus, tmp_path / "cache") for _ in range(3)]
    digests = {process.communicate(timeout=300)[0].split()[-1] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    (digest,) = digests
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [digest, "keys"]
    open_dataset(tmp_path / "cache" / digest, checksums=True)


@pytest.mark.parametrize(("source", "kills"), [("text", ("0.0", "0.4", "0.7")), ("huggingface", ("0.4",))])
def test_killed_preparation_goes_on_where_it_was_and_ends_the_same(
    corpus, in_small_parts, tmp_path, source, kills
):
    texts = [{"text": text} for text in TEXTS]
    (corpus / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    whole, all_stages = in_small_parts(corpus, tmp_path / "whole", source)
    for how in kills:
        process = start(corpus, tmp_path / "broken", how, source)
        process.communicate(timeout=300)
        assert process.returncode == -9
    (scratch,) = (tmp_path / "broken").glob(".preparing-*")
    assert json.loads((scratch / "journal.json").read_text())["documents"] >= 3
    resumed, stages = in_small_parts(corpus, tmp_path / "broken", source)
    assert "training the tokenizer" not in stages  # nor is what was committed encoded again
    assert stages.count("tokenizing") < all_stages.count("tokenizing") - 2
    assert resumed.digest == whole.digest
    data = open_dataset(tmp_path / "broken" / whole.digest, checksums=True)
    np.testing.assert_array_equal(data.train, whole.train)
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == [whole.digest, "keys"]


def test_preparation_starts_anew_where_its_committed_shards_are_gone(corpus, in_small_parts, tmp_path):
    whole, _ = in_small_parts(corpus, tmp_path / "whole")
    start(corpus, tmp_path / "broken", "0.7").communicate(timeout=300)
    (shard,) = (tmp_path / "broken").glob(".preparing-*/train.bin")
    shard.write_bytes(b"")
    again, _ = in_small_parts(corpus, tmp_path / "broken")
    assert again.digest == whole.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary_size": 60_000}, r"the training text supports a vocabulary of \d+, not 60000"),
        ({"text_field": "body"}, r"a\.jsonl line 1 has no text in field 'body'"),
    ],
)
def test_refused_data_leaves_nothing_behind(config, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        prepare(replace(config, **changes), tmp_path / "cache")
    assert entries(tmp_path / "cache") == ["keys"]


def test_text_without_validation_documents_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"a short text {name}\n")
    config = DataConfig(name="test", source="text", path=str(tmp_path))
    with pytest.raises(DataError, match=r"none of the 2 documents of .* is for validation: raise data\.val"):
        prepare(config, tmp_path / "cache")
    with pytest.raises(DataError, match="is for train: "):
        prepare(replace(config, validation_fraction=1 - 1e-12), tmp_path / "cache")
    with pytest.raises(DataError, match=r"a\.txt is one document, .*: cut it in several files or lines"):
        prepare(replace(config, path=str(tmp_path / "a.txt")), tmp_path / "cache")


def test_packages_without_documents_of_their_own_are_refused(tmp_path, monkeypatch):
    for package in ("lp_first", "lp_copy"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("a = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = DataConfig(
        name="test", source="installed_python", packages=["lp_first"], validation_packages=["lp_copy"]
    )
    with pytest.raises(DataError, match="the validation packages have no documents of their own"):
        prepare(config, tmp_path / "cache")


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train.bin", shorten, r"train\.bin has \d+ bytes, not \d+: delete the folder to prepare it again"),
        ("validation.bin", Path.unlink, r"validation\.bin has 0 bytes, not \d+"),
        ("train.bin", flip, r"the checksum of train\.bin is wrong"),
        ("index.json", shorten, r"index\.json is not JSON"),
        ("index.json", Path.unlink, r"is not a prepared data set: it has no index\.json"),
        ("tokenizer.json", flip, r"the checksum of tokenizer\.json is wrong"),
        ("tokenizer.json", Path.unlink, r"it has no tokenizer\.json"),
    ],
)
def test_damaged_data_set_is_refused_in_one_line(config, tmp_path, name, damage, message):
    data = prepare(config, tmp_path / "cache")
    damage(data.folder / name)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(data.folder, checksums=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("vocabulary_size", "300"), ("bos", True), ("name", None)])
def test_an_index_of_other_types_is_refused(config, tmp_path, field, value):
    data = prepare(config, tmp_path / "cache")
    index = json.loads((data.folder / "index.json").read_text())
    (data.folder / "index.json").write_text(json.dumps(index | {field: value}))
    with pytest.raises(DataError, match=rf"index\.json is not that of a data set .*{field}={value!r}"):
        open_dataset(data.folder)


def test_an_index_of_another_data_set_is_refused(config, tmp_path):
    data = prepare(config, tmp_path / "cache")
    index = json.loads((data.folder / "index.json").read_text())
    (data.folder / "index.json").write_text(json.dumps(index | {"digest": "0" * 16}))
    with pytest.raises(DataError, match=r"damaged, index\.json has the digest '0{16}': delete the folder"):
        open_dataset(data.folder)


def test_data_set_of_another_format_is_refused(config, tmp_path):
    data = prepare(config, tmp_path / "cache")
    index = json.loads((data.folder / "index.json").read_text())
    (data.folder / "index.json").write_text(json.dumps(index | {"format_version": 99}))
    with pytest.raises(DataError, match="has format 99, not 1: delete the folder"):
        open_dataset(data.folder)
