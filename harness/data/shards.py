"""Turn documents into token shards: encode, write, describe; an interrupted writing is continued."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from harness.data.config import DataConfig
from harness.data.documents import read_documents
from harness.data.encoding import available_cores, encode_documents
from harness.data.existing_tokenizer import find_bos, tokenizer_digest, vocabulary_size
from harness.data.journal import DocumentsDigest, Journal, read_journal, write_journal
from harness.data.python_sources import package_versions
from harness.data.stream_position import Bookmarks
from harness.data.tokenizer import BOS
from harness.data.tokenizer_sample import SPLITS, Progress, Survey, check_splits, survey
from harness.storage.files import write_text

FORMAT_VERSION = 1
FILES = ("train.bin", "validation.bin", "tokenizer.json", "index.json")
PARALLEL_BYTES = 30_000_000  # less is done before other processes have started
PROGRESS_STEP = 0.005


def write_dataset(config: DataConfig, folder: Path, progress: Progress) -> str:
    """Write train.bin, validation.bin, tokenizer.json and index.json into `folder` and return the digest.

    The digest covers every document with its split, source and name, and what the tokenizer learnt, but not
    the place of the files. Called again on the folder of an attempt that was interrupted, it goes on where
    the shards were last committed. Raises DataError for documents that cannot be used.
    """
    start = survey(config, folder, progress)
    bos = find_bos(start.tokenizer, config.bos_token) if config.tokenizer else BOS
    vocabulary = vocabulary_size(start.tokenizer)
    dtype = np.dtype("<u2" if vocabulary <= 2**16 else "<u4")
    written = _write_shards(config, folder, start, bos, dtype, progress)
    learnt = tokenizer_digest(start.tokenizer, bos)
    digest = hashlib.sha256((written.documents_digest + learnt).encode()).hexdigest()[:16]
    validation = np.memmap(folder / "validation.bin", dtype, "r")
    index = {
        "format_version": FORMAT_VERSION,
        "digest": digest,
        "name": config.name,
        "vocabulary_size": vocabulary,
        "bos": bos,
        "dtype": dtype.name,
        "unigram_nats": _unigram_nats(validation, vocabulary),
        "tokenizer_sha256": hashlib.sha256(start.tokenizer.encode()).hexdigest(),
        "splits": written.splits,
        "left_out": dict(sorted(written.left_out.items())),
        "provenance": _provenance(config),
    }
    write_text(folder / "index.json", json.dumps(index, indent=1))
    return digest


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What the shards hold: counts and checksum of each split, digest of the documents, what was left out."""

    splits: dict[str, dict[str, Any]]
    documents_digest: str
    left_out: Counter[str]


class _Shard:
    """Write one split's tokens, with their counts and checksum, after those that are committed already."""

    def __init__(
        self, path: Path, itemsize: int, documents: int = 0, bytes: int = 0, tokens: int = 0
    ) -> None:
        self._itemsize = itemsize
        self._sha256 = hashlib.sha256()
        self.documents, self.bytes, self.tokens = documents, bytes, tokens
        self._file = path.open("r+b" if tokens else "w+b")
        left = tokens * itemsize
        self._file.truncate(left)
        while left and (block := self._file.read(min(left, 1 << 24))):
            self._sha256.update(block)
            left -= len(block)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.commit()
        self._file.close()

    def add(self, ids: bytes, text_bytes: int) -> None:
        self._file.write(ids)
        self._sha256.update(ids)
        self.documents += 1
        self.bytes += text_bytes
        self.tokens += len(ids) // self._itemsize

    def commit(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def counts(self) -> dict[str, int]:
        return {"documents": self.documents, "bytes": self.bytes, "tokens": self.tokens}

    def describe(self) -> dict[str, Any]:
        return {**self.counts(), "sha256": self._sha256.hexdigest()}


def _write_shards(
    config: DataConfig, folder: Path, start: Survey, bos: int, dtype: np.dtype, progress: Progress
) -> _Written:
    journal = read_journal(folder, dtype.itemsize)
    left_out: Counter[str] = Counter()
    digest, bookmarks = DocumentsDigest(journal.parts), Bookmarks(journal.bookmark)
    documents = read_documents(config, left_out, bookmarks)
    documents = itertools.islice(documents, journal.documents - bookmarks.start.documents, None)
    large = config.source == "huggingface" or start.total_bytes >= PARALLEL_BYTES
    told = 0.0
    with ExitStack() as stack:
        shards = {
            split: stack.enter_context(
                _Shard(folder / f"{split}.bin", dtype.itemsize, **journal.shards.get(split, {}))
            )
            for split in SPLITS
        }
        workers = available_cores() if large else 1
        encoded = encode_documents(documents, start.tokenizer, dtype, workers, bos)
        stack.callback(encoded.close)
        for done, (document, ids) in enumerate(encoded, start=journal.documents + 1):
            content = document.text.encode()
            shards[document.split].add(ids, len(content))
            if digest.add(document, content):
                _commit(folder, shards, Journal(documents=done, parts=digest.parts), bookmarks)
            fraction = _fraction(config, shards.values(), start.total_bytes)
            if fraction - told >= PROGRESS_STEP:
                told = fraction
                progress("tokenizing", fraction)
            if config.max_tokens is not None and shards["train"].tokens >= config.max_tokens:
                break
    check_splits(config, {split: shard.documents for split, shard in shards.items()})
    progress("tokenizing", 1.0)
    splits: dict[str, dict[str, Any]] = {split: shard.describe() for split, shard in shards.items()}
    return _Written(splits=splits, documents_digest=digest.hexdigest(), left_out=left_out)


def _commit(folder: Path, shards: dict[Any, _Shard], journal: Journal, bookmarks: Bookmarks) -> None:
    for shard in shards.values():
        shard.commit()
    counts = {split: shard.counts() for split, shard in shards.items()}
    bookmark = bookmarks.before(journal.documents)
    write_journal(folder, dataclasses.replace(journal, shards=counts, bookmark=bookmark))


def _fraction(config: DataConfig, shards: Iterable[_Shard], total_bytes: int) -> float:
    """Return how much is encoded: of the documents' bytes, or of a stream's nearest limit."""
    train, validation = shards
    if config.source != "huggingface":
        return (train.bytes + validation.bytes) / total_bytes
    documents = (train.documents + validation.documents) / (config.max_documents or math.inf)
    return min(1.0, max(train.tokens / (config.max_tokens or math.inf), documents))


def _unigram_nats(tokens: np.ndarray, vocabulary_size: int) -> float:
    """Return the entropy of tokens under their own frequencies."""
    counts = np.zeros(vocabulary_size, np.int64)
    for start in range(0, len(tokens), 1 << 22):
        counts += np.bincount(tokens[start : start + (1 << 22)], minlength=vocabulary_size)
    frequencies = counts[counts > 0] / len(tokens)
    return float(-np.sum(frequencies * np.log(frequencies)))


def _provenance(config: DataConfig) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "tokenizers": importlib.metadata.version("tokenizers")}
    about: dict[str, Any] = {"source": config.source}
    match config.source:
        case "installed_python":
            about["packages"] = package_versions([*config.packages, *config.validation_packages])
        case "text":
            about["path"] = config.path
        case "huggingface":
            about |= {
                "repository": config.repository,
                "subset": config.subset,
                "split": config.repository_split,
                "revision": config.revision,
                "datasets": importlib.metadata.version("datasets"),
            }
    return about | ({"tokenizer": config.tokenizer} if config.tokenizer else {}) | versions
