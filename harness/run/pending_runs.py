"""The runs of a sweep that have no folder yet: a line each in `<root>/<sweep>/planned.jsonl`.

Thousands of folders take seconds to create and one file does not, so a run's folder is created when something
happens to the run. Until then its line holds the files that the folder will begin with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.storage.files import json_text, write_once, write_text
from model.config_validation import ConfigError

PLANNED = "planned.jsonl"
# What a folder begins with, in the order of writing: text as it is and JSON as data, by file name.
Files = dict[str, Any]

_BEGIN = '{"run_id": "'  # of every line, so that a run's is found without parsing the others
_encode = json.JSONEncoder(allow_nan=False).encode
_decode = json.JSONDecoder().raw_decode


def pending_line(run_id: str, files: Files) -> str:
    """Return the line of a run."""
    return _encode({"run_id": run_id} | files) + "\n"


def pending_lines(sweep: Path) -> Mapping[str, str]:
    """Return the lines of the sweep in `sweep` by run id, none where there is no such file.

    They are read once, and again when the file was replaced. Raises ConfigError for a damaged file.
    """
    path = f"{sweep}/{PLANNED}"
    try:
        descriptor = os.open(path, os.O_RDONLY)  # a file server answers this anew, os.stat from a cache
    except (FileNotFoundError, NotADirectoryError):
        return {}
    stamp = os.fstat(descriptor)
    os.close(descriptor)
    return _lines(path, stamp.st_ino, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=4)
def _lines(path: str, *_stamp: int) -> Mapping[str, str]:
    with Path(path).open(encoding="utf-8") as handle:
        lines = list(handle)
    for number, line in enumerate(lines, start=1):
        if not (line.startswith(_BEGIN) and line.endswith("}\n")):
            raise ConfigError(f"{path} is damaged: line {number} is no run")
    return {line[len(_BEGIN) : line.index('"', len(_BEGIN))]: line for line in lines}


def pending_file(folder: Path, name: str) -> Any:
    """Return what the file `name` in the run's folder `folder` will begin with, None where none is planned.

    Nothing else of the run's line is parsed: `status` asks for two small files of thousands of runs.
    """
    line = pending_lines(folder.parent).get(folder.name, "")
    key = f'"{name}": '  # inside of a value its quotes would be escaped
    at = line.find(key)
    return None if at < 0 else _decode(line, at + len(key))[0]


def pending_files(folder: Path) -> Files:
    """Return all files that the run's folder `folder` will begin with, {} where none is planned there."""
    line = pending_lines(folder.parent).get(folder.name)
    files = json.loads(line) if line else {}
    return {name: content for name, content in files.items() if name != "run_id"}


def write_pending(sweep: Path, lines: Mapping[str, str]) -> None:
    """Write all lines at once and synced; a reader sees those of before or these."""
    write_text(sweep / PLANNED, "".join(lines.values()))


def write_files(folder: Path, files: Files, *, keep: bool, sync: bool = True) -> None:
    """Create the folder of a run with its first files, the last of which says that it is complete.

    With `keep` a file that is there stays, so that several processes can do this at once.
    """
    write = write_once if keep else write_text
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write(folder / name, content if isinstance(content, str) else json_text(content), sync=sync)
