"""What shared trunks save and cost, before anything runs: FLOPs, time to solution, checkpoints, disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.run.config import RunConfig
from harness.run.folder import RunFolder
from harness.run.trunk import stable_steps
from model.flops import parameter_counts
from sweeps.config.cluster import ClusterConfig, default_parallel_runs
from sweeps.config.study import StudyConfig
from sweeps.grid.cells import Cell
from sweeps.grid.trunks import Trunks, cell_name, in_order, shareable, trajectories, why_nothing_is_shared
from sweeps.planning.makespan import makespan
from sweeps.state.dependencies import has_begun, segments_below

Row = dict[str, Any]


@dataclass(kw_only=True)
class Work:
    """One way to train the cells: the jobs in the order of preference, with what each costs."""

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

    def end(self, cluster: ClusterConfig) -> float:
        """Return the time to solution in hours, in FLOPs of one worker where no speed is known."""
        known = not any(math.isnan(hours) for hours in self.wall_hours.values())
        start = cluster.start_s / 3600 if known else 0.0
        lengths = self.wall_hours if known else self.flops
        pools = pools_at_hand(cluster, self.scales.values())
        ends = []
        for scales, workers in pools:
            own = {name: start + length for name, length in lengths.items() if self.scales[name] in scales}
            ends.append(makespan(own, self.parents, workers))
        return max(ends)


def figures(
    study: StudyConfig, cells: Sequence[Cell], rows: Sequence[Row], trunks: Trunks, folder: Path
) -> dict[str, Any]:
    """Return what the trunks save and cost beside independent runs; {} where nothing is shared.

    FLOPs are nominal; `annealing_fraction` is the cool-downs' part of all steps trained. Times to solution
    are None where no speed is known; `time_ratio` is known always.
    """
    kept = [
        (cell_name(cell, number), cell.run, row)
        for number, (cell, row) in enumerate(zip(cells, rows, strict=True))
        if cell.verdict == "OK"
    ]
    kept.sort(key=lambda entry: -entry[2]["nominal_flops"])
    needed = {segment: row for name, _, row in kept for segment in trunks.lineage(name)}
    if not needed:
        return {}
    alone, shared = _works(kept, needed, trunks)
    steps = [segment.end - segment.start for name, segment in trunks.segments.items() if name in needed]
    steps += [row["steps"] - first_step(trunks, name, run) for name, run, row in kept]
    cooldowns = [row["steps"] - stable_steps(run.schedule, row["steps"]) for _, run, row in kept]
    time_alone, time = alone.end(study.cluster), shared.end(study.cluster)
    in_hours = not any(math.isnan(row["hours"]) for _, _, row in kept)
    left = _left(kept, trunks, folder)
    return {
        "trunks": len({trunks.segments[name].trunk_id for name in needed}),
        "segments": len(needed),
        "runs": sum(name in trunks.parents for name, _, _ in kept),
        "nominal_flops": sum(shared.flops.values()),
        "independent_flops": sum(alone.flops.values()),
        "hours": sum(shared.device_hours.values()),
        "remaining_flops": sum(shared.flops[name] for name in left),
        "remaining_hours": sum(shared.device_hours[name] for name in left),
        "workers": sum(workers for _, workers in pools_at_hand(study.cluster, shared.scales.values())),
        "time_h": time if in_hours else None,
        "independent_time_h": time_alone if in_hours else None,
        "time_ratio": time / time_alone,
        "jobs_in_a_row": 1 + max(len(list(trunks.lineage(name))) for name, _, _ in kept),
        "annealing_fraction": sum(cooldowns) / sum(steps),
        **_disk(kept, needed, trunks),
    }


def _left(kept: list[tuple[str, RunConfig, Row]], trunks: Trunks, folder: Path) -> list[str]:
    """Return the runs that are not done and the segments that those of them need which have not begun."""
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
        share = 1 - first_step(trunks, name, run) / row["steps"]
        shared.add(name, row, share, parent=trunks.parents.get(name, ""))
    return alone, shared


def _disk(kept: list[tuple[str, RunConfig, Row]], needed: dict[str, Row], trunks: Trunks) -> dict[str, int]:
    """Return how many checkpoints of trunks stay, and the bytes of those and of the runs' own."""
    sizes = {run.scale: checkpoint_bytes(run) for _, run, _ in kept}
    counts = {name: 1 + len(trunks.segments[name].kept) for name in needed}
    return {
        "trunk_checkpoints": sum(counts.values()),
        "trunk_bytes": sum(counts[name] * sizes[row["scale"]] for name, row in needed.items()),
        "run_bytes": sum(run.training.keep_checkpoints * sizes[run.scale] for _, run, _ in kept),
    }


def first_step(trunks: Trunks, name: str, run: RunConfig) -> int:
    """Return the step at which a run takes over from its trunk, 0 for one without."""
    parent = trunks.parents.get(name)
    assert run.steps is not None
    return trunks.segments[parent].start_for(stable_steps(run.schedule, run.steps)) if parent else 0


def in_words(found: dict[str, Any]) -> list[str]:
    """Return the figures of `figures` as lines for a person."""
    if not found:
        return []
    saved = 1 - found["nominal_flops"] / found["independent_flops"]
    workers = f"{found['workers']} worker{'s' if found['workers'] > 1 else ''}"
    row = f"up to {found['jobs_in_a_row']} jobs in a row"
    if found["time_h"] is None:
        time = f"time to solution with {workers}: {found['time_ratio']:.2f} of independent runs' ({row})"
    else:
        time = (
            f"time to solution with {workers}: {found['time_h']:.3g} h through trunks ({row}), "
            f"{found['independent_time_h']:.3g} h independent"
        )
    return [
        f"shared trunks: {found['runs']} runs on {found['trunks']} trunks in {found['segments']} segments, "
        f"{found['nominal_flops']:.4g} FLOPs, not {found['independent_flops']:.4g}: "
        f"{100 * saved:.0f} % saved",
        f"{time}; {100 * found['annealing_fraction']:.0f} % of the steps trained are cool-down",
        f"disk: {found['trunk_checkpoints']} trunk checkpoints stay, {_bytes(found['trunk_bytes'])}; "
        f"those of the runs take at most {_bytes(found['run_bytes'])}",
    ]


def why_not(study: StudyConfig, cells: Sequence[Cell], rows: Sequence[Row]) -> list[str]:
    """Say what keeps the study from sharing trunks and what they would save; [] where nothing does."""
    reason = why_nothing_is_shared(cells)
    if study.sweep.trunk is False or "weight_decay" not in reason:
        return []
    changed = shareable(cells)
    names = (cell_name(cell, number) for number, cell in enumerate(changed))
    costs = {name: row["nominal_flops"] for name, row in zip(names, rows, strict=True)}
    saved = 0.0
    for members in trajectories(changed).values():
        # The longest stable phase is trained once, for all.
        shared = sorted(costs[name] * point / (cell.run.steps or 1) for name, point, cell in members)
        saved += sum(shared[:-1])
    whole = sum(row["nominal_flops"] for row in rows if row["verdict"] == "OK")
    if not saved:
        return []
    return [f"no shared trunks: {reason}; trunks would then save {100 * saved / whole:.0f} % of the FLOPs"]


def pools_at_hand(cluster: ClusterConfig, scales: Iterable[str]) -> list[tuple[set[str], int]]:
    """Return groups of scales, each with how many of its runs go on side by side.

    On SLURM the scales of one resource shape share job arrays, which are submitted with a cap of their own.
    """
    if cluster.kind == "fake":
        return [(set(scales), cluster.fake.slots)]
    if cluster.kind != "slurm":
        workers = cluster.parallel_runs or default_parallel_runs(cluster.threads_per_run)
        return [(set(scales), workers)]
    shapes: dict[str, tuple[set[str], int]] = {}
    for scale in set(scales):
        resources = cluster.resources_of(scale)
        workers = cluster.array_parallelism * min(resources.parallel_runs, resources.runs_per_job)
        shapes.setdefault(repr(resources), (set(), workers))[0].add(scale)
    return list(shapes.values())


def checkpoint_bytes(run: RunConfig) -> int:
    """Estimate one checkpoint: float32 weights, one moment of what Muon trains and two of the rest."""
    counts = parameter_counts(run.model)
    tables = counts.embedding + counts.value_embedding
    moments = 2 * counts.total if run.optimizer.name == "adamw" else counts.total + tables
    return 4 * (counts.total + moments)


def _bytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
