"""Seeded ways to damage files of every format that loopscale reads."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

HOSTILE: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**30,
        0.5,
        -0.0,
        1e-320,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *("", " ", "0", "nan", "null", "x" * 5000, "\x00", "\n", "é日\U0001f600", "\ud800", "../../outside"),
    *("/etc/passwd", "-rf", "$(touch executed)", "`touch executed`", "; touch executed;", "[/bold]", "[red"),
    *("%s%n", "${oc.env:HOME}", "!!python/object/apply:os.system ['touch executed']", "${now:%Y}", "{}"),
    *([], {}, [[]], {"a": {"b": []}}, [None], list(range(300))),
    {"_target_": "os.system", "command": "touch executed"},
]
TEXT = [value for value in HOSTILE if isinstance(value, str | int | float | None)]


def damage(path: Path, draw: random.Random) -> None:
    """Damage a file by a random way that suits its format, or that suits any file."""
    ways = [*_RAW]
    if path.is_file():
        suffix = next((suffix for suffix in _BY_SUFFIX if path.name.endswith(suffix)), None)
        if suffix is not None:
            ways = [*ways, *(3 * _BY_SUFFIX[suffix])]
    draw.choice(ways)(path, draw)


def _truncate(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content) + 1)])


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    for _ in range(draw.choice([1, 3, 30])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content)


def _insert(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    at = draw.randrange(len(content) + 1)
    piece = draw.choice(
        [bytes(20), b"\xff\xfe", draw.randbytes(50), b"[" * 50_000, b'"', b"\r\n", b"{" * 50_000]
    )
    path.write_bytes(content[:at] + piece + content[at:])


def _repeat(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() * 2)


def _empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def _noise(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(draw.choice([1, 40, 5000])))


def _folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to(draw.choice(["nowhere", path.name, "/dev/zero", "/dev/null", ".."]))


def _gone(path: Path, draw: random.Random) -> None:
    path.unlink()


def _closed(path: Path, draw: random.Random) -> None:
    path.chmod(0)


def _other(path: Path, draw: random.Random) -> None:
    others = sorted(file for file in path.parent.iterdir() if file.is_file() and file != path)
    if others:
        shutil.copyfile(draw.choice(others), path)


_RAW: list[Callable[[Path, random.Random], None]] = [
    _truncate, _flip, _insert, _repeat, _empty, _noise, _folder, _pipe, _link, _gone, _closed, _other,
]  # fmt: skip


def changed(content: Any, draw: random.Random) -> Any:
    """Return JSON data with one part replaced, dropped or renamed."""
    if isinstance(content, dict) and content and draw.random() < 0.9:
        key = draw.choice(sorted(content))
        match draw.randrange(8):
            case 0:
                return {name: value for name, value in content.items() if name != key}
            case 1:
                return {f"{name}_" if name == key else name: value for name, value in content.items()}
            case _:
                return content | {key: changed(content[key], draw)}
    if isinstance(content, list) and content and draw.random() < 0.9:
        at = draw.randrange(len(content))
        return [*content[:at], changed(content[at], draw), *content[at + 1 :]]
    return draw.choice(HOSTILE)


def _json(path: Path, draw: random.Random) -> None:
    path.write_text(json.dumps(changed(json.loads(path.read_text()), draw)))


def _yaml(path: Path, draw: random.Random) -> None:
    path.write_text(json.dumps(changed(yaml.safe_load(path.read_text()), draw)))


def _lines(path: Path, draw: random.Random) -> None:
    lines = path.read_text().splitlines()
    if not lines:
        return
    at = draw.randrange(len(lines))
    lines[at] = draw.choice(
        [lambda: json.dumps(changed(json.loads(lines[at]), draw)), lambda: lines[at][:-3]]
    )()
    path.write_text("\n".join(lines) + "\n")


def _frame(frame: pd.DataFrame, draw: random.Random) -> pd.DataFrame:
    column, row = draw.choice(list(frame.columns)), draw.randrange(len(frame))
    match draw.randrange(8):
        case 0:
            return frame.drop(columns=column)
        case 1:
            return frame.rename(
                columns={column: draw.choice(["", "x", "loss", "[red]", str(frame.columns[0])])}
            )
        case 2:
            return frame.iloc[: draw.choice([0, 1, 2, 5])]
        case 3:
            return pd.concat([frame, frame])
        case 4:
            return frame.assign(**{column: draw.choice(TEXT)})
        case _:
            mended = frame.astype({column: object})
            mended.iloc[row, list(frame.columns).index(column)] = draw.choice(TEXT)
            return mended


def _csv(path: Path, draw: random.Random) -> None:
    text = _frame(pd.read_csv(path), draw).to_csv(index=False)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def _parquet(path: Path, draw: random.Random) -> None:
    made = io.BytesIO()
    try:
        _frame(pd.read_parquet(path), draw).to_parquet(made)
    except (ValueError, OverflowError):  # a column of several types, which Parquet does not have
        _flip(path, draw)
        return
    except Exception as error:
        assert type(error).__module__.startswith("pyarrow"), error
        _flip(path, draw)
        return
    path.write_bytes(made.getvalue())


def _safetensors(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    if draw.random() < 0.5:
        header = json.dumps(changed(json.loads(content[8 : 8 + length]), draw)).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
        return
    values = np.frombuffer(content[8 + length :], "<f4").copy()
    values[draw.randrange(len(values))] = draw.choice([np.nan, np.inf, -np.inf, 3e38])
    path.write_bytes(content[: 8 + length] + values.tobytes())


_BY_SUFFIX: dict[str, list[Callable[[Path, random.Random], None]]] = {
    ".jsonl": [_lines],
    ".json": [_json],
    ".yaml": [_yaml],
    ".csv": [_csv],
    ".parquet": [_parquet],
    ".safetensors": [_safetensors],
}
