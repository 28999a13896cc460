"""A prepared data set, opened from its folder."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.config import DataError
from harness.data.tokenizer import token_bytes

FORMAT_VERSION = 1
FILES = ("train.bin", "validation.bin", "tokenizer.json", "index.json")


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A prepared data set; the token streams are memory-mapped and read-only.

    `token_bytes` int32 [vocabulary_size] has the bytes of text behind each id, 0 for special tokens.
    `unigram_nats` is the entropy of the validation tokens under their own frequencies, the lowest loss of a
    model that ignores the context.
    """

    name: str
    digest: str
    vocabulary_size: int
    bos: int
    train: np.memmap
    validation: np.memmap
    token_bytes: np.ndarray
    unigram_nats: float
    folder: Path

    @property
    def unique_tokens(self) -> int:
        """Return the number of training tokens."""
        return len(self.train)


def open_dataset(folder: Path, *, checksums: bool = False) -> Dataset:
    """Return the prepared data set in `folder` after checking the sizes of its files.

    With `checksums` their content is checked too. Raises DataError if a file is missing or damaged.
    """
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        tokenizer = (folder / "tokenizer.json").read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is not a prepared data set: it has no {Path(error.filename).name}"
        ) from None
    except ValueError as error:
        raise _damaged(folder, f"index.json is not JSON ({error})") from None
    if index["format_version"] != FORMAT_VERSION:
        raise DataError(
            f"{folder} has format {index['format_version']}, not {FORMAT_VERSION}: "
            "delete the folder to prepare it again"
        )
    dtype = np.dtype(index["dtype"]).newbyteorder("<")
    if hashlib.sha256(tokenizer).hexdigest() != index.get("tokenizer_sha256"):
        raise _damaged(folder, "the checksum of tokenizer.json is wrong")
    return Dataset(
        name=index["name"],
        digest=index["digest"],
        vocabulary_size=index["vocabulary_size"],
        bos=index["bos"],
        train=_open_shard(folder, "train", dtype, index, checksums),
        validation=_open_shard(folder, "validation", dtype, index, checksums),
        token_bytes=token_bytes(tokenizer.decode()),
        unigram_nats=index["unigram_nats"],
        folder=folder,
    )


def _open_shard(
    folder: Path, split: str, dtype: np.dtype, index: dict[str, Any], checksums: bool
) -> np.memmap:
    path = folder / f"{split}.bin"
    described = index["splits"][split]
    size = path.stat().st_size if path.exists() else 0
    expected = described["tokens"] * dtype.itemsize
    if size != expected:
        raise _damaged(folder, f"{path.name} has {size} bytes, not {expected}")
    if checksums:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != described["sha256"]:
                raise _damaged(folder, f"the checksum of {path.name} is wrong")
    return np.memmap(path, dtype, "r")


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(f"the data set in {folder} is damaged, {reason}: delete the folder to prepare it again")
