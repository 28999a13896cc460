"""How far the shards of a data set have been written: what a preparation that was killed goes on from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data.documents import Document
from harness.storage.files import read_json, write_json

FILE = "journal.json"
PART_BYTES = 256_000_000  # of text; the shards are committed at the end of each part


@dataclass(frozen=True, kw_only=True)
class Journal:
    """Say what the shards held when they were last committed.

    `bookmark` is that of the reader, `parts` the digests of the documents so far, `shards` the counts of each
    split.
    """

    documents: int = 0
    bookmark: dict[str, Any] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    shards: dict[str, dict[str, int]] = field(default_factory=dict)


def read_journal(folder: Path, itemsize: int) -> Journal:
    """Return the journal of an attempt in `folder`, an empty one where its files do not bear it out."""
    if not (folder / FILE).exists():
        return Journal()
    journal = Journal(**read_json(folder / FILE))
    for split, counts in journal.shards.items():
        path = folder / f"{split}.bin"
        if not path.exists() or path.stat().st_size < counts["tokens"] * itemsize:
            return Journal()
    return journal


def write_journal(folder: Path, journal: Journal) -> None:
    """Commit to what the shards hold now, which must be on the disk."""
    write_json(folder / FILE, vars(journal))


class DocumentsDigest:
    """Hash documents in parts of a fixed size: the state of a hash cannot be kept, whole parts can."""

    def __init__(self, parts: list[str]) -> None:
        self.parts = list(parts)
        self._hash = hashlib.sha256()
        self._bytes = 0

    def add(self, document: Document, content: bytes) -> bool:
        """Take in a document with its split, source and name; returns True when it ends a part."""
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
        """Return the digest of all documents: that of the only part, or of the parts' digests."""
        parts = [*self.parts, self._hash.hexdigest()] if self._bytes else self.parts
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
