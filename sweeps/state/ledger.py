"""The ledger of a sweep: which runs it holds and where their data lies; grows, never forgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harness.run.folder import RunFolder
from harness.storage.files import read_json
from harness.storage.locks import is_held
from model.config_validation import ConfigError, build
from sweeps.config.cluster import ClusterConfig, RetryConfig
from sweeps.grid.trunks import Segment, in_order


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What `<root>/<sweep>/sweep.json` holds; paths are relative to the sweep's folder."""

    name: str
    run_ids: list[str]
    cache: str
    cluster: ClusterConfig
    retry: RetryConfig
    scales: dict[str, str]  # by run id
    nonce: str = ""  # drawn once: another sweep of this name, before or elsewhere, has other job names
    segments: dict[str, Segment] = field(default_factory=dict)  # of trunks, by folder
    parents: dict[str, str] = field(default_factory=dict)  # by run id: the segment that it starts from

    def runs(self, folder: Path) -> list[RunFolder]:
        return [RunFolder(folder / run_id) for run_id in self.run_ids]

    def nodes(self, folder: Path) -> list[RunFolder]:
        """Return all that is trained: the segments of trunks, which others wait for, then the runs.

        A segment whose folder was deleted, to free its disk, is not there; launch makes it anew if needed.
        """
        segments = [folder / name for name in in_order(self.segments) if (folder / name).exists()]
        return [*(RunFolder(path) for path in segments), *self.runs(folder)]

    def parent_of(self, name: str) -> str:
        """Return the segment that a run or segment starts from, "" where it starts by itself."""
        return self.segments[name].parent if name in self.segments else self.parents.get(name, "")

    def lineage(self, name: str) -> list[str]:
        """Return the segments that a run or segment rests on, the nearest first."""
        found = []
        while name := self.parent_of(name):
            found.append(name)
        return found


def read_ledger(folder: Path) -> Ledger:
    """Return the ledger of the sweep in `folder`; raises ConfigError where none was launched."""
    path = folder / "sweep.json"
    if not path.exists():
        if any(folder.glob("*/record.json")):
            raise ConfigError(
                f"{folder} holds runs but no launched sweep: tabulate them with "
                f"loopscale collect sweep={folder.name}"
            )
        others = sorted(p.parent.name for p in folder.parent.glob("*/sweep.json"))
        hint = f"launched there: {', '.join(others)}" if others else "nothing was launched there yet"
        raise ConfigError(
            f"no sweep {folder.name!r} under {folder.parent} ({hint}): loopscale launch sweep=NAME"
        )
    return build(Ledger, read_json(path), f"{path}: ")


def slot(folder: Path, number: int) -> Path:
    """Return the lock file that the local pool's worker of this number holds while it works."""
    return folder / f".worker_{number}.lock"


def worker_pids(folder: Path) -> list[int]:
    """Return the processes of the local pool that are at the sweep in `folder` now."""
    return [int(path.read_text()) for path in folder.glob(".worker_*.pid") if is_held(_lock_of(path))]


def _lock_of(pid: Path) -> Path:
    return pid.with_suffix(".lock")


def is_worked_on(folder: Path) -> bool:
    """Say whether a worker of the local pool is at the sweep in `folder` now."""
    return any(is_held(path) for path in folder.glob(".worker_*.lock"))
