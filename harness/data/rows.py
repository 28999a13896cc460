"""Rows of files of text, read in bounded memory; damage is named with its file and line."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from harness.data.dataset import DataConfig, DataError
from harness.data.text_files import text_format

# A longer .txt is cut at line ends into several documents, so that one large file can give a validation set.
TXT_CHARACTERS = 16_384
LINE_BYTES = 256_000_000  # of a line of JSON or a row of Parquet, which are parsed whole
BATCH_BYTES = 16_000_000  # of Parquet in memory at once

Row = tuple[str, dict[str, Any]]  # the place to name in an error, and the row


def rows_of(path: Path, config: DataConfig) -> Iterator[Row]:
    """Yield the rows of a file. Raises DataError where it cannot be read."""
    text_kind = text_format(path.name)
    assert text_kind is not None, path
    kind, compression = text_kind
    if kind == ".parquet":
        yield from _parquet_rows(path, config)
        return
    try:
        with _open(path, compression) as file:
            yield from (_txt_rows if kind == ".txt" else _json_rows)(path, file, config)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}): compress it again") from None
    except OSError as error:
        if compression != ".zst" or error.errno is not None:
            raise
        raise DataError(f"{path} is not a whole zstd file ({error}): compress it again") from None


def _open(path: Path, compression: str) -> IO[bytes]:
    if compression == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))
    if compression == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _txt_rows(path: Path, file: IO[bytes], config: DataConfig) -> Iterator[Row]:
    lines: list[str] = []
    size = 0
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            while line := text.readline(config.max_document_bytes):
                lines.append(line)
                size += len(line)
                if size >= TXT_CHARACTERS:
                    yield str(path), {config.text_field: "".join(lines)}
                    lines, size = [], 0
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason}): convert it, for example with iconv") from None
    if lines:
        yield str(path), {config.text_field: "".join(lines)}


def _json_rows(path: Path, file: IO[bytes], config: DataConfig) -> Iterator[Row]:
    longest = max(LINE_BYTES, config.max_document_bytes)
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        place = f"{path} line {number}"
        if len(line) > longest:
            raise _too_long(place, longest)
        if not line.strip():
            continue
        try:
            row = json.loads(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
        except RecursionError:
            raise DataError(f"{place} is nested too deeply: write one flat JSON object per line") from None
        except ValueError as error:
            raise DataError(f"{place} is not JSON ({error}): write one JSON object per line") from None
        if not isinstance(row, dict):
            raise DataError(f"{place} is {type(row).__name__}: write one JSON object per line")
        yield place, row


def _too_long(place: str, longest: int) -> DataError:
    return DataError(
        f"{place} is longer than {longest:,} bytes: split it, or raise data.max_document_bytes to its size"
    )


def _parquet_rows(path: Path, config: DataConfig) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if config.text_field not in names:
                raise DataError(
                    f"{path} has no column {config.text_field!r} (it has {', '.join(names)}): "
                    "set data.text_field"
                )
            kind = file.schema_arrow.field(config.text_field).type
            if not _holds_text(kind):
                raise DataError(
                    f"{path}: column {config.text_field!r} holds {kind}, not text: set data.text_field to "
                    f"another of {', '.join(names)}"
                )
            columns = [name for name in (config.text_field, "split") if name in names]
            number = 0
            for batch in file.iter_batches(_batch_rows(file, path, config), columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path} is not a whole Parquet file ({str(error).splitlines()[0]})") from None


def _holds_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_null))


def _batch_rows(file: Any, path: Path, config: DataConfig) -> int:
    """Return how many rows are read at once, by the largest mean size of the texts of a row group."""
    longest, largest = max(LINE_BYTES, config.max_document_bytes), 1.0
    for group in range(file.metadata.num_row_groups):
        described = file.metadata.row_group(group)
        for at in range(described.num_columns):
            column = described.column(at)
            if column.path_in_schema == config.text_field and described.num_rows:
                largest = max(largest, column.total_uncompressed_size / described.num_rows)
    if largest > longest:
        raise _too_long(f"a row of {path}", longest)
    return int(min(1024, max(1, BATCH_BYTES // largest)))
