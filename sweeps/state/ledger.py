"""The ledger of a sweep: which runs and segments it holds, what of them is open, and what waits for what."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.run.folder import RunFolder, Status
from harness.storage.files import read_json
from model.config_validation import ConfigError, build
from sweeps.config.cluster import ClusterConfig, RetryConfig
from sweeps.config.folders import find
from sweeps.config.next_command import command_line
from sweeps.config.numerics import Device
from sweeps.config.study import StudyConfig
from sweeps.grid.cells import Cell
from sweeps.grid.trunks import Segment, Trunks, grow, in_order

LOCK = ".ledger.lock"  # in the folder of every launched sweep
Unfinished = list[tuple[RunFolder, Status]]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What `<root>/<sweep>/sweep.json` holds; paths are relative to the sweep's folder.

    Runs are only ever added.
    """

    name: str
    run_ids: list[str]
    cache: str
    cluster: ClusterConfig
    retry: RetryConfig
    scales: dict[str, str]  # by run id
    nonce: str = ""  # drawn once: another sweep of this name, before or elsewhere, has other job names
    segments: dict[str, Segment] = field(default_factory=dict)  # of trunks, by folder
    parents: dict[str, str] = field(default_factory=dict)  # by run id: the segment that it starts from
    profile: list[str] | None = (
        None  # the overrides that chose `cluster`; None: an earlier version wrote this
    )
    overrides: list[str] = field(default_factory=list)  # of the last launch
    devices: dict[str, Device] = field(default_factory=dict)  # by scale: what `auto` settings stand for
    earlier: dict[str, ClusterConfig] = field(default_factory=dict)  # by kind: where it was launched before

    @property
    def clusters(self) -> list[ClusterConfig]:
        """Return the clusters that may have jobs of the sweep, one of each kind, the newest first."""
        return [self.cluster, *(self.earlier[kind] for kind in self.earlier if kind != self.cluster.kind)]

    @property
    def pinned_devices(self) -> dict[str, Device]:
        """Return by scale what `auto` settings stand for, wherever the sweep goes on: else run ids change."""
        earlier: dict[str, Device] = dict.fromkeys(self.scales.values(), "cpu")  # named by no ledger then
        return earlier | self.devices

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

    def __post_init__(self) -> None:
        """Refuse segments that start from each other, along which `lineage` would have no end."""
        rooted = {""}
        for name in self.segments:
            walked: dict[str, None] = {}
            while name not in rooted:
                if name in walked:
                    raise ValueError(f"segments start from each other in a circle: {', '.join(walked)}")
                walked[name] = None
                name = self.parent_of(name)
            rooted.update(walked)

    def lineage(self, name: str) -> list[str]:
        """Return the segments that a run or segment rests on, the nearest first."""
        segments = []
        while name := self.parent_of(name):
            segments.append(name)
        return segments


UNREADABLE = "unreadable"  # failure class of a run whose files are damaged


def read_ledger(folder: Path) -> Ledger:
    """Return the ledger of the sweep in `folder`; raises ConfigError if none was launched."""
    path = folder / "sweep.json"
    if not path.exists():
        if (folder / LOCK).exists():
            raise ConfigError(
                f"{path} is lost: loopscale launch sweep={folder.name}, with the settings of before, writes "
                "it anew and trains nothing twice"
            )
        if any(folder.glob("*/record.json")):
            raise ConfigError(
                f"{folder} holds runs but no launched sweep: tabulate them with "
                f"loopscale collect sweep={folder.name}"
            )
        raise ConfigError(no_sweep(folder))
    return build(Ledger, read_json(path), f"{path}: ")


def no_sweep(folder: Path) -> str:
    """Return that no sweep was launched in `folder`, what was beside it, and what to do."""
    return f"no sweep {folder.name!r} under {folder.parent} {in_its_place(folder)}"


def in_its_place(folder: Path) -> str:
    """Return what was launched beside the folder of a sweep that is not there, and what to do."""
    others = sorted(path.parent.name for path in folder.parent.glob("*/sweep.json"))
    there = f"launched there: {', '.join(others)}" if others else "nothing was launched there yet"
    if find("sweep", folder.name) is not None:
        root = [] if str(folder.parent) == "runs" else [f"root={folder.parent}"]
        advice = command_line("launch", [f"sweep={folder.name}", *root])
    elif near := difflib.get_close_matches(folder.name, others, n=1):
        advice = f"did you mean sweep={near[0]}?"
    else:
        advice = "write one of these" if others else "loopscale new --help says how to begin one"
    return f"({there}): {advice}"


def trunks_of(study: StudyConfig, before: Ledger | None, cells: Sequence[Cell]) -> Trunks:
    """Return the trunks of a sweep grown by the study's cells; the runs of `before` stay as they are.

    Raises ConfigError as `grow`.
    """
    if before is None:
        return grow(cells, study.sweep.trunk)
    trunks = grow(cells, study.sweep.trunk, before=before.segments, settled=set(before.run_ids))
    trunks.parents.update(before.parents)
    return trunks


def state_of(run: RunFolder) -> Status:
    """Return a run's status; a damaged file is a failure of this run alone, which is not retried."""
    try:
        status = run.status()
        if status.state != "done" and run.exists():
            run.record()  # its next attempt needs it
        return status
    except ConfigError as error:
        if not run.exists():  # what is damaged is a file of the whole sweep
            raise
        return Status(state="planned").failed(UNREADABLE, str(error))


def is_open(status: Status, retry: RetryConfig) -> bool:
    """Return True if a run that no process trains is to start: unfinished, or failed within its limit."""
    if status.state == "failed":
        return status.failures.get(status.failure_class, 0) <= retry.rule(status.failure_class).retries
    return status.state != "done"


def has_begun(run: RunFolder) -> bool:
    """Return True if a run has a checkpoint of its own, and so no longer needs its trunk."""
    return any(run.checkpoints.glob("step_*"))


def segments_below(
    runs: Iterable[str],
    parent_of: Callable[[str], str],
    *,
    is_done: Callable[[str], bool],
    needs_parent: Callable[[str], bool],
) -> set[str]:
    """Return the segments, not done, that must be trained before all of `runs` can start.

    `needs_parent` returns True for a run or segment, not done, that waits for what it starts from.
    """
    segments: set[str] = set()
    for run in runs:
        name = run
        while not is_done(name) and needs_parent(name):
            parent = parent_of(name)
            if not parent or parent in segments or is_done(parent):
                break
            segments.add(parent)
            name = parent
    return segments


def required_segments(
    ledger: Ledger, folder: Path, states: Mapping[str, Status], *, failed_too: bool = False
) -> set[str]:
    """Return the segments, not done, from which something open starts that has not begun.

    `states` holds the statuses by name; what is missing there is planned. With `failed_too`, what has failed
    for good counts as open: it may be opened again.
    """
    planned = Status(state="planned")

    def needs_parent(name: str) -> bool:
        status = states.get(name, planned)
        begun = status.attempts and has_begun(RunFolder(folder / name))
        return not begun and (failed_too or is_open(status, ledger.retry))

    return segments_below(
        ledger.run_ids,
        ledger.parent_of,
        is_done=lambda name: states.get(name, planned).state == "done",
        needs_parent=needs_parent,
    )


def unfinished_runs(ledger: Ledger, folder: Path, *, registered: bool = True) -> Unfinished:
    """Return what is not done and still needed, with its status: segments first, then runs.

    A segment is needed while something open that has not begun starts from it. One whose folder was deleted
    is left out; `registered=False` keeps it, for a ledger that is not written yet.
    """
    names = [*in_order(ledger.segments), *ledger.run_ids]
    states = {name: state_of(RunFolder(folder / name)) for name in names}
    segments = required_segments(ledger, folder, states)
    return [
        (RunFolder(folder / name), states[name])
        for name in names
        if (name in segments and (not registered or (folder / name).exists()))
        or (name not in ledger.segments and states[name].state != "done")
    ]


def waits_for(ledger: Ledger, run: RunFolder) -> str:
    """Return the segment that must be done before this run or segment can start, "" if it can."""
    parent = ledger.parent_of(run.run_id)
    if not parent or RunFolder(run.path.with_name(parent)).status().state == "done" or has_begun(run):
        return ""
    return parent


def held_back_by(ledger: Ledger, run: RunFolder) -> str:
    """Return the segment whose failure for good keeps this run from starting, "" for none."""
    name = waits_for(ledger, run)
    while name:
        segment = RunFolder(run.path.with_name(name))
        if not is_open(segment.status(), ledger.retry):
            return name
        name = waits_for(ledger, segment)
    return ""
