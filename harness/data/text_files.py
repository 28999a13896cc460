"""Files of text under a folder: those that are read, in a fixed order, and those that are passed over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.data.dataset import DataError

KINDS = (".txt", ".jsonl", ".parquet")
COMPRESSED = (".gz", ".zst")  # of text and JSON lines; Parquet compresses by itself
READ = f"{', '.join(KINDS)}, or text and JSON lines as .gz or .zst"


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Paths of `files` that are read, and of what is `passed_over`, by reason; both relative to `root`."""

    root: Path
    files: tuple[Path, ...]
    passed_over: dict[str, list[str]]

    def counts(self) -> dict[str, int]:
        """Return how many were passed over by reason, with the first of them as an example."""
        return {f"{why}, such as {names[0]}": len(names) for why, names in self.passed_over.items()}

    def plain_bytes(self) -> int | None:
        """Return the bytes of all files; None if one is compressed or in columns, whose size says little."""
        formats = [text_format(file.name) for file in self.files]
        if any(each is None or each[0] == ".parquet" or each[1] for each in formats):
            return None
        return sum(file.stat().st_size for file in self.files)


def find_text_files(path: Path) -> TextFiles:
    """Return the files of text at `path`, a file or a folder, sorted by relative path.

    Links are followed. What is reached twice is read once, under its own name before that of a link.

    Raises
    ------
    DataError : `path` does not exist, a folder cannot be listed, or there is nothing to read.
    """
    if path.is_file():
        if text_format(path.name) is None:
            raise DataError(f"cannot read {path}: data.path takes {READ}")
        return TextFiles(root=path.parent, files=(path,), passed_over={})
    if not path.is_dir():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise DataError(f"data.path {path} {what}: name a file or a folder of text")
    files: list[Path] = []
    passed_over: dict[str, list[str]] = {}
    for file, reason in _walk(path):
        if reason is None:
            files.append(file)
        else:
            passed_over.setdefault(reason, []).append(file.relative_to(path).as_posix())
    found = TextFiles(
        root=path,
        files=tuple(sorted(files, key=lambda file: file.relative_to(path).as_posix())),
        passed_over={reason: sorted(names) for reason, names in sorted(passed_over.items())},
    )
    if not files:
        seen = "; ".join(f"{count} of {reason}" for reason, count in found.counts().items())
        raise DataError(
            f"no documents in {path}{f' (it has {seen})' if seen else ''}: put files there that are {READ}"
        )
    return found


def text_format(name: str) -> tuple[str, str] | None:
    """Return the kind of a file and its compression, if any, by its name; None if it is not read.

    `.json.gz` and `.json.zst` are JSON lines, as most published data sets write them.
    """
    lower = name.lower()
    compression = next((suffix for suffix in COMPRESSED if lower.endswith(suffix)), "")
    stem = lower.removesuffix(compression)
    if compression and stem.endswith(".json"):
        return ".jsonl", compression
    kind = next((kind for kind in KINDS if stem.endswith(kind)), None)
    return None if kind is None or (compression and kind == ".parquet") else (kind, compression)


def _walk(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield what lies under `root`, with the reason why it is passed over; links come after all else."""
    seen: set[tuple[int, int]] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        path = folders.pop() if folders else links.pop(0)
        stat = path.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            yield path, "the same under another name"
            continue
        seen.add((stat.st_dev, stat.st_ino))
        if path.is_file():
            yield path, None
            continue
        for entry in _entries(path):
            reason = _passed_over(entry)
            if reason is not None:
                yield entry, reason
            elif entry.is_symlink():
                links.append(entry)
            else:
                folders.append(entry)
        links.sort()


def _entries(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read ({error.strerror}): make it readable or move it out of data.path"
        ) from None


def _passed_over(path: Path) -> str | None:
    """Return the reason why a file or folder is not read; None if it is."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_dir():
        return None
    if not path.exists():
        return "links to nothing"
    if not path.is_file():
        return "no regular files"
    if text_format(path.name) is not None:
        return None
    return f"{''.join(path.suffixes[-2:]) or 'no suffix'} files"
