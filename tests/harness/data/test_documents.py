import gzip
import itertools
import json
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from harness.data.dataset import DataConfig, DataError
from harness.data.documents import fingerprint, read_documents
from harness.data.hub import StreamPositions
from harness.data.python_sources import package_versions, python_files

TORN_GZIP = gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-9]
TORN_ZSTD = pa.compress(b'{"text": "x"}\n' * 99, codec="zstd", asbytes=True)[:-9]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two packages on sys.path that break when they are imported."""
    files = {
        "lp_alpha/__init__.py": "raise RuntimeError('imported')\n",
        "lp_alpha/b.py": "b = 1\n",
        "lp_alpha/a/z.py": "z = 'é'\n",
        "lp_alpha/version.py": "version = '1.0, built by someone'\n",
        "lp_alpha/__config__.py": "compiler = '/opt/cc'\n",
        "lp_alpha/empty.py": "\n",
        "lp_alpha/data.txt": "not Python\n",
        "lp_beta/__init__.py": "beta = 1\n",
        "lp_beta/copy_of_b.py": "b = 1\n",
        "lp_gamma.py": "gamma = 1\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "lp_alpha" / "latin.py").write_bytes(b"name = '\xe9'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def installed(**changes):
    fields = {"packages": ["lp_alpha"], "validation_packages": ["lp_beta", "lp_gamma"]} | changes
    return DataConfig(name="test", source="installed_python", **fields)


def text(path, **changes):
    return DataConfig(name="test", source="text", path=str(path), **changes)


def read(config):
    return list(read_documents(config, Counter()))


def test_installed_documents_come_sorted_by_split_package_and_path(packages):
    documents = read(installed(validation_packages=["lp_gamma", "lp_beta"]))
    assert [(d.split, d.source, d.name) for d in documents] == [
        ("train", "lp_alpha", "__init__.py"),
        ("train", "lp_alpha", "a/z.py"),
        ("train", "lp_alpha", "b.py"),
        ("validation", "lp_beta", "__init__.py"),
        ("validation", "lp_gamma", "lp_gamma.py"),
    ]
    assert documents[1].text == "z = 'é'\n"
    assert not {"lp_alpha", "lp_beta", "lp_gamma"} & set(sys.modules)


def test_installed_documents_left_out_are_counted(packages):
    left_out = Counter()
    list(read_documents(installed(), left_out))
    assert left_out == {"build-dependent": 2, "duplicate": 1, "empty": 1, "not UTF-8": 1}


def test_missing_package_is_named(packages):
    with pytest.raises(DataError, match=r"^package 'lp_delta' of the data set is not installed: .*$"):
        read(installed(packages=["lp_alpha", "lp_delta"]))
    with pytest.raises(DataError, match=r"'lp_alpha\.a'"):
        fingerprint(installed(packages=["lp_alpha.a"]))


def test_standard_library_leaves_out_its_tests_and_what_its_build_wrote():
    names = [name for name, _ in python_files("stdlib")]
    assert {"json/decoder.py", "argparse.py", "asyncio/tasks.py"} <= set(names)
    assert names == sorted(names)
    unwanted = ("test/", "idlelib/", "site-packages/", "_sysconfigdata", "unittest/test/")
    assert not [name for name in names if name.startswith(unwanted)]


def test_fingerprint_is_the_version_of_a_distribution_and_the_files_of_other_code(packages):
    config = installed(packages=["numpy", "stdlib", "lp_alpha"])
    before = dict(fingerprint(config))
    assert before["numpy"] == np.__version__
    assert before["stdlib"] == sys.version.split()[0]
    (packages / "lp_alpha" / "b.py").write_text("b = 22\n")
    after = dict(fingerprint(config))
    assert [name for name in before if before[name] != after[name]] == ["lp_alpha"]


def test_versions_are_found_under_the_distribution_of_another_name():
    from importlib.metadata import version

    assert package_versions(["PIL", "lp_nowhere"]) == {"PIL": version("pillow"), "lp_nowhere": None}


def test_text_folder_reads_every_format_by_relative_path(tmp_path):
    rows = [{"text": "one\n", "split": "train"}, {"text": "two", "split": "val"}]
    (tmp_path / "d").mkdir()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": "três"}))
    pd.DataFrame({"text": ["four"], "split": ["validation"], "other": [1]}).to_parquet(tmp_path / "c.parquet")
    (tmp_path / "d" / "e.txt").write_text("fünf\r\n", encoding="utf-8", newline="")
    (tmp_path / "readme.md").write_text("not read")
    documents = read(text(tmp_path, validation_fraction=0.0))
    assert [(d.split, d.source, d.name, d.text) for d in documents] == [
        ("train", "a.jsonl", "0", "one\n"),
        ("validation", "a.jsonl", "1", "two"),
        ("train", "b.jsonl.gz", "0", "três"),
        ("validation", "c.parquet", "0", "four"),
        ("train", "d/e.txt", "0", "fünf\r\n"),
    ]


def test_one_file_is_read_like_a_folder_of_it(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    assert read(text(tmp_path / "a.txt")) == read(text(tmp_path))


def test_split_by_content_does_not_depend_on_order_and_keeps_copies_together(tmp_path):
    texts = [f"document {i}" for i in range(2000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts + texts[:50]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in reversed(texts)))
    sides = [
        {d.text for d in read(text(tmp_path / name, validation_fraction=0.1)) if d.split == "validation"}
        for name in ("a.jsonl", "b.jsonl")
    ]
    assert sides[0] == sides[1]
    # 2,000 draws at 0.1: 200, with a standard deviation of 13.4.
    assert 140 < len(sides[0]) < 260
    train = {d.text for d in read(text(tmp_path / "a.jsonl", validation_fraction=0.1)) if d.split == "train"}
    assert not train & sides[0]


def test_long_txt_is_cut_at_line_ends_and_loses_nothing(tmp_path):
    content = "".join(f"line {i} ünd more\n" for i in range(5000)) + "no line end"
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    documents = read(text(tmp_path))
    assert len(documents) > 3
    assert "".join(d.text for d in documents) == content
    assert all(d.text.endswith("\n") for d in documents[:-1])


def test_lone_surrogates_of_json_become_encodable(tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"text": "bad \ud800 good \ud83d\ude00"}')
    assert read(text(tmp_path))[0].text == "bad ? good \U0001f600"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl line 2 has no text in field 'text' .*body"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl line 1 holds int in field 'text'"),
        ("a.jsonl", b'{"text": null}\n', r"a\.jsonl line 1 has no text in field 'text'"),
        ("a.jsonl", b'{"text": "x", "meta": ' + b"[" * 100_000, r"a\.jsonl line 1 is nested too deeply"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', r"a\.jsonl line 3 is not JSON"),
        ("a.jsonl", b'{"text": "\xe9"}\n', r"a\.jsonl line 1 is not JSON"),
        ("a.jsonl", b'["x"]\n', r"a\.jsonl line 1 is list: write one JSON object per line"),
        ("a.jsonl", b'{"text": "x", "split": "test"}', r"line 1 has split 'test': write train or val"),
        ("a.jsonl", b'{"text": "x", "split": ["a"]}', r"line 1 has split \['a'\]"),
        ("a.jsonl.gz", b"not gzip", r"a\.jsonl\.gz is not a whole gzip file"),
        ("a.jsonl.gz", TORN_GZIP, r"a\.jsonl\.gz is not a whole gzip file"),
        ("a.jsonl.zst", b"not zstd", r"a\.jsonl\.zst is not a whole zstd file"),
        ("a.jsonl.zst", TORN_ZSTD, r"a\.jsonl\.zst is not a whole zstd file"),
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8"),
        ("a.parquet", b"PAR1 torn", r"a\.parquet is not a whole Parquet file"),
    ],
)
def test_unreadable_text_is_one_line_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(text(tmp_path))
    assert "\n" not in str(caught.value)


def test_parquet_without_the_column_lists_its_columns(tmp_path):
    pd.DataFrame({"body": ["x"], "n": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'text' \(it has body, n\): set data.text_field"):
        read(text(tmp_path))
    assert read(text(tmp_path, text_field="body"))[0].text == "x"


def test_parquet_with_a_column_of_another_type_names_it(tmp_path):
    pd.DataFrame({"text": [1, 2], "body": ["x", "y"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'text' holds int64, not text: set data.text_field"):
        read(text(tmp_path))


def test_a_row_in_a_hundred_without_text_is_counted_and_more_are_refused(tmp_path):
    rows = [{"text": f"row {i}"} for i in range(200)]
    rows[50] = {"text": None}
    rows[150] = {"other": 1}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    left_out = Counter()
    documents = list(read_documents(text(tmp_path), left_out))
    assert [d.name for d in documents] == [str(i) for i in range(200) if i not in (50, 150)]
    assert left_out == {"no text": 2}
    rows[199] = {"text": ["row"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"a\.jsonl line 51 has no text .* \(3 of 200 rows are like it\)"):
        read(text(tmp_path))


def test_rows_of_a_wrong_column_are_refused_before_all_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 11 + "not JSON\n")
    with pytest.raises(DataError, match=r"line 1 has no text .* \(11 of 11 rows are like it\)"):
        read(text(tmp_path))


@pytest.mark.parametrize("letters", ["x", "é", "日"])
def test_a_long_text_is_cut_into_documents_that_join_to_it(tmp_path, letters):
    words = [letters * (1 + i % 9) for i in range(400)]
    content = " ".join(words[:200]) + "\n" + " ".join(words[200:]) + letters * 500
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": content}) + '\n{"text": "next"}\n')
    *parts, following = read(text(tmp_path, max_document_bytes=100, validation_fraction=0.0))
    assert "".join(part.text for part in parts) == content
    assert max(len(part.text.encode()) for part in parts) <= 100
    assert [part.name for part in parts[:3]] == ["0", "0.1", "0.2"]
    assert following.name == "1"
    ends = itertools.pairwise(part.text for part in parts[:6])
    assert all(one[-1].isspace() or other[0].isspace() for one, other in ends)  # cut between words


def test_lines_of_any_length_are_read_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.data.rows.LINE_BYTES", 1_600_000)
    limit = 100_000
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(b'{"text": "' + b"x" * 30_000_000 + b'"}\n')
    with gzip.open(tmp_path / "b.txt.gz", "wb") as file:
        file.write(b"y" * 30_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"jsonl\.gz line 1 is longer than 1,600,000 bytes: split it"):
            read(text(tmp_path / "a.jsonl.gz", max_document_bytes=limit))
        config = text(tmp_path / "b.txt.gz", max_document_bytes=limit)
        assert sum(len(d.text) for d in read_documents(config, Counter())) == 30_000_000
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_missing_path_and_empty_folder_are_told_apart(tmp_path):
    with pytest.raises(DataError, match=r"no documents in .*: put files there that are \.txt, \.jsonl"):
        read(text(tmp_path))
    with pytest.raises(DataError, match=r"data\.path .*nowhere does not exist"):
        read(text(tmp_path / "nowhere"))
    (tmp_path / "a.pdf").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot read .*a\.pdf"):
        read(text(tmp_path / "a.pdf"))


@pytest.fixture
def hub(tmp_path):
    """A data set of three Parquet files, 600 rows, every tenth of them empty."""
    folder = tmp_path / "set"
    folder.mkdir()
    for part in range(3):
        texts = [f"row {i}" if i % 10 else " " for i in range(200 * part, 200 * part + 200)]
        frame = pd.DataFrame({"body": texts, "split": "no split of ours"})
        frame.to_parquet(folder / f"train-{part:05}-of-00003.parquet")
    return folder


def hub_config(folder, **changes):
    fields = {
        "repository": str(folder),
        "text_field": "body",
        "max_documents": 400,
        "validation_fraction": 0.2,
    }
    return DataConfig(name="hub", source="huggingface", **fields | changes)


def test_hub_data_is_streamed_up_to_its_limit(hub):
    left_out = Counter()
    documents = list(read_documents(hub_config(hub), left_out))
    assert [d.text for d in documents] == [f"row {i}" for i in range(400) if i % 10]
    assert [d.name for d in documents[:9]] == [str(i) for i in range(1, 10)]
    assert {d.split for d in documents} == {"train", "validation"}
    assert left_out == {"empty": 40}


def test_a_stream_continues_from_any_of_its_positions(hub, monkeypatch):
    monkeypatch.setattr("harness.data.documents.POSITION_DOCUMENTS", 7)
    whole_left_out = Counter()
    whole = list(read_documents(hub_config(hub), whole_left_out))
    for read in (0, 6, 7, 200, 301, 360):
        positions = StreamPositions()
        reader = read_documents(hub_config(hub), Counter(), positions)
        first = [next(reader) for _ in range(min(read + 20, 360))]  # the reader is ahead of the writer
        assert first == whole[: len(first)]
        mark = json.loads(json.dumps(positions.before(read)))
        assert read - 7 < mark["documents"] <= read
        left_out = Counter()
        assert (
            list(read_documents(hub_config(hub), left_out, StreamPositions(mark)))
            == whole[mark["documents"] :]
        )
        assert left_out == whole_left_out


def test_a_stream_that_breaks_says_how_to_go_on(hub):
    (hub / "train-00001-of-00003.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(
        ConnectionError, match=r"set: the stream broke \(.*\): run the same command again to continue"
    ):
        read(hub_config(hub))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repository_split": "tset"}, r"cannot be read \(Bad split: tset.*train.*check data\.repository"),
        ({"subset": "small"}, r"'small' not found.*check data\.repository"),
        ({"text_field": "text"}, r"row 0 has no text in field 'text' \(its fields: body, split\)"),
    ],
)
def test_hub_data_asked_for_by_a_wrong_name_is_refused(hub, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        read(hub_config(hub, **changes))
    assert "\n" not in str(caught.value)


def test_hub_data_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    config = DataConfig(name="hub", source="huggingface", repository="org/set", max_documents=1)
    with pytest.raises(DataError, match=r"pip install -e .\.\[huggingface\]"):
        read(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "text"}, r"path is not set: path="),
        ({"source": "huggingface"}, r"data\.repository is not set"),
        ({"source": "huggingface", "repository": "org/set"}, r"set data\.max_tokens or data\.max_documents"),
        (
            {"source": "text", "path": "x", "repository": "org/set"},
            r"data\.repository=org/set is a key of data\.source=huggingface, not of text: drop it",
        ),
        (
            {"source": "text", "path": "x", "bos_token": "<s>"},
            r"data\.bos_token=<s> belongs to an existing tokenizer: set data\.tokenizer too",
        ),
        ({"source": "installed_python", "packages": ["a"]}, r"data\.validation_packages is empty"),
        (
            {"source": "installed_python", "packages": ["a", "b"], "validation_packages": ["b"]},
            r"data\.packages and data\.validation_packages share b",
        ),
    ],
)
def test_config_refuses_what_a_source_cannot_use(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(name="test", **fields)


def test_packages_of_the_default_data_are_installed_and_checked_in_order():
    from omegaconf import OmegaConf

    path = Path(__file__).resolve().parents[3] / "conf" / "data" / "installed_python.yaml"
    config = DataConfig(**OmegaConf.to_container(OmegaConf.load(path)))
    assert {name for name, _ in fingerprint(config)} == {*config.packages, *config.validation_packages}
