"""Packings as files: made once, by several processes, window by window, in the order they always had."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from harness.data import packed_files, packing
from harness.data.packed_files import keep_packings, stored_packing
from harness.data.packing import pack, packed_windows
from harness.storage.files import exclusive
from tests.harness.data.test_loader import dataset, documents
from tests.permissions import permissions_hold


@pytest.fixture
def small_windows(monkeypatch):
    sizes = {"WINDOW_DOCUMENTS": 50, "SORTED_DOCUMENTS": 130, "DRAWN_DOCUMENTS": 64, "COARSE_BITS": 6}
    for name, size in sizes.items():
        monkeypatch.setattr(packing, name, size)


def lengths(count=1000):
    return np.random.default_rng(0).integers(2, 60, count).tolist()


def equal(one, other):
    for name in ("pieces", "rows", "filled"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_windows_take_documents_in_the_order_of_all_their_random_bits(small_windows):
    windows = list(packing._random_windows(1000))
    assert [len(window) for window in windows] == [50] * 20
    bits = np.random.Philox(np.random.SeedSequence([0x7061636B])).random_raw(1000)
    np.testing.assert_array_equal(np.concatenate(windows), np.argsort(bits, kind="stable"))


def test_processes_pack_as_one_does(small_windows):
    starts = np.cumsum([0, *lengths(120)])
    alone, together = (list(packed_windows(starts[:-1], starts[-1], 33, workers)) for workers in (1, 2))
    assert len(alone) == len(together) == 3
    for one, other in zip(alone, together, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_kept_arrays_are_those_of_a_packing_in_memory(small_windows, monkeypatch, tmp_path):
    monkeypatch.setattr("harness.data.packed_files.SCANNED_TOKENS", 1000)
    tokens = documents(lengths())
    data = replace(dataset(tokens, validation=documents(lengths(40)), bos=0), folder=tmp_path)
    keep_packings(data, 32)
    names = sorted(path.name for path in (tmp_path / "packed-1-train-32").iterdir())
    assert names == ["about.json", "filled.npy", "pieces.npy", "rows.npy"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(before) == 6
    monkeypatch.setattr("harness.data.packed_files.pack", None)  # nothing is packed again
    for split, stream in (("train", tokens), ("validation", data.validation)):
        starts = np.flatnonzero(stream == 0)
        kept = stored_packing(data, split, 32)
        assert isinstance(kept.pieces, np.memmap) and kept.pieces.dtype == np.int64
        equal(kept, pack(starts, len(stream), 33))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before


def test_packings_of_before_have_no_count_and_are_checked_by_their_pieces(tmp_path):
    data = replace(dataset(documents([50, 20, 70, 9]), bos=0), folder=tmp_path)
    kept = stored_packing(data, "train", 32)
    (tmp_path / "packed-1-train-32" / "about.json").unlink()
    equal(stored_packing(data, "train", 32), kept)


def test_ranks_that_start_at_once_pack_once(tmp_path, monkeypatch):
    data = replace(dataset(documents([50, 20, 70, 9]), bos=0), folder=tmp_path)
    written, write = [], packed_files._write
    monkeypatch.setattr(packed_files, "_write", lambda *told: (written.append(1), write(*told)))
    ranks = [threading.Thread(target=stored_packing, args=(data, "train", 32)) for _ in range(4)]
    with exclusive(tmp_path / ".packed-1-train-32.lock", wait=True):
        for rank in ranks:
            rank.start()
    for rank in ranks:
        rank.join()
    assert written == [1]


def test_a_data_set_that_may_only_be_read_is_packed_in_memory(tmp_path):
    data = replace(dataset(documents([50, 20, 70, 9]), bos=0), folder=tmp_path)
    tmp_path.chmod(0o555)
    with permissions_hold():
        packed = stored_packing(data, "train", 32)
    assert not list(tmp_path.iterdir())
    equal(packed, pack(np.array([0, 50, 70, 140]), 149, 33))
