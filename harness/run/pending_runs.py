"""The runs of a sweep that have no folder yet, one line each in `<root>/<sweep>/planned.jsonl`.

Creating thousands of folders takes seconds. A run's folder is therefore created when something is written
into it. Until then its line holds the initial files of the folder.
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
# Initial files of a folder by name, in the order of writing: text, or the data of a JSON file.
Files = dict[str, Any]

_BEGIN = '{"run_id": "'  # of every line, to find a run's without parsing the others
_encode = json.JSONEncoder(allow_nan=False).encode
_decode = json.JSONDecoder().raw_decode


def pending_line(run_id: str, files: Files) -> str:
    """Return the line of a run."""
    return _encode({"run_id": run_id} | files) + "\n"


def pending_lines(sweep: Path) -> Mapping[str, str]:
    """Return the lines of the sweep in folder `sweep` by run id, none if there is no such file.

    The file is read again only after it was replaced. Raises ConfigError if it is damaged.
    """
    path = f"{sweep}/{PLANNED}"
    try:
        descriptor = os.open(path, os.O_RDONLY)  # on a network file system os.stat may answer from a cache
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
    """Return the initial content of the file `name` in `folder`, None if no such file is pending.

    Only this part of the run's line is parsed: `status` reads two small files of thousands of runs.
    """
    line = pending_lines(folder.parent).get(folder.name, "")
    key = f'"{name}": '  # inside a value the quotes would be escaped
    at = line.find(key)
    return None if at < 0 else _decode(line, at + len(key))[0]


def pending_files(folder: Path) -> Files:
    """Return the initial files of the run's folder `folder`, {} if no run is pending there."""
    line = pending_lines(folder.parent).get(folder.name)
    files = json.loads(line) if line else {}
    return {name: content for name, content in files.items() if name != "run_id"}


def write_pending(sweep: Path, lines: Mapping[str, str]) -> None:
    """Replace all lines atomically."""
    write_text(sweep / PLANNED, "".join(lines.values()))


def write_files(folder: Path, files: Files, *, keep: bool, sync: bool = True) -> None:
    """Create the folder of a run with its initial files.

    With `keep` existing files are kept, which allows several processes to call it at once.
    """
    write = write_once if keep else write_text
    folder.mkdir(parents=not keep, exist_ok=True)  # a sweep's folder that is gone is not made anew
    for name, content in files.items():
        write(folder / name, content if isinstance(content, str) else json_text(content), sync=sync)
