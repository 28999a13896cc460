"""A first reading of the documents: the tokenizer's sample, and how much there is to encode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.data.config import DataConfig, DataError
from harness.data.documents import Split, read_documents
from harness.data.existing_tokenizer import read_tokenizer
from harness.data.tokenizer import Sample, train_tokenizer
from harness.storage.files import read_json, write_json, write_text

SPLITS: tuple[Split, ...] = ("train", "validation")
PROGRESS_BYTES = 1_000_000  # progress is told this often
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What encoding starts from: a tokenizer and, but for a stream, the size of all documents in bytes."""

    tokenizer: str
    total_bytes: int


def survey(config: DataConfig, folder: Path, progress: Progress) -> Survey:
    """Return the tokenizer of `config`, trained on a sample of its documents unless it names one.

    Kept in `folder`, so that an interrupted preparation does not do it again.
    """
    kept, tokenizer_file = folder / "survey.json", folder / "tokenizer.json"
    if kept.exists():
        return Survey(
            tokenizer=tokenizer_file.read_text(encoding="utf-8"), total_bytes=read_json(kept)["total_bytes"]
        )
    tokenizer = read_tokenizer(config) if config.tokenizer else None
    total_bytes = 0
    if tokenizer is None or config.source != "huggingface":
        progress("reading documents", 0.0)
        sample, total_bytes = _read(config, progress)
        if tokenizer is None:
            progress("training the tokenizer", 0.0)
            tokenizer = train_tokenizer(sample.texts(), config.vocabulary_size).to_str()
    write_text(tokenizer_file, tokenizer)
    write_json(kept, {"total_bytes": total_bytes})
    return Survey(tokenizer=tokenizer, total_bytes=total_bytes)


def _read(config: DataConfig, progress: Progress) -> tuple[Sample, int]:
    """Read the documents once; of a streamed data set only as many as fill the sample."""
    sample = Sample(config.tokenizer_sample_bytes, config.tokenizer_document_characters)
    streamed = config.source == "huggingface"
    documents: Counter[str] = Counter()
    total_bytes = told = 0
    for document in read_documents(config, Counter()):
        documents[document.split] += 1
        total_bytes += len(document.text.encode())
        if document.split == "train":
            sample.add(document.text)
        if streamed and sample.full:
            break
        if streamed and total_bytes - told > PROGRESS_BYTES:  # elsewhere nobody knows how much is to come
            told = total_bytes
            progress("reading documents", min(1.0, total_bytes / config.tokenizer_sample_bytes))
    else:
        check_splits(config, documents)
    return sample, total_bytes


def check_splits(config: DataConfig, documents: Mapping[str, int]) -> None:
    """Raise DataError when one of the splits has no documents."""
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
