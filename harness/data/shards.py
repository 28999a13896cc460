"""Token shards: encode documents and append them to the files of their splits.

The shards are committed in parts, with a journal. A preparation that was interrupted continues from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from harness.data.dataset import SPLITS, DataConfig, DataError, Progress
from harness.data.documents import Document, read_documents
from harness.data.encoding import available_cores, encode_documents
from harness.data.hub import StreamPositions
from harness.storage.files import read_json, write_json

JOURNAL = "journal.json"
PART_BYTES = 256_000_000  # of text; the shards are committed at the end of each part
PARALLEL_BYTES = 30_000_000  # smaller data is encoded before other processes have started
PROGRESS_STEP = 0.005


@dataclass(frozen=True, kw_only=True)
class WrittenShards:
    """Counts and checksum of each split, the digest of the documents, and documents left out by reason."""

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
        unread = tokens * itemsize
        self._file.truncate(unread)
        while unread and (block := self._file.read(min(unread, 1 << 24))):
            self._sha256.update(block)
            unread -= len(block)

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


def write_token_shards(
    config: DataConfig,
    folder: Path,
    tokenizer: str,
    total_bytes: int,
    bos: int,
    dtype: np.dtype,
    progress: Progress,
) -> WrittenShards:
    journal = read_journal(folder, dtype.itemsize)
    left_out: Counter[str] = Counter()
    digest, positions = DocumentsDigest(journal.parts), StreamPositions(journal.bookmark)
    documents = read_documents(config, left_out, positions)
    documents = itertools.islice(documents, journal.documents - positions.start.documents, None)
    large = config.source == "huggingface" or total_bytes >= PARALLEL_BYTES
    reported = 0.0
    with ExitStack() as stack:
        shards = {
            split: stack.enter_context(
                _Shard(folder / f"{split}.bin", dtype.itemsize, **journal.shards.get(split, {}))
            )
            for split in SPLITS
        }
        workers = available_cores() if large else 1
        encoded = encode_documents(documents, tokenizer, dtype, workers, bos)
        stack.callback(encoded.close)
        for done, (document, ids) in enumerate(encoded, start=journal.documents + 1):
            content = document.text.encode()
            shards[document.split].add(ids, len(content))
            if digest.add(document, content):
                _commit(folder, shards, Journal(documents=done, parts=digest.parts), positions)
            fraction = _fraction(config, shards.values(), total_bytes)
            if fraction - reported >= PROGRESS_STEP:
                reported = fraction
                progress("tokenizing", fraction)
            if config.max_tokens is not None and shards["train"].tokens >= config.max_tokens:
                break
    check_splits(config, {split: shard.documents for split, shard in shards.items()})
    progress("tokenizing", 1.0)
    splits: dict[str, dict[str, Any]] = {split: shard.describe() for split, shard in shards.items()}
    return WrittenShards(splits=splits, documents_digest=digest.hexdigest(), left_out=left_out)


def _commit(folder: Path, shards: dict[Any, _Shard], journal: Journal, positions: StreamPositions) -> None:
    for shard in shards.values():
        shard.commit()
    counts = {split: shard.counts() for split, shard in shards.items()}
    bookmark = positions.before(journal.documents)
    write_journal(folder, dataclasses.replace(journal, shards=counts, bookmark=bookmark))


def _fraction(config: DataConfig, shards: Iterable[_Shard], total_bytes: int) -> float:
    """Return the share that is encoded, of the documents' bytes or of a stream's nearest limit."""
    train, validation = shards
    if config.source != "huggingface":
        return (train.bytes + validation.bytes) / total_bytes
    documents = (train.documents + validation.documents) / (config.max_documents or math.inf)
    return min(1.0, max(train.tokens / (config.max_tokens or math.inf), documents))


def check_splits(config: DataConfig, documents: Mapping[str, int]) -> None:
    """Raise DataError if a split has no documents."""
    missing = [split for split in SPLITS if not documents.get(split)]
    if not missing:
        return
    if config.source == "installed_python":
        raise DataError(f"the {missing[0]} packages have no documents of their own: list others")
    where = config.path or config.repository
    if sum(documents.values()) == 1:
        raise DataError(
            f"{where} is one document, and training and validation need one each: cut it in several files or "
            "lines"
        )
    change = "raise" if missing[0] == "validation" else "lower"
    raise DataError(
        f"none of the {sum(documents.values())} documents of {where} is for {missing[0]}: "
        f"{change} data.validation_fraction (now {config.validation_fraction:g}) or give more text"
    )


@dataclass(frozen=True, kw_only=True)
class Journal:
    """Content of the shards when they were last committed.

    `bookmark` is the position of the reader, `parts` the digests of the documents so far, `shards` the counts
    of each split.
    """

    documents: int = 0
    bookmark: dict[str, Any] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    shards: dict[str, dict[str, int]] = field(default_factory=dict)


def read_journal(folder: Path, itemsize: int) -> Journal:
    """Return the journal in `folder`, an empty one if it is absent or the shards are shorter than it says."""
    if not (folder / JOURNAL).exists():
        return Journal()
    journal = Journal(**read_json(folder / JOURNAL))
    for split, counts in journal.shards.items():
        path = folder / f"{split}.bin"
        if not path.exists() or path.stat().st_size < counts["tokens"] * itemsize:
            return Journal()
    return journal


def write_journal(folder: Path, journal: Journal) -> None:
    """Write the journal; the content of the shards must be on the disk."""
    write_json(folder / JOURNAL, vars(journal))


class DocumentsDigest:
    """Digest of documents in parts of a fixed size, because the state of a hash cannot be stored."""

    def __init__(self, parts: list[str]) -> None:
        self.parts = list(parts)
        self._hash = hashlib.sha256()
        self._bytes = 0

    def add(self, document: Document, content: bytes) -> bool:
        """Add a document with its split, source and name. Returns True if it ends a part."""
        about = [document.split, document.source, document.name, len(content)]
        self._hash.update(json.dumps(about).encode())
        self._hash.update(content)
        self._bytes += len(content)
        if self._bytes < PART_BYTES:
            return False
        self.parts.append(self._hash.hexdigest())
        self._hash, self._bytes = hashlib.sha256(), 0
        return True

    def hexdigest(self) -> str:
        """Return the digest of all documents: of the only part, or of the digests of the parts."""
        parts = [*self.parts, self._hash.hexdigest()] if self._bytes else self.parts
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
