"""What shared trunks save and cost, before anything runs: FLOPs, time to solution, checkpoints, disk."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.format import plural
from harness.run.config import RunConfig
from harness.run.folder import RunFolder
from harness.run.length import stable_steps
from model.flops import parameter_counts
from sweeps.config.cluster import ClusterConfig
from sweeps.config.study import StudyConfig
from sweeps.grid.cells import Cell
from sweeps.grid.trunks import Trunks, cell_name, in_order
from sweeps.state.ledger import has_begun, segments_below

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrunkSavings:
    """What the trunks of a plan save and cost beside independent runs; FLOPs are nominal."""

    trunks: int
    segments: int
    runs: int  # that start from a trunk
    nominal_flops: float
    independent_flops: float
    hours: float  # device-hours, NaN where no speed is known
    remaining_flops: float
    remaining_hours: float
    workers: int
    time_h: float | None  # to solution; None where no speed is known
    independent_time_h: float | None
    time_ratio: float  # known without a speed
    jobs_in_a_row: int
    annealing_fraction: float  # the cool-downs' part of all steps trained
    trunk_checkpoints: int  # that are kept
    trunk_bytes: int
    run_bytes: int

    def summary(self) -> str:
        """Return the savings, the time to solution and the disk space, a line each."""
        saved = 1 - self.nominal_flops / self.independent_flops
        workers = plural(self.workers, "worker")
        row = f"up to {plural(self.jobs_in_a_row, 'job')} in a row"
        if self.time_h is None:
            time = f"time to solution with {workers}: {self.time_ratio:.2f} of independent runs' ({row})"
        else:
            time = (
                f"time to solution with {workers}: {self.time_h:.3g} h through trunks ({row}), "
                f"{self.independent_time_h:.3g} h independent"
            )
        return "\n".join(
            [
                f"shared trunks: {plural(self.runs, 'run')} on {plural(self.trunks, 'trunk')} "
                f"in {plural(self.segments, 'segment')}, {self.nominal_flops:.4g} FLOPs, "
                f"not {self.independent_flops:.4g}: "
                f"{100 * saved:.0f} % saved",
                f"{time}; {100 * self.annealing_fraction:.0f} % of the steps trained are cool-down",
                f"disk: {self.trunk_checkpoints} trunk checkpoints stay, {_bytes(self.trunk_bytes)}; "
                f"those of the runs take at most {_bytes(self.run_bytes)}",
            ]
        )


@dataclass(kw_only=True)
class Work:
    """One way to train the cells: the jobs in the order of preference, with the cost of each."""

    flops: dict[str, float] = field(default_factory=dict)
    device_hours: dict[str, float] = field(default_factory=dict)
    wall_hours: dict[str, float] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, row: Row, share: float, *, parent: str = "") -> None:
        """Add a job that trains `share` of the steps of the run in `row`."""
        self.flops[name] = share * row["nominal_flops"]
        self.device_hours[name] = share * row["hours"]
        self.wall_hours[name] = share * row["hours"] / row["devices"]
        self.parents[name] = parent
        self.scales[name] = row["scale"]

    def time(self, cluster: ClusterConfig) -> float:
        """Return the time to solution in hours, in FLOPs of one worker where no speed is known."""
        known = not any(math.isnan(hours) for hours in self.wall_hours.values())
        start = cluster.start_s / 3600 if known else 0.0
        lengths = self.wall_hours if known else self.flops
        times = []
        for scales, workers in worker_pools(cluster, self.scales.values()):
            own = {name: start + length for name, length in lengths.items() if self.scales[name] in scales}
            times.append(time_to_solution(own, self.parents, workers))
        return max(times)


def trunk_savings(
    study: StudyConfig, cells: Sequence[Cell], rows: Sequence[Row], trunks: Trunks, folder: Path
) -> TrunkSavings | None:
    """Return what the trunks save and cost beside independent runs; None where nothing is shared.

    `rows` are those of the plan, one per cell; `folder` is the sweep's.
    """
    kept = [
        (cell_name(cell, number), cell.run, row)
        for number, (cell, row) in enumerate(zip(cells, rows, strict=True))
        if cell.verdict == "OK"
    ]
    kept.sort(key=lambda entry: -entry[2]["nominal_flops"])
    needed = {segment: row for name, _, row in kept for segment in trunks.lineage(name)}
    if not needed:
        return None
    alone, shared = _works(kept, needed, trunks)
    steps = [segment.end - segment.start for name, segment in trunks.segments.items() if name in needed]
    steps += [row["steps"] - trunks.first_step(name, run) for name, run, row in kept]
    cooldowns = [row["steps"] - stable_steps(run.schedule, row["steps"]) for _, run, row in kept]
    time_alone, time = alone.time(study.cluster), shared.time(study.cluster)
    in_hours = not any(math.isnan(row["hours"]) for _, _, row in kept)
    remaining = _unfinished(kept, trunks, folder)
    return TrunkSavings(
        trunks=len({trunks.segments[name].trunk_id for name in needed}),
        segments=len(needed),
        runs=sum(name in trunks.parents for name, _, _ in kept),
        nominal_flops=sum(shared.flops.values()),
        independent_flops=sum(alone.flops.values()),
        hours=sum(shared.device_hours.values()),
        remaining_flops=sum(shared.flops[name] for name in remaining),
        remaining_hours=sum(shared.device_hours[name] for name in remaining),
        workers=sum(workers for _, workers in worker_pools(study.cluster, shared.scales.values())),
        time_h=time if in_hours else None,
        independent_time_h=time_alone if in_hours else None,
        time_ratio=time / time_alone,
        jobs_in_a_row=1 + max(len(list(trunks.lineage(name))) for name, _, _ in kept),
        annealing_fraction=sum(cooldowns) / sum(steps),
        **_disk(kept, needed, trunks),
    )


def _unfinished(kept: list[tuple[str, RunConfig, Row]], trunks: Trunks, folder: Path) -> list[str]:
    """Return the runs that are not done, and the segments that still have to be trained for them."""
    launched = folder.exists()
    done = {name for name, _, row in kept if row["status"] == "done"}

    def is_done(name: str) -> bool:
        if name in trunks.segments:
            return launched and RunFolder(folder / name).status().state == "done"
        return name in done

    runs = [name for name, _, _ in kept if name not in done]
    segments = segments_below(
        runs,
        trunks.parent_of,
        is_done=is_done,
        needs_parent=lambda name: not (launched and has_begun(RunFolder(folder / name))),
    )
    return [*segments, *runs]


def _works(
    kept: list[tuple[str, RunConfig, Row]], needed: dict[str, Row], trunks: Trunks
) -> tuple[Work, Work]:
    """Return both ways to train the cells, independently and through trunks."""
    alone, shared = Work(), Work()
    for name in (name for name in in_order(trunks.segments) if name in needed):
        segment, row = trunks.segments[name], needed[name]
        share = (segment.end - segment.start) / row["steps"]
        shared.add(name, row, share, parent=segment.parent)
    for name, run, row in kept:
        alone.add(name, row, 1.0)
        share = 1 - trunks.first_step(name, run) / row["steps"]
        shared.add(name, row, share, parent=trunks.parents.get(name, ""))
    return alone, shared


def _disk(kept: list[tuple[str, RunConfig, Row]], needed: dict[str, Row], trunks: Trunks) -> dict[str, int]:
    """Return how many checkpoints of trunks are kept, and the bytes of those and of the runs' own."""
    sizes = {run.scale: checkpoint_bytes(run) for _, run, _ in kept}
    counts = {name: 1 + len(trunks.segments[name].kept) for name in needed}
    return {
        "trunk_checkpoints": sum(counts.values()),
        "trunk_bytes": sum(counts[name] * sizes[row["scale"]] for name, row in needed.items()),
        "run_bytes": sum(run.training.keep_checkpoints * sizes[run.scale] for _, run, _ in kept),
    }


def worker_pools(cluster: ClusterConfig, scales: Iterable[str]) -> list[tuple[set[str], int]]:
    """Return groups of scales that share workers, each with how many of its runs are trained at once."""
    from sweeps.backends.registry import open_backend

    return open_backend(cluster).concurrency(scales)


def time_to_solution(lengths: Mapping[str, float], parents: Mapping[str, str], workers: int) -> float:
    """Return when the last job ends if every free worker takes the first job in order that can start.

    Parameters
    ----------
    lengths : of the jobs in any unit of time, in the order of preference.
    parents : the job that each job waits for; one without a length is done already.
    workers : jobs that run at once.
    """
    children: dict[str, list[str]] = {}
    rank = {name: number for number, name in enumerate(lengths)}
    ready: list[int] = []
    for name, number in rank.items():
        if parents.get(name, "") in lengths:
            children.setdefault(parents[name], []).append(name)
        else:
            heapq.heappush(ready, number)
    names = list(lengths)
    busy: list[tuple[float, int]] = []
    now = 0.0
    while ready or busy:
        while ready and len(busy) < workers:
            number = heapq.heappop(ready)
            heapq.heappush(busy, (now + lengths[names[number]], number))
        now, number = heapq.heappop(busy)
        for child in children.get(names[number], ()):
            heapq.heappush(ready, rank[child])
    return now


def checkpoint_bytes(run: RunConfig) -> int:
    """Estimate one checkpoint: float32 weights, one moment of what Muon trains and two of the rest."""
    counts = parameter_counts(run.model)
    tables = counts.embedding + counts.value_embedding
    moments = 2 * counts.total if run.optimizer.name == "adamw" else counts.total + tables
    return 4 * (counts.total + moments)


def _bytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
