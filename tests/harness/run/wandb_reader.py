"""Read a .wandb file: records of protobuf in blocks of 32 KiB, as LevelDB writes its logs."""

import json
import struct
import zlib
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

FILE_HEADER = struct.Struct("<4sHB")
CHUNK_HEADER = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
BLOCK = 32 * 1024


def records(path: Path) -> list[Record]:
    content = path.read_bytes()
    assert FILE_HEADER.unpack_from(content)[0] == b":W&B"
    found, parts, at = [], b"", FILE_HEADER.size
    while at + CHUNK_HEADER.size <= len(content):
        if BLOCK - at % BLOCK < CHUNK_HEADER.size:
            at += BLOCK - at % BLOCK  # the rest of a block too short for a header is left empty
            continue
        checksum, length, kind = CHUNK_HEADER.unpack_from(content, at)
        data = content[at + CHUNK_HEADER.size :][:length]
        assert len(data) == length and checksum == zlib.crc32(data, zlib.crc32(bytes([kind])))
        parts = data if kind in (FULL, FIRST) else parts + data
        if kind in (FULL, LAST):
            found.append(Record.FromString(parts))
        at += CHUNK_HEADER.size + length
    return found


def history(path: Path) -> list[dict]:
    """The logged lines, in order, each with wandb's own `_step`."""
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def run_record(path: Path):
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")
