"""Preparation of a data set: the tokenizer, the token shards and their index, stored under their digest."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.dataset import FILES, FORMAT_VERSION, DataConfig, DataError, Dataset, Progress, open_dataset
from harness.data.documents import fingerprint, read_documents
from harness.data.python_sources import package_versions
from harness.data.shards import check_splits, write_token_shards
from harness.data.tokenizer import (
    BOS,
    Sample,
    find_bos,
    tokenizer_digest,
    train_tokenizer,
    training_stage,
    vocabulary_size,
)
from harness.data.tokenizer_file import read_tokenizer
from harness.storage.files import exclusive, new_folder, read_json, write_json, write_text

REPORT_BYTES = 1_000_000  # of text between two reports of progress


def prepare(config: DataConfig, cache: Path, progress: Progress | None = None) -> Dataset:
    """Return the data set of `config`, made from its documents if it is not in `cache` yet.

    Raises
    ------
    DataError : documents that cannot be used; nothing of them is kept.

    Notes
    -----
    Of several processes that prepare at once, one works and the others wait. The next call continues an
    interrupted preparation. Large data is tokenized in spawned processes, so a script must call this under
    `if __name__ == "__main__"`.
    """
    key = _key(config)
    if (prepared := _find(config, cache, key)) is not None:
        return prepared
    keys = cache / "keys"
    keys.mkdir(parents=True, exist_ok=True)
    with exclusive(keys / f"{key}.lock", wait=True):
        if (prepared := _find(config, cache, key)) is not None:
            return prepared
        # Named by host, as on some network file systems a lock holds on one host only.
        scratch = cache / f".preparing-{key}-{platform.node()}"
        scratch.mkdir(exist_ok=True)
        try:
            digest = _write_dataset(config, scratch, progress or (lambda stage, fraction: None))
        except DataError:
            shutil.rmtree(scratch)  # any other end leaves a part to continue from
            raise
        _publish(scratch, cache / digest)
        write_text(keys / key, digest)
        shutil.rmtree(scratch)
    return _named(open_dataset(cache / digest), config)


def find_prepared(config: DataConfig, cache: Path) -> Dataset | None:
    """Return the data set of `config` if it is prepared, without writing anything.

    Raises DataError if its packages or files are missing, or the prepared files are damaged.
    """
    return _find(config, cache, _key(config))


def _key(config: DataConfig) -> str:
    """Return a hash of what the data set would be made from, without reading documents."""
    fields = dataclasses.asdict(config)
    # Paths do not count, only what they hold: the files in the fingerprint, the content of the tokenizer.
    for field in ("name", "unique_tokens", "path"):
        del fields[field]
    if config.max_document_bytes == DataConfig.max_document_bytes:
        del fields["max_document_bytes"]  # younger than the keys of most caches
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
    """Move the files of `scratch` to `target` in one step, unless another process has stored the data set."""
    with new_folder(target) as whole:
        for name in FILES:
            (scratch / name).rename(whole / name)


def _write_dataset(config: DataConfig, folder: Path, progress: Progress) -> str:
    """Write train.bin, validation.bin, tokenizer.json and index.json into `folder` and return the digest.

    The digest covers every document with its split, source and name, and the tokenizer, but not the location
    of the files. In the folder of an interrupted attempt, writing continues after the last commit.
    """
    start = _tokenizer(config, folder, progress)
    bos = find_bos(start.tokenizer, config.bos_token) if config.tokenizer else BOS
    vocabulary = vocabulary_size(start.tokenizer)
    dtype = np.dtype("<u2" if vocabulary <= 2**16 else "<u4")
    written = write_token_shards(config, folder, start.tokenizer, start.total_bytes, bos, dtype, progress)
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
class _Tokenizer:
    """A tokenizer.json and the size of all documents in bytes, 0 for a stream."""

    tokenizer: str
    total_bytes: int


def _tokenizer(config: DataConfig, folder: Path, progress: Progress) -> _Tokenizer:
    """Return the tokenizer of `config`, trained on a sample of its documents unless it names one.

    It is stored in `folder` for an interrupted preparation to continue with.
    """
    kept, tokenizer_file = folder / "survey.json", folder / "tokenizer.json"
    if kept.exists():
        return _Tokenizer(
            tokenizer=tokenizer_file.read_text(encoding="utf-8"), total_bytes=read_json(kept)["total_bytes"]
        )
    tokenizer = read_tokenizer(config) if config.tokenizer else None
    total_bytes = 0
    if tokenizer is None or config.source != "huggingface":
        progress("reading documents", 0.0)
        sample, total_bytes = _read_sample(config, progress)
        if tokenizer is None:
            stage = training_stage(sample.size_bytes)
            trained = train_tokenizer(sample.texts(), config.vocabulary_size, partial(progress, stage))
            tokenizer = trained.to_str()
    write_text(tokenizer_file, tokenizer)
    write_json(kept, {"total_bytes": total_bytes})
    return _Tokenizer(tokenizer=tokenizer, total_bytes=total_bytes)


def _read_sample(config: DataConfig, progress: Progress) -> tuple[Sample, int]:
    """Return a sample of the documents and their size in bytes; of a stream, only what fills the sample."""
    sample = Sample(config.tokenizer_sample_bytes, config.tokenizer_document_characters)
    streamed = config.source == "huggingface"
    documents: Counter[str] = Counter()
    total_bytes = reported = 0
    for document in read_documents(config, Counter()):
        documents[document.split] += 1
        total_bytes += len(document.text.encode())
        if document.split == "train":
            sample.add(document.text)
        if streamed and sample.full:
            break
        if streamed and total_bytes - reported > REPORT_BYTES:  # elsewhere the total is not known yet
            reported = total_bytes
            progress("reading documents", min(1.0, total_bytes / config.tokenizer_sample_bytes))
    else:
        check_splits(config, documents)
    return sample, total_bytes


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
