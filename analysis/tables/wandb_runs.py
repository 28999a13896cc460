"""Runs logged with Weights & Biases as one table: a project over the public API, or folders of offline runs.

Columns are the keys of a run's config and summary, nested ones dotted, with `run_id`, `name` and `state`. A
key that both hold has the summary's value. wandb is imported when a table is read. It writes offline runs but
ships no reader of them, so this module splits the file into its frames (the record format of LevelDB's log)
and parses their content with wandb's own protocol.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables.schema import TableError

HEADER_BYTES, BLOCK_BYTES, FRAME_BYTES = 7, 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_wandb(place: str) -> pd.DataFrame:
    """Return one row per run of `place`: ENTITY/PROJECT, or a folder that holds offline runs.

    Raises TableError where there is no such project, no run in it, or a file that cannot be read.
    """
    folder = Path(place)
    rows = _offline(folder) if folder.is_dir() else _online(place)
    if not rows:
        raise TableError(f"wandb:{place} holds no run")
    return pd.DataFrame(rows).sort_values("run_id", kind="stable").reset_index(drop=True)


def _online(place: str) -> list[dict[str, Any]]:
    if place.count("/") != 1:
        raise TableError(f"data=wandb:{place}: it must be wandb:ENTITY/PROJECT or an existing folder")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    try:
        return [
            _row(run.id, run.name, run.state, dict(run.config), dict(run.summary))
            for run in wandb.Api().runs(place)
        ]
    except (wandb.Error, ValueError, OSError) as error:
        raise TableError(f"cannot read wandb:{place}: {str(error).splitlines()[0]}") from error


def _offline(folder: Path) -> list[dict[str, Any]]:
    paths = sorted({path.resolve() for path in folder.rglob("*.wandb")})
    return [row for path in paths if (row := _read_run(path)) is not None]


def _read_run(path: Path) -> dict[str, Any] | None:
    """Return the last state of one file: config and summary are stored as updates, history as rows."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    from wandb.proto.wandb_internal_pb2 import Record

    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    run_id, name, state = "", "", "crashed"  # a run that ends writes its exit code
    for frame in frames(path):
        record: Any = Record()
        record.ParseFromString(frame)
        if record.HasField("run"):
            run_id, name = record.run.run_id, record.run.display_name
            _update(config, record.run.config.update)
            _update(summary, record.run.summary.update)
        elif record.HasField("config"):
            _update(config, record.config.update)
        elif record.HasField("summary"):
            _update(summary, record.summary.update)
        elif record.HasField("history"):
            _update(summary, record.history.item)
        elif record.HasField("exit"):
            state = "failed" if record.exit.exit_code else "finished"
    return _row(run_id, name, state, config, summary) if run_id else None


def _update(values: dict[str, Any], items: Any) -> None:
    for item in items:
        values[".".join(item.nested_key) or item.key] = json.loads(item.value_json)


def _row(
    run_id: str, name: str, state: str, config: Mapping[str, Any], summary: Mapping[str, Any]
) -> dict[str, Any]:
    merged = {**flat(config), **flat(summary)}
    values = {key: value for key, value in merged.items() if not key.startswith("_")}
    return {**values, "run_id": run_id, "name": name or run_id, "state": state}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            dotted |= flat(value, f"{prefix}{key}.")
        else:
            dotted[f"{prefix}{key}"] = value
    return dotted


def frames(path: Path) -> Iterator[bytes]:
    """Yield the records of an offline run's file; a last one cut short by a crash is left out.

    Raises TableError for a file that is not of this format.
    """
    content = path.read_bytes()
    if not content.startswith(b":W&B"):
        raise TableError(f"{path} is not a wandb run")
    at, parts = HEADER_BYTES, b""
    while at + FRAME_BYTES <= len(content):
        if BLOCK_BYTES - at % BLOCK_BYTES < FRAME_BYTES:  # too little room for a frame: the block is padded
            at += BLOCK_BYTES - at % BLOCK_BYTES
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        body, at = content[at + FRAME_BYTES : at + FRAME_BYTES + length], at + FRAME_BYTES + length
        if len(body) < length or kind not in (FULL, FIRST, MIDDLE, LAST):
            return
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            yield parts
