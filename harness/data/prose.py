"""Prose of installed packages: docstrings, manual pages and licences, every line once."""

import functools
import hashlib
import importlib.metadata
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.data.python_sources import STDLIB, package_folder, python_files

# Strings one after the other, so that the end of one is not taken for the beginning of the next.
TRIPLE_QUOTED = re.compile(r"(\"\"\"|''')(.*?)(?<!\\)\1", re.DOTALL)
STATEMENT = re.compile(r"\s*[rRuU]?")  # what may stand before a docstring on its line
MANUALS = (".rst", ".md")
LICENCES = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
EXAMPLE = (">>>", "...")  # code in a docstring
REPEATED_CHARACTERS = 20  # a longer line counts once in all documents; shorter ones are headings
LETTERS = 0.7  # least share of letters and spaces of a line of prose
LEAST_CHARACTERS = 200  # of a document


def prose_documents(packages: list[str], left_out: Counter[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (package, relative POSIX path, text) of all prose of `packages`, in sorted order.

    Parameters
    ----------
    left_out : counts lines and documents left out, by reason.

    Raises
    ------
    DataError : a package is not installed.
    """
    seen: set[int] = set()
    for package in sorted(set(packages)):
        for name, text in _texts(package, left_out):
            kept = [line for line in text.splitlines() if _is_prose(line, seen, left_out)]
            document = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
            if len(document) >= LEAST_CHARACTERS:
                yield package, name, document + "\n"
            else:
                left_out["short"] += 1


def docstrings(source: str) -> Iterator[str]:
    """Yield the strings of Python source that are statements, without their indentation."""
    for match in TRIPLE_QUOTED.finditer(source):
        before = source[source.rfind("\n", 0, match.start()) + 1 : match.start()]
        if STATEMENT.fullmatch(before):
            yield inspect.cleandoc(match[2])


def _texts(package: str, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    for name, path in python_files(package, left_out):
        yield name, "\n\n".join(docstrings(_read(path)))
    for name, path in _pages(package):
        yield name, _read(path)


def _pages(package: str) -> list[tuple[str, Path]]:
    """Return (relative path, file) of the manual pages in a package and of its licences."""
    folder = package_folder(package)
    pages = []
    if folder is not None and package != STDLIB:
        pages = [
            (path.relative_to(folder).as_posix(), path)
            for path in folder.rglob("*")
            if path.suffix in MANUALS and path.is_file()
        ]
    for distribution in sorted(set(_distributions().get(package, []))):
        pages += [
            (file.as_posix(), Path(str(file.locate())))
            for file in importlib.metadata.files(distribution) or []
            if LICENCES.match(file.name) and file.suffix in ("", ".txt", *MANUALS)
        ]
    return sorted((name, path) for name, path in pages if path.is_file())


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")


def _is_prose(line: str, seen: set[int], left_out: Counter[str]) -> bool:
    text = line.strip()
    if not text:
        return True
    if text.startswith(EXAMPLE) or sum(map(str.isalpha, text)) + text.count(" ") < LETTERS * len(text):
        left_out["line of code"] += 1
        return False
    if len(text) > REPEATED_CHARACTERS:
        key = _hash_of(text)
        if key in seen:
            left_out["repeated line"] += 1
            return False
        seen.add(key)
    return True


def _hash_of(text: str) -> int:
    """Return 64 bits that stand for a line of text in any process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
