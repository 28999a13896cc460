"""Nodes that end jobs before they begin: counted for the sweep, and avoided from some number on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from harness.storage.files import read_json, write_json
from sweeps.backends.base import Backend
from sweeps.backends.job_array import JobArray

FILE = "nodes.json"  # in the sweep's folder: by node, how many jobs ended there before they began


def count_ends(folder: Path, nodes: Iterable[str]) -> None:
    """Count a job that ended before it began for each of `nodes`."""
    ends = Counter(node for node in nodes if node)
    if ends:
        write_json(folder / FILE, dict(_ends(folder) + ends))


def bad_nodes(folder: Path, after: int) -> dict[str, int]:
    """Return the nodes that have ended at least `after` jobs before they began, with the numbers."""
    return {node: ends for node, ends in sorted(_ends(folder).items()) if ends >= after}


def forget(folder: Path) -> None:
    """Forget all nodes that were left out, so that they are used again."""
    (folder / FILE).unlink(missing_ok=True)


def avoid(backend: Backend, arrays: list[JobArray], bad: dict[str, int]) -> tuple[list[JobArray], list[str]]:
    """Return the arrays with the nodes that each can do without left out, and remarks that name them.

    Parameters
    ----------
    arrays : with the nodes to leave out if possible.
    bad : of them, those that end jobs before they begin, with how many.
    """
    made, needed = [], set()
    for array in arrays:
        avoided = backend.nodes_to_avoid(array.resources, set(array.exclude))
        needed |= set(array.exclude) - avoided
        made.append(replace(array, exclude=sorted(avoided)))
    notes = [
        f"{node} has ended {ends} jobs before they began: it is left out until loopscale retry"
        for node, ends in bad.items()
        if node not in needed
    ]
    if needed:
        notes.append(f"{', '.join(sorted(needed))}: not left out, too few other nodes take these jobs")
    return made, notes


def _ends(folder: Path) -> Counter[str]:
    path = folder / FILE
    return Counter(read_json(path) if path.exists() else {})
