"""Turn documents into token shards: draw the tokenizer's sample, encode, write, describe."""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from harness.data_config import DataConfig, DataError
from harness.documents import Split, read_documents
from harness.encoding import available_cores, encode_documents
from harness.installed import package_versions
from harness.tokenizer import BOS, Sample, merges_digest, train_tokenizer

FORMAT_VERSION = 1
SPLITS: tuple[Split, ...] = ("train", "validation")
PARALLEL_BYTES = 30_000_000  # less is done before other processes have started
PROGRESS_STEP = 0.005
Progress = Callable[[str, float], None]


def write_dataset(config: DataConfig, folder: Path, progress: Progress) -> str:
    """Write train.bin, validation.bin, tokenizer.json and index.json into `folder` and return the digest.

    The digest covers every document with its split, source and name, and what the tokenizer learnt, but not
    the place of the files. Raises DataError for documents that cannot be used.
    """
    progress("reading documents", 0.0)
    survey = _survey(config)
    progress("training the tokenizer", 0.0)
    tokenizer = train_tokenizer(survey.sample.texts(), config.vocabulary_size).to_str()
    write_text(folder / "tokenizer.json", tokenizer)
    dtype = np.dtype("<u2" if config.vocabulary_size <= 2**16 else "<u4")
    written = _write_shards(config, folder, tokenizer, dtype, survey, progress)
    digest = hashlib.sha256((written.documents_digest + merges_digest(tokenizer)).encode()).hexdigest()[:16]
    validation = np.memmap(folder / "validation.bin", dtype, "r")
    index = {
        "format_version": FORMAT_VERSION,
        "digest": digest,
        "name": config.name,
        "vocabulary_size": config.vocabulary_size,
        "bos": BOS,
        "dtype": dtype.name,
        "unigram_nats": _unigram_nats(validation, config.vocabulary_size),
        "tokenizer_sha256": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "splits": written.splits,
        "left_out": dict(sorted(written.left_out.items())),
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


@dataclass(frozen=True, kw_only=True)
class _Survey:
    """What a first reading finds: the tokenizer's sample, and the size of all documents in bytes."""

    sample: Sample
    total_bytes: int


def _survey(config: DataConfig) -> _Survey:
    """Read the documents once; of a streamed data set only as many as fill the sample."""
    sample = Sample(config.tokenizer_sample_bytes, config.tokenizer_document_characters)
    documents: Counter[str] = Counter()
    total_bytes = 0
    for document in read_documents(config, Counter()):
        documents[document.split] += 1
        total_bytes += len(document.text.encode())
        if document.split == "train":
            sample.add(document.text)
        if config.source == "huggingface" and sample.full:
            break
    else:
        _check_splits(config, documents)
    return _Survey(sample=sample, total_bytes=total_bytes)


def _check_splits(config: DataConfig, documents: Mapping[str, int]) -> None:
    missing = [split for split in SPLITS if not documents.get(split)]
    if not missing:
        return
    if config.source == "installed_python":
        raise DataError(f"the {missing[0]} packages have no documents of their own: list others")
    where = config.path or config.repository
    raise DataError(
        f"none of the {sum(documents.values())} documents of {where} is for {missing[0]}: "
        f"change data.validation_fraction (now {config.validation_fraction:g}) or give more text"
    )


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What the shards hold: counts and checksum of each split, digest of the documents, what was left out."""

    splits: dict[str, dict[str, Any]]
    documents_digest: str
    left_out: Counter[str]


class _Shard:
    """Write one split's tokens, with their counts and checksum."""

    def __init__(self, path: Path, itemsize: int) -> None:
        self._file = path.open("wb")
        self._itemsize = itemsize
        self._sha256 = hashlib.sha256()
        self.documents = 0
        self.bytes = 0
        self.tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, ids: bytes, text_bytes: int) -> None:
        self._file.write(ids)
        self._sha256.update(ids)
        self.documents += 1
        self.bytes += text_bytes
        self.tokens += len(ids) // self._itemsize

    def describe(self) -> dict[str, Any]:
        counts = {"documents": self.documents, "bytes": self.bytes, "tokens": self.tokens}
        return {**counts, "sha256": self._sha256.hexdigest()}


def _write_shards(
    config: DataConfig, folder: Path, tokenizer: str, dtype: np.dtype, survey: _Survey, progress: Progress
) -> _Written:
    left_out: Counter[str] = Counter()
    digest = hashlib.sha256()
    told = 0.0
    large = config.source == "huggingface" or survey.total_bytes >= PARALLEL_BYTES
    documents = read_documents(config, left_out)
    with ExitStack() as stack:
        shards = {s: stack.enter_context(_Shard(folder / f"{s}.bin", dtype.itemsize)) for s in SPLITS}
        encoded = encode_documents(documents, tokenizer, dtype, available_cores() if large else 1)
        stack.callback(encoded.close)
        for document, ids in encoded:
            content = document.text.encode()
            digest.update(json.dumps([document.split, document.source, document.name, len(content)]).encode())
            digest.update(content)
            shards[document.split].add(ids, len(content))
            fraction = _fraction(config, shards.values(), survey.total_bytes)
            if fraction - told >= PROGRESS_STEP:
                told = fraction
                progress("tokenizing", fraction)
            if config.max_tokens is not None and shards["train"].tokens >= config.max_tokens:
                break
    _check_splits(config, {split: shard.documents for split, shard in shards.items()})
    progress("tokenizing", 1.0)
    splits: dict[str, dict[str, Any]] = {split: shard.describe() for split, shard in shards.items()}
    return _Written(splits=splits, documents_digest=digest.hexdigest(), left_out=left_out)


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
