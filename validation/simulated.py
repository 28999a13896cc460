"""What the validations by simulated studies have in common: chunks that are kept, and the summary's file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 10  # studies that are kept in one file
Record = dict[str, Any]
Simulation = Callable[[range], list[Record]]


def chunks(studies: int) -> list[range]:
    """Return the numbers of the studies in chunks."""
    return [range(first, min(first + CHUNK, studies)) for first in range(0, studies, CHUNK)]


def places(studies: int, folder: Path) -> dict[range, Path]:
    """Return the file of every chunk."""
    return {chunk: folder / f"{chunk.start:05}-{chunk.stop:05}.json" for chunk in chunks(studies)}


def keep(simulate: Simulation, numbers: range, path: Path) -> None:
    """Simulate and write one chunk, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(simulate(numbers)))
    partial.replace(path)


def run(simulate: Simulation, studies: int, processes: int, folder: Path) -> list[Record]:
    """Simulate the chunks that `folder` lacks and return all records."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = places(studies, folder)
    missing = [chunk for chunk, path in paths.items() if not path.exists()]
    start = time.monotonic()
    pool = ProcessPoolExecutor(processes)
    try:
        waiting = [pool.submit(keep, simulate, chunk, paths[chunk]) for chunk in missing]
        for done, job in enumerate(as_completed(waiting), start=1):
            job.result()
            left = (time.monotonic() - start) / done * (len(missing) - done)
            print(f"{done} of {len(missing)} chunks, about {left / 60:.0f} min left", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)
    return records(studies, folder)


def records(studies: int, folder: Path) -> list[Record]:
    """Return the records of the finished chunks of so many studies."""
    paths = (path for path in places(studies, folder).values() if path.exists())
    return [record for path in paths for record in json.loads(path.read_text())]


def given(arguments: list[str]) -> dict[str, Any]:
    """Return what the command line says: studies=, processes=, folder= and out=."""
    settings = dict(text.split("=", 1) for text in arguments)
    return {name: int(v) if name in ("studies", "processes") else v for name, v in settings.items()}


def write(path: Path, result: Record) -> None:
    """Write the summary of a study."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
