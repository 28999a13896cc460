"""Files that others wrote, checked before they are opened or parsed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.config_validation import ConfigError

JSON_BYTES = 200_000_000  # of a JSON file; the largest tokenizers have some 30 MB


def check_regular(path: Path) -> None:
    """Raise ConfigError unless `path` is a regular file: opening a pipe or a device could wait for ever."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}: a file is needed")


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises
    ------
    ConfigError : no regular file, too large, not UTF-8, no JSON object, nested too deeply, or with a number
        that JSON does not have.
    OSError : it cannot be read.
    """
    check_regular(path)
    if (size := path.stat().st_size) > JSON_BYTES:
        raise ConfigError(
            f"{path} has {size:,} bytes, more than the {JSON_BYTES:,} that are read of a JSON file"
        )
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refuse)
        # What UTF-8 cannot say, half a surrogate pair, could be written to no other file.
        json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ConfigError(f"{path} is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, not a JSON object")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"it has {constant}, which is no number of JSON")
