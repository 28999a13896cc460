import gzip
import json
import os
from collections import Counter

import pyarrow as pa
import pytest

from harness.data.dataset import DataConfig, DataError
from harness.data.documents import read_documents
from harness.data.text_files import find_text_files, text_format
from tests.permissions import permissions_hold


def read(path):
    left_out = Counter()
    config = DataConfig(name="test", source="text", path=str(path), validation_fraction=0.0)
    documents = list(read_documents(config, left_out))
    return {d.source: d.text for d in documents}, dict(left_out)


def test_upper_case_and_every_compression_are_read(tmp_path):
    line = json.dumps({"text": "x"}).encode()
    zst = {"e.jsonl.zst": line, "f.json.zst": line, "g.txt.zst": b"x"}
    gz = {"c.json.gz": line, "d.JSONL.GZ": line, "h.txt.gz": b"x"}
    content = {name: pa.compress(plain, codec="zstd", asbytes=True) for name, plain in zst.items()}
    content |= {name: gzip.compress(plain) for name, plain in gz.items()} | {"a.TXT": b"x", "b.JSONL": line}
    for name, written in content.items():
        (tmp_path / name).write_bytes(written)
    texts, left_out = read(tmp_path)
    assert texts == dict.fromkeys(content, "x")
    assert left_out == {}


def test_zst_of_several_frames_is_read_whole(tmp_path):
    frames = [pa.compress(f"part {i}\n".encode(), codec="zstd", asbytes=True) for i in range(3)]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert read(tmp_path)[0] == {"a.txt.zst": "part 0\npart 1\npart 2\n"}


def test_what_is_passed_over_is_counted_by_kind_with_an_example(tmp_path):
    (tmp_path / "a.txt").write_text("read")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "b.tar.gz").write_bytes(b"")
    (tmp_path / "c.tar.gz").write_bytes(b"")
    (tmp_path / "Makefile").write_text("x")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a-checkpoint.txt").write_text("read")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    texts, left_out = read(tmp_path)
    assert texts == {"a.txt": "read"}
    assert left_out == {
        ".md files, such as notes.md": 1,
        ".tar.gz files, such as b.tar.gz": 2,
        "hidden, such as .ipynb_checkpoints": 1,
        "links to nothing, such as gone.txt": 1,
        "no regular files, such as pipe.txt": 1,
        "no suffix files, such as Makefile": 1,
    }


def test_links_are_followed_once_whatever_circles_they_make(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "a.txt").write_text("outside")
    (root / "z").mkdir(parents=True)
    (root / "z" / "b.txt").write_text("inside")
    (root / "linked").symlink_to(outside)
    (root / "a_first").symlink_to(root / "z")
    (root / "z" / "up").symlink_to(root)
    (outside / "self").symlink_to(outside)
    (root / "c.txt").symlink_to(root / "z" / "b.txt")
    texts, left_out = read(root)
    assert texts == {"linked/deep/a.txt": "outside", "z/b.txt": "inside"}
    assert left_out == {"the same under another name, such as a_first": 4}


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("read")
    (tmp_path / "closed").mkdir(mode=0)
    with permissions_hold(), pytest.raises(DataError, match=r"closed cannot be read \(Permission denied\)"):
        read(tmp_path)


def test_a_folder_without_text_says_what_it_has(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"no documents in .* \(it has 1 of \.csv files, such as a\.csv"):
        find_text_files(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"a\.txt is neither a file nor a folder"):
        find_text_files(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("name", "read_as"),
    [
        ("a.txt", (".txt", "")),
        ("a.json.gz", (".jsonl", ".gz")),
        ("a.json", None),  # an array, or metadata, as often as lines
        ("a.parquet.gz", None),
        ("txt", None),
    ],
)
def test_the_name_decides_how_a_file_is_read(name, read_as):
    assert text_format(name) == read_as


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfword")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "word"}\n')
    assert read(tmp_path)[0] == {"a.txt": "word", "b.jsonl": "word"}
