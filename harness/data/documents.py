"""Documents of a data set, read from their source in a fixed order."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.dataset import DataConfig, DataError, Split
from harness.data.hub import HubStream, StreamPositions
from harness.data.prose import prose_documents
from harness.data.python_sources import package_fingerprint, python_files
from harness.data.rows import rows_of
from harness.data.text_files import find_text_files

POSITION_DOCUMENTS = 1_000  # documents between two recorded positions of a stream
NO_TEXT = "no text"  # reason to leave out a row
ROWS_PER_LOST = 100  # a file may lose one row in so many for want of a text
ENOUGH_LOST = 10  # rows without text after which the file need not be read to its end
SPLIT_NAMES: dict[str, Split] = {"train": "train", "val": "validation", "validation": "validation"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One document; `source` and `name` identify it independently of where the files are stored."""

    split: Split
    source: str
    name: str
    text: str


def read_documents(
    config: DataConfig, left_out: Counter[str], positions: StreamPositions | None = None
) -> Iterator[Document]:
    """Yield the documents of `config` in the same order on every machine.

    Parameters
    ----------
    left_out : counts the documents left out, by reason.
    positions : where a stream starts, and where it records how far it has come. Local files are always read
        from the beginning.

    Raises
    ------
    DataError : a missing package, path, field or library, or text that cannot be read.
    ConnectionError : a stream breaks.
    """
    match config.source:
        case "installed_python":
            return _installed_documents(config, left_out)
        case "installed_prose":
            return _prose_documents(config, left_out)
        case "text":
            return _text_documents(config, left_out)
        case "huggingface":
            return _streamed_documents(config, left_out, positions or StreamPositions())


def fingerprint(config: DataConfig) -> Any:
    """Return JSON data that changes if the documents may have changed, without reading them."""
    match config.source:
        case "installed_python" | "installed_prose":
            names = sorted({*config.packages, *config.validation_packages})
            return [[name, package_fingerprint(name)] for name in names]
        case "text":
            stats = [(path, path.stat()) for path in find_text_files(text_path(config)).files]
            return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        case "huggingface":
            return [config.repository, config.subset, config.repository_split, config.revision]


def text_path(config: DataConfig) -> Path:
    """Return the file or folder of a data set of source=text."""
    return Path(str(config.path)).expanduser()


def _installed_documents(config: DataConfig, left_out: Counter[str]) -> Iterator[Document]:
    # Training packages come first: a file that both sides hold is kept out of the validation set.
    splits: list[tuple[Split, list[str]]] = [
        ("train", config.packages),
        ("validation", config.validation_packages),
    ]
    seen: set[bytes] = set()
    for split, packages in splits:
        for package in sorted(set(packages)):
            for name, path in python_files(package, left_out):
                content = path.read_bytes()
                digest = hashlib.sha256(content).digest()
                if digest in seen:
                    left_out["duplicate"] += 1
                    continue
                seen.add(digest)
                try:
                    text = content.decode("utf-8")
                except UnicodeDecodeError:
                    left_out["not UTF-8"] += 1
                    continue
                if text.strip():
                    yield Document(split=split, source=package, name=name, text=text)
                else:
                    left_out["empty"] += 1


def _prose_documents(config: DataConfig, left_out: Counter[str]) -> Iterator[Document]:
    for source, name, text in prose_documents(config.packages, left_out):
        split = _split_by_content(text, config.validation_fraction)
        yield Document(split=split, source=source, name=name, text=text)


def _text_documents(config: DataConfig, left_out: Counter[str]) -> Iterator[Document]:
    found = find_text_files(text_path(config))
    left_out.update(found.counts())
    for path in found.files:
        source = path.relative_to(found.root).as_posix()
        reader = _RowReader(config, source, left_out)
        for place, row in rows_of(path, config):
            yield from reader.documents(place, row)
        reader.check_texts()


def _streamed_documents(
    config: DataConfig, left_out: Counter[str], positions: StreamPositions
) -> Iterator[Document]:
    start = positions.start
    left_out.update(start.left_out)
    stream = HubStream(config, start.state)
    rest = None if config.max_documents is None else config.max_documents - start.rows
    reader = _RowReader(config, str(config.repository), left_out, rows=start.rows)
    number = start.documents
    for row in itertools.islice(stream, rest):
        documents = reader.documents(f"{config.repository} row {reader.rows}", row)
        yield from documents
        reached = number + len(documents)
        if reached // POSITION_DOCUMENTS > number // POSITION_DOCUMENTS:
            positions.add(documents=reached, rows=reader.rows, left_out=left_out, state=stream.state())
        number = reached
    reader.check_texts()


class _RowReader:
    """Make documents of the rows of one file or stream, in which `rows` were read before."""

    def __init__(self, config: DataConfig, source: str, left_out: Counter[str], rows: int = 0) -> None:
        self._config, self._source, self._left_out = config, source, left_out
        self.rows = rows
        self._without_text = left_out[NO_TEXT] if rows else 0
        self._first = ""

    def documents(self, place: str, row: dict[str, Any]) -> list[Document]:
        """Return the documents of a row, none if it is empty; `place` names it in an error."""
        number = self.rows
        self.rows += 1
        text = row.get(self._config.text_field)
        if not isinstance(text, str):
            self._note_without_text(place, row)
            return []
        if not text.strip():
            self._left_out["empty"] += 1
            return []
        split = self._stated_split(place, row)
        return [
            Document(
                split=split or _split_by_content(part, self._config.validation_fraction),
                source=self._source,
                name=f"{number}.{at}" if at else f"{number}",
                text=part,
            )
            for at, part in enumerate(_parts(text, self._config.max_document_bytes))
        ]

    def check_texts(self) -> None:
        """Raise DataError if too many rows have no text for it to be an accident."""
        if self._without_text * ROWS_PER_LOST > self.rows:
            raise DataError(
                f"{self._first or self._source} ({self._without_text} of {self.rows} rows are like it): "
                "set data.text_field or mend the rows"
            )

    def _note_without_text(self, place: str, row: dict[str, Any]) -> None:
        field = self._config.text_field
        if not self._first:
            held = f"holds {type(row[field]).__name__}" if row.get(field) is not None else "has no text"
            self._first = (
                f"{place} {held} in field {field!r} (its fields: {', '.join(map(str, row)) or 'none'})"
            )
        self._left_out[NO_TEXT] += 1
        self._without_text += 1
        if self._without_text > ENOUGH_LOST:  # do not read a terabyte of the wrong column first
            self.check_texts()

    def _stated_split(self, place: str, row: dict[str, Any]) -> Split | None:
        stated = row.get("split") if self._config.source == "text" else None
        if stated is None:
            return None
        if isinstance(stated, str) and stated in SPLIT_NAMES:
            return SPLIT_NAMES[stated]
        raise DataError(f"{place} has split {stated!r}: write train or val, or drop the field")


def _parts(text: str, most_bytes: int) -> Iterator[str]:
    """Yield `text` in parts of at most `most_bytes` of UTF-8, cut at a line end or a blank if possible."""
    start = 0
    while start < len(text):
        part = text[start : start + most_bytes]
        if not part.isascii():
            # A lone surrogate is legal in JSON but not in UTF-8.
            part = part.encode("utf-8", "replace")[:most_bytes].decode("utf-8", "ignore")
        if start + len(part) < len(text):
            half = len(part) // 2
            end = part.rfind("\n", half) + 1 or part.rfind(" ", half)
            part = part[: end if end > 0 else len(part)]
        start += len(part)
        yield part


def _split_by_content(text: str, validation_fraction: float) -> Split:
    # By content, so that copies of a document fall on the same side.
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return "validation" if place < validation_fraction else "train"
