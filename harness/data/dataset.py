"""Prepared data sets: made once, kept under their digest, found again by what they were made from."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.config import DataConfig, DataError
from harness.data.documents import fingerprint
from harness.data.existing_tokenizer import read_tokenizer
from harness.data.shards import FILES, FORMAT_VERSION, write_dataset
from harness.data.tokenizer import token_bytes
from harness.data.tokenizer_sample import Progress
from harness.storage.files import write_text
from harness.storage.locks import exclusive

__all__ = ["DataConfig", "DataError", "Dataset", "find_prepared", "open_dataset", "prepare"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Hold a prepared data set; the token streams are memory-mapped and read-only.

    `token_bytes` int32 [vocabulary_size] has the bytes of text behind each id, 0 for special tokens.
    `unigram_nats` is the entropy of the validation tokens under their own frequencies: a model that ignores
    the context does no better.
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


def prepare(config: DataConfig, cache: Path, progress: Progress | None = None) -> Dataset:
    """Return the data set of `config`, made from its documents if `cache` does not hold it yet.

    Safe when several processes prepare at once: one works, the others wait. `progress` is told the stage and
    the fraction of it that is done. An interrupted preparation is continued by the next call. Raises
    DataError for documents that cannot be used, and nothing of them is left. Large data is tokenized in
    spawned processes: call it from under `if __name__ == "__main__"`.
    """
    key = _key(config)
    if (found := _find(config, cache, key)) is not None:
        return found
    keys = cache / "keys"
    keys.mkdir(parents=True, exist_ok=True)
    with exclusive(keys / f"{key}.lock", wait=True):
        if (found := _find(config, cache, key)) is not None:
            return found
        # Named by host, as on some network file systems a lock holds on one host only.
        scratch = cache / f".preparing-{key}-{platform.node()}"
        scratch.mkdir(exist_ok=True)
        try:
            digest = write_dataset(config, scratch, progress or (lambda stage, fraction: None))
        except DataError:
            shutil.rmtree(scratch)  # what else ends it leaves a part to go on from
            raise
        _publish(scratch, cache / digest)
        write_text(keys / key, digest)
        shutil.rmtree(scratch)
    return _named(open_dataset(cache / digest), config)


def find_prepared(config: DataConfig, cache: Path) -> Dataset | None:
    """Return the data set of `config` if it is prepared; write nothing.

    Raises DataError when its packages or files are missing, or the prepared files are damaged.
    """
    return _find(config, cache, _key(config))


def open_dataset(folder: Path, *, checksums: bool = False) -> Dataset:
    """Open a prepared data set, checking the sizes of its files, and with `checksums` their content.

    Raises DataError when a file is missing or damaged.
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


def _key(config: DataConfig) -> str:
    """Return a hash of what the data set would be made from, without reading documents."""
    fields = dataclasses.asdict(config)
    # Of a path what lies there counts: the files in the fingerprint, the content of the tokenizer.
    for field in ("name", "unique_tokens", "path"):
        del fields[field]
    if config.tokenizer is not None:
        fields["tokenizer"] = hashlib.sha256(read_tokenizer(config).encode()).hexdigest()
    parts = [FORMAT_VERSION, importlib.metadata.version("tokenizers"), fields, fingerprint(config)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _find(config: DataConfig, cache: Path, key: str) -> Dataset | None:
    try:
        folder = cache / (cache / "keys" / key).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return _named(open_dataset(folder), config) if folder.is_dir() else None


def _named(dataset: Dataset, config: DataConfig) -> Dataset:
    # Content decides the folder: two configs may share it under different names.
    return dataclasses.replace(dataset, name=config.name)


def _publish(scratch: Path, target: Path) -> None:
    """Move the files of `scratch` to `target` in one step, unless the same data set came there before."""
    whole = scratch / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    for name in FILES:
        (scratch / name).rename(whole / name)
    try:
        whole.rename(target)
    except OSError:
        if not target.is_dir():
            raise
