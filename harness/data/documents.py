"""Documents of a data set, read from their source in a fixed order."""

import gzip
import hashlib
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.dataset import DataConfig, DataError, Split
from harness.data.hub import HubStream, StreamPositions
from harness.data.prose import prose_documents
from harness.data.python_sources import package_fingerprint, python_files

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
# A longer .txt is cut at line ends into several documents, so that one large file can give a validation set.
TXT_CHARACTERS = 16_384
POSITION_DOCUMENTS = 1_000  # documents between two recorded positions of a stream
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
            stats = [(path, path.stat()) for path in text_files(config)]
            return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        case "huggingface":
            return [config.repository, config.subset, config.repository_split, config.revision]


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


def text_files(config: DataConfig) -> list[Path]:
    """Return the text files under `config.path` by relative path. Raises DataError if there are none."""
    root = Path(str(config.path)).expanduser()
    if root.is_file():
        if not root.name.endswith(SUFFIXES):
            raise DataError(f"cannot read {root}: data.path takes .txt, .jsonl, .jsonl.gz or .parquet files")
        return [root]
    if not root.is_dir():
        raise DataError(f"data.path {root} does not exist: name a file or a folder of text")
    files = [path for path in root.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file()]
    if not files:
        raise DataError(f"no documents in {root}: put .txt, .jsonl, .jsonl.gz or .parquet files there")
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _text_documents(config: DataConfig, left_out: Counter[str]) -> Iterator[Document]:
    root = Path(str(config.path)).expanduser()
    for path in text_files(config):
        source = path.name if path == root else path.relative_to(root).as_posix()
        yield from _row_documents(config, source, _rows(path, config.text_field), left_out)


def _streamed_documents(
    config: DataConfig, left_out: Counter[str], positions: StreamPositions
) -> Iterator[Document]:
    start = positions.start
    left_out.update(start.left_out)
    stream = HubStream(config, start.state)
    rows = ((f"{config.repository} row {i}", row) for i, row in enumerate(stream, start=start.rows))
    rest = None if config.max_documents is None else config.max_documents - start.rows
    documents = _row_documents(
        config, str(config.repository), itertools.islice(rows, rest), left_out, first=start.rows
    )
    for number, document in enumerate(documents, start=start.documents + 1):
        yield document
        if number % POSITION_DOCUMENTS == 0:
            row = int(document.name)
            positions.add(documents=number, rows=row + 1, left_out=left_out, state=stream.state())


def _row_documents(
    config: DataConfig,
    source: str,
    rows: Iterable[tuple[str, dict[str, Any]]],
    left_out: Counter[str],
    first: int = 0,
) -> Iterator[Document]:
    """Yield documents from (place to name in an error, row) pairs; rows are numbered from `first`."""
    for number, (place, row) in enumerate(rows, start=first):
        text = row.get(config.text_field)
        if not isinstance(text, str):
            fields = ", ".join(map(str, row)) or "none"
            field = config.text_field
            raise DataError(
                f"{place} has no text in field {field!r} (its fields: {fields}): set data.text_field"
            )
        if not text.strip():
            left_out["empty"] += 1
            continue
        # A lone surrogate is legal in JSON but not in UTF-8.
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode("utf-8")
        stated = row.get("split") if config.source == "text" else None
        if stated is None:
            split = _split_by_content(text, config.validation_fraction)
        elif isinstance(stated, str) and stated in SPLIT_NAMES:
            split = SPLIT_NAMES[stated]
        else:
            raise DataError(f"{place} has split {stated!r}: write train or val, or drop the field")
        yield Document(split=split, source=source, name=str(number), text=text)


def _split_by_content(text: str, validation_fraction: float) -> Split:
    # By content, so that copies of a document fall on the same side.
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return "validation" if place < validation_fraction else "train"


def _rows(path: Path, text_field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.name.endswith(".parquet"):
        return _parquet_rows(path, text_field)
    if path.name.endswith(".txt"):
        return _txt_rows(path, text_field)
    return _json_rows(path)


def _txt_rows(path: Path, text_field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    lines: list[str] = []
    size = 0
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in file:
                lines.append(line)
                size += len(line)
                if size >= TXT_CHARACTERS:
                    yield str(path), {text_field: "".join(lines)}
                    lines, size = [], 0
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason}): convert it, for example with iconv") from None
    if lines:
        yield str(path), {text_field: "".join(lines)}


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                place = f"{path} line {number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(
                        f"{place} is not JSON ({error}): write one JSON object per line"
                    ) from None
                if not isinstance(row, dict):
                    raise DataError(f"{place} is {type(row).__name__}: write one JSON object per line")
                yield place, row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}): compress it again") from None


def _parquet_rows(path: Path, text_field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in (text_field, "split") if name in file.schema_arrow.names]
            if text_field not in columns:
                fields = ", ".join(file.schema_arrow.names)
                raise DataError(f"{path} has no column {text_field!r} (it has {fields}): set data.text_field")
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file ({str(error).splitlines()[0]})") from None
