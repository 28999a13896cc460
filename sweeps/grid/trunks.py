"""The trunks of a sweep: the first steps that cells share, and the segments in which they are trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from harness.run.config import RunConfig, ScheduleConfig, TrainingConfig
from harness.run.identity import Identity, identity, run_name
from harness.run.length import SEGMENT, segment_run, stable_steps, trunk_id, unshared_reason
from model.config_validation import ConfigError
from sweeps.config.study import TrunkMode
from sweeps.grid.cells import Cell, index_of


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a trunk: its steps from `start` to `end`, trained once for all runs that need them."""

    trunk_id: str
    end: int
    start: int = 0
    parent: str = ""  # the segment whose checkpoint it starts from, "" for none
    kept: list[int] = field(default_factory=list)  # steps before `end` whose checkpoints are kept too

    def start_for(self, limit: int) -> int:
        """Return the last step up to `limit` with a checkpoint to start from, 0 for none."""
        return max((step for step in (*self.kept, self.end) if step <= limit), default=0)


@dataclass(frozen=True, kw_only=True)
class Trunks:
    """A forest of segments by name, and the segment that each run starts from."""

    segments: dict[str, Segment] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)  # by run
    templates: dict[str, Cell] = field(default_factory=dict)  # a cell of each trunk

    def training(self) -> Iterable[tuple[str, Segment, RunConfig, Cell]]:
        """Yield every segment of the study: name, segment, the run that trains it, a cell that needs it."""
        for name, segment in self.segments.items():
            if cell := self.templates.get(segment.trunk_id):
                yield name, segment, segment_run(cell.run, segment.end), cell

    def parent_of(self, name: str) -> str:
        """Return the segment that a run or segment starts from, "" where it starts by itself."""
        return self.segments[name].parent if name in self.segments else self.parents.get(name, "")

    def first_step(self, name: str, run: RunConfig) -> int:
        """Return the step at which a run takes over from its trunk, 0 for one without."""
        parent = self.parents.get(name)
        assert run.steps is not None
        return self.segments[parent].start_for(stable_steps(run.schedule, run.steps)) if parent else 0

    def lineage(self, run: str) -> Iterable[str]:
        """Yield the segments that a run rests on, the nearest first."""
        name = run
        while name := self.parent_of(name):
            yield name


def in_order(segments: Mapping[str, Segment]) -> list[str]:
    """Return the segments in the order in which workers take them: all trunks grow side by side."""
    return sorted(segments, key=lambda name: (segments[name].start, -segments[name].end, name))


def cell_name(cell: Cell, number: int) -> str:
    """Return the run id of a cell of a plan, or its number while its data is not prepared."""
    return cell.run_id or f"run-{number}"


def grow(
    cells: Sequence[Cell],
    mode: TrunkMode,
    *,
    before: Mapping[str, Segment] | None = None,
    settled: Collection[str] = (),
) -> Trunks:
    """Return the trunks of the OK cells.

    A trunk needs two cells, or one if there is a trunk already. Each cell starts from the nearest checkpoint
    before its cool-down; the steps in between become a segment from which later cells start.

    Parameters
    ----------
    before : segments that exist; they are kept and extended.
    settled : names of cells that are left as they are.

    Raises
    ------
    ConfigError : `mode` is True and nothing is shared.
    """
    groups = trajectories(cells)
    grown = Trunks(
        segments=dict(before or {}),
        templates={trunk: members[0][2] for trunk, members in groups.items()},
    )
    trunks: dict[str, dict[str, Segment]] = {}
    for name, segment in grown.segments.items():
        trunks.setdefault(segment.trunk_id, {})[name] = segment
    for trunk, members in groups.items() if mode is not False else ():
        fresh = [member for member in members if member[0] not in settled]
        if len(fresh) > 1 or trunk in trunks:
            _grow_one(grown, trunk, trunks.get(trunk, {}), fresh)
    if mode is True:
        _check_shared(grown, cells, settled)
    return grown


def _check_shared(grown: Trunks, cells: Sequence[Cell], settled: Collection[str]) -> None:
    """Raise ConfigError unless a new cell shares a trunk or, without new cells, a trunk exists."""
    names = {cell_name(cell, number): cell for number, cell in enumerate(cells) if cell.verdict == "OK"}
    fresh = {name: cell for name, cell in names.items() if name not in settled}
    if not names or (grown.parents.keys() & fresh.keys() if fresh else grown.segments):
        return
    joins = any(
        any(member[0] in settled for member in members) and any(member[0] in fresh for member in members)
        for members in trajectories(cells).values()
    )
    launched_without = "its runs were launched without: choose another sweep.name"
    why = "" if joins or not fresh else why_nothing_is_shared(list(fresh.values()))
    raise ConfigError(f"sweep.trunk=true, but {why or why_nothing_is_shared(cells) or launched_without}")


def why_nothing_is_shared(cells: Sequence[Cell]) -> str:
    """Return the reason why no two of the OK cells share a trunk, "" if some do."""
    for cell in cells:
        if cell.verdict == "OK" and (why := unshared_reason(cell.run.schedule)):
            return why
    if any(len(members) > 1 for members in trajectories(cells).values()):
        return ""
    return "no two runs differ in length alone: give several budgets"


def trajectories(
    cells: Sequence[Cell], weight_decay: Literal["follow"] | None = None
) -> dict[str, list[tuple[str, int, Cell]]]:
    """Return name, last stable step and cell of those with a stable phase, by trunk, shared or not.

    `weight_decay` is taken in place of that of the cells, to learn what they would share with it.
    """
    # One object per schedule: a study has few, and thousands of cells.
    schedules: dict[ScheduleConfig, ScheduleConfig] = {}
    groups: dict[str, list[tuple[str, int, Cell]]] = {}
    trunk_ids: dict[object, str] = {}  # by the fields that cells of one trunk have in common
    trainings: list[TrainingConfig] = []
    for number, cell in enumerate(cells):
        if cell.verdict == "DROP":
            continue
        run = cell.run
        assert run.steps is not None
        schedule = run.schedule
        if weight_decay and schedule not in schedules:
            schedules[schedule] = replace(schedule, weight_decay=weight_decay)
        schedule = schedules.get(schedule, schedule) if weight_decay else schedule
        point = stable_steps(schedule, run.steps)
        if point > schedule.warmup_steps:
            training = index_of(run.training, trainings)
            key = (run.model, run.optimizer, schedule, training, run.seed, _digest(cell))
            if key not in trunk_ids:
                trunk_ids[key] = trunk_id(replace(run, schedule=schedule), _digest(cell))
            trunk = trunk_ids[key]
            groups.setdefault(trunk, []).append((cell_name(cell, number), point, cell))
    return groups


def _grow_one(
    grown: Trunks, trunk: str, own: dict[str, Segment], members: list[tuple[str, int, Cell]]
) -> None:
    fields: Identity = {}
    for name, point, cell in sorted(members, key=lambda member: member[1]):
        parent = max(own, key=lambda each: own[each].start_for(point), default="")
        start = own[parent].start_for(point) if parent else 0
        if start < point:
            fields = (fields or identity(segment_run(cell.run, point), _digest(cell))) | {"steps": point}
            kept = sorted(step for step in set(cell.run.training.checkpoint_at) if start < step < point)
            segment = Segment(
                trunk_id=trunk, start=start, end=point, parent=parent if start else "", kept=kept
            )
            parent = SEGMENT + run_name(cell.run, fields)
            own[parent] = grown.segments[parent] = segment
        grown.parents[name] = parent


def _digest(cell: Cell) -> str:
    return cell.data.digest or cell.run.data.name
