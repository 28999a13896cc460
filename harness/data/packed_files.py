"""Packings kept as files beside the shards: made once, under a lock, in bounded memory; then mapped."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tokenize import TokenError  # which numpy lets through where the header of a file is cut
from typing import Any

import numpy as np

from harness.data.dataset import SPLITS, DataError, Dataset, Split
from harness.data.encoding import available_cores
from harness.data.packing import WINDOW_DOCUMENTS, Packing, pack, packed_windows
from harness.storage.files import exclusive, new_folder, read_json, write_json
from model.outside_files import check_regular

ARRAYS = ("pieces", "rows", "filled")  # of a packing, a file each
PACKING_VERSION = 1  # part of the name of the files that keep a packing
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
SCANNED_TOKENS = 1 << 24  # looked through for documents at once


def keep_packings(dataset: Dataset, sequence_length: int) -> None:
    """Pack both splits of a data set on all cores, unless that is done or its folder may not be written."""
    for split in SPLITS:
        _keep(dataset, split, sequence_length, available_cores())


def stored_packing(dataset: Dataset, split: Split, sequence_length: int) -> Packing:
    """Return the mapped packing of a split; made here by one process if `keep_packings` did not.

    Raises DataError if the stored files do not belong to these tokens.
    """
    tokens, slots = getattr(dataset, split), sequence_length + 1  # inputs and, one on, targets
    place = _keep(dataset, split, sequence_length, workers=1)
    if place is None:
        return pack(_document_starts(tokens, dataset.bos), len(tokens), slots)
    try:
        packing = Packing(slots=slots, **{name: _mapped(place / f"{name}.npy") for name in ARRAYS})
        fits = packing.rows[-1] == len(packing.pieces) and _packed_tokens(place, packing) == len(tokens)
    except (FileNotFoundError, EOFError, ValueError, LookupError, TypeError, TokenError):  # damaged
        fits = False
    if not fits:
        raise DataError(f"{place} does not fit its data set: delete that folder and run again")
    return packing


def _mapped(path: Path) -> np.ndarray:
    check_regular(path)
    array: np.ndarray = np.load(path, mmap_mode="r")
    if array.dtype != np.int64:
        raise ValueError(f"{path} holds {array.dtype}")
    return array


def _packed_tokens(place: Path, packing: Packing) -> int:
    about = place / "about.json"  # which the first packings did not have
    return int(read_json(about)["tokens"]) if about.exists() else int(packing.pieces[:, 1].sum())


def _keep(dataset: Dataset, split: Split, sequence_length: int, workers: int) -> Path | None:
    """Return the folder of a packing, made if it is not there; None where it may not be written."""
    place = dataset.folder / f"packed-{PACKING_VERSION}-{split}-{sequence_length}"
    if place.is_dir():
        return place
    tokens = getattr(dataset, split)
    try:
        with exclusive(place.with_name(f".{place.name}.lock"), wait=True):
            if not place.is_dir():  # the process before this one has not made it
                with new_folder(place) as scratch:
                    _write(scratch, tokens, dataset.bos, sequence_length + 1, workers)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        return None
    return place


def _write(folder: Path, tokens: np.ndarray, bos: int, slots: int, workers: int) -> None:
    starts = _document_starts(tokens, bos, folder / "starts")
    if len(starts) <= 2 * WINDOW_DOCUMENTS:
        workers = 1
    with ExitStack() as stack:
        pieces, rows, filled = (
            stack.enter_context(_growing(folder / f"{name}.npy", columns))
            for name, columns in zip(ARRAYS, (2, None, None), strict=True)
        )
        last = np.zeros(1, np.int64)
        rows.add(last)
        for window, counts, slots_filled in packed_windows(starts, len(tokens), slots, workers):
            ends = last + np.cumsum(counts)
            last = ends[-1:] if len(ends) else last
            pieces.add(window)
            rows.add(ends)
            filled.add(slots_filled)
    write_json(folder / "about.json", {"tokens": len(tokens), "documents": len(starts)})
    (folder / "starts").unlink(missing_ok=True)


class _Growing:
    """An int64 array in a .npy file whose length is known once all of it is written."""

    def __init__(self, file: Any, columns: int | None) -> None:
        self._file, self._columns, self._length = file, columns, 0
        self.write_header()

    def add(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, np.int64).data)
        self._length += len(values)

    def write_header(self) -> None:
        # numpy leaves room in a header for the length to grow, so that it keeps its size.
        shape = (self._length,) if self._columns is None else (self._length, self._columns)
        self._file.seek(0)
        about = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int64)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._file, about | {"shape": shape})


@contextmanager
def _growing(path: Path, columns: int | None) -> Iterator[_Growing]:
    with path.open("wb") as file:
        array = _Growing(file, columns)
        yield array
        array.write_header()


def _document_starts(tokens: np.ndarray, bos: int, file: Path | None = None) -> np.ndarray:
    """Return the starts of documents: the positions of `bos`, which occurs nowhere else.

    Where there are many they are mapped from `file`.
    """
    steps = range(0, len(tokens), SCANNED_TOKENS)
    parts = (np.flatnonzero(tokens[at : at + SCANNED_TOKENS] == bos) + at for at in steps)
    if file is None or len(steps) == 1:
        return np.concatenate(list(parts)) if len(steps) else np.zeros(0, np.int64)
    with file.open("wb") as out:
        for part in parts:
            out.write(part.astype(np.int64).data)
    return np.memmap(file, np.int64, "r")
