"""Turn documents into token shards: draw the tokenizer's sample, encode, write, describe."""

import hashlib
import heapq
import importlib.metadata
import json
import os
import platform
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from harness.data_config import DataConfig, DataError
from harness.documents import Document, Split, read_documents
from harness.encoding import available_cores, encode_documents
from harness.installed import package_versions
from harness.tokenizer import BOS, merges_digest, train_tokenizer

FORMAT_VERSION = 1
SPLITS: tuple[Split, ...] = ("train", "validation")
PARALLEL_BYTES = 30_000_000  # less is done before other processes have started
Progress = Callable[[str, float], None]


def write_dataset(config: DataConfig, folder: Path, progress: Progress) -> str:
    """Write train.bin, validation.bin, tokenizer.json and index.json into `folder` and return the digest.

    The digest covers every document with its split, source and name, and what the tokenizer learnt; it does not
    depend on the place of the files. Raises DataError for documents that cannot be used.
    """
    progress("reading documents", 0.0)
    sample, found = _draw_sample(config)
    if config.source != "huggingface":
        _check_splits(config, found)
    progress("training the tokenizer", 0.0)
    tokenizer = train_tokenizer(sample, config.vocabulary_size).to_str()
    del sample
    write_text(folder / "tokenizer.json", tokenizer)

    dtype = np.dtype("<u2" if config.vocabulary_size <= 2**16 else "<u4")
    shards, documents_digest, left_out = _write_shards(config, folder, tokenizer, dtype, found, progress)
    _check_splits(config, Counter({split: shard["documents"] for split, shard in shards.items()}))
    digest = hashlib.sha256((documents_digest + merges_digest(tokenizer)).encode()).hexdigest()[:16]
    index = {
        "format_version": FORMAT_VERSION,
        "digest": digest,
        "name": config.name,
        "vocabulary_size": config.vocabulary_size,
        "bos": BOS,
        "dtype": dtype.name,
        "unigram_nats": _unigram_nats(
            np.memmap(folder / "validation.bin", dtype, "r"), config.vocabulary_size
        ),
        "splits": shards,
        "left_out": dict(sorted(left_out.items())),
        "provenance": _provenance(config),
    }
    write_text(folder / "index.json", json.dumps(index, indent=1))
    return digest


def write_text(path: Path, text: str) -> None:
    """Write `text` and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _draw_sample(config: DataConfig) -> tuple[list[str], Counter[str]]:
    """Return windows of the training documents with the smallest hashes, and counts of what was read.

    Choosing by hash spreads the sample evenly over the documents, whatever their number and order; a window starts
    anywhere, as files tend to open with the same licences. Of a streamed data set only the head is read.
    """
    kept: list[tuple[int, int, str]] = []  # a heap: the largest hash is the first to go
    size = 0
    found: Counter[str] = Counter()
    for number, document in enumerate(read_documents(config, Counter())):
        found[document.split] += 1
        content = document.text.encode()
        found["bytes"] += len(content)
        if document.split == "validation":
            continue
        rank = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        length = config.tokenizer_document_characters
        start = rank % max(1, len(document.text) - length + 1)
        window = document.text[start : start + length]
        heapq.heappush(kept, (-rank, number, window))
        size += len(window.encode())
        if config.source == "huggingface" and size >= config.tokenizer_sample_bytes:
            break
        while size > config.tokenizer_sample_bytes and len(kept) > 1:
            size -= len(heapq.heappop(kept)[2].encode())
    return [window for _, _, window in sorted(kept, key=lambda item: item[1])], found


def _check_splits(config: DataConfig, documents: Counter[str]) -> None:
    for split in SPLITS:
        if documents[split]:
            continue
        where = config.path or config.repository
        if config.source == "installed_python":
            raise DataError(
                f"the {split} packages hold no documents of their own: list others in the data group"
            )
        raise DataError(
            f"no {split} documents among the {documents.total() - documents['bytes']} of {where}: "
            f"change data.validation_fraction (now {config.validation_fraction:g}) or give more text"
        )


class _Shard:
    """Write one split's tokens, with their count and checksum."""

    def __init__(self, path: Path, itemsize: int) -> None:
        self._file = path.open("wb")
        self._itemsize = itemsize
        self._sha256 = hashlib.sha256()
        self._counts: Counter[str] = Counter()

    def __enter__(self) -> "_Shard":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, ids: bytes, text_bytes: int) -> None:
        self._file.write(ids)
        self._sha256.update(ids)
        self._counts.update(documents=1, bytes=text_bytes, tokens=len(ids) // self._itemsize)

    @property
    def tokens(self) -> int:
        return self._counts["tokens"]

    def describe(self) -> dict[str, Any]:
        return {**self._counts, "sha256": self._sha256.hexdigest()}


def _write_shards(
    config: DataConfig, folder: Path, tokenizer: str, dtype: np.dtype, found: Counter[str], progress: Progress
) -> tuple[dict[str, dict[str, Any]], str, Counter[str]]:
    """Encode every document; return each split's counts, the documents' digest and what was left out."""
    left_out: Counter[str] = Counter()
    documents_digest = hashlib.sha256()
    done = Counter[str]()
    told = 0.0
    workers = available_cores() if found["bytes"] >= PARALLEL_BYTES else 1
    with ExitStack() as stack:
        shards = {s: stack.enter_context(_Shard(folder / f"{s}.bin", dtype.itemsize)) for s in SPLITS}
        documents = read_documents(config, left_out)
        for document, ids in encode_documents(documents, tokenizer, dtype, workers):
            content = document.text.encode()
            documents_digest.update(_header(document, len(content)))
            documents_digest.update(content)
            shards[document.split].add(ids, len(content))
            done.update(documents=1, bytes=len(content))
            fraction = _fraction(config, done, shards["train"].tokens, found)
            if fraction - told >= 0.005:
                told = fraction
                progress("tokenizing", fraction)
            if config.max_tokens is not None and shards["train"].tokens >= config.max_tokens:
                break
    progress("tokenizing", 1.0)
    return {s: shard.describe() for s, shard in shards.items()}, documents_digest.hexdigest(), left_out


def _header(document: Document, size: int) -> bytes:
    return json.dumps([document.split, document.source, document.name, size]).encode()


def _fraction(config: DataConfig, done: Counter[str], train_tokens: int, found: Counter[str]) -> float:
    """Return how much of the documents is encoded: of their bytes, or of a stream's nearest limit."""
    if config.source != "huggingface":
        return done["bytes"] / found["bytes"]
    return max(
        train_tokens / (config.max_tokens or np.inf), done["documents"] / (config.max_documents or np.inf)
    )


def _unigram_nats(tokens: np.ndarray, vocabulary_size: int) -> float:
    """Return the entropy of tokens under their own frequencies."""
    counts = np.zeros(vocabulary_size, np.int64)
    for start in range(0, len(tokens), 1 << 22):
        counts += np.bincount(tokens[start : start + (1 << 22)], minlength=vocabulary_size)
    frequencies = counts[counts > 0] / len(tokens)
    return float(-np.sum(frequencies * np.log(frequencies)))


def _provenance(config: DataConfig) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "tokenizers": importlib.metadata.version("tokenizers")}
    match config.source:
        case "installed_python":
            packages = [*config.packages, *config.validation_packages]
            return {"source": config.source, "packages": package_versions(packages), **versions}
        case "text":
            return {"source": config.source, "path": config.path, **versions}
        case "huggingface":
            place = {
                "repository": config.repository,
                "subset": config.subset,
                "split": config.repository_split,
            }
            return {"source": config.source, **place, **versions}
