"""The ledger of a sweep: which runs it holds, and where their data lies. Runs are only ever added."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harness.run.folder import RunFolder
from harness.storage.files import read_json
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
        """Return the folders of the runs, without the segments of trunks."""
        return [RunFolder(folder / run_id) for run_id in self.run_ids]

    def nodes(self, folder: Path) -> list[RunFolder]:
        """Return the folders of everything that is trained: the segments of trunks, then the runs.

        A segment whose folder was deleted, to free its disk, is left out; launch makes it anew if needed.
        """
        segments = [folder / name for name in in_order(self.segments) if (folder / name).exists()]
        return [*(RunFolder(path) for path in segments), *self.runs(folder)]

    def parent_of(self, name: str) -> str:
        """Return the segment that a run or segment starts from, "" if it starts by itself."""
        return self.segments[name].parent if name in self.segments else self.parents.get(name, "")

    def lineage(self, name: str) -> list[str]:
        """Return the segments that a run or segment rests on, the nearest first."""
        segments = []
        while name := self.parent_of(name):
            segments.append(name)
        return segments


def read_ledger(folder: Path) -> Ledger:
    """Return the ledger of the sweep in `folder`; raises ConfigError if none was launched."""
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
