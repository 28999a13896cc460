"""The cells of a sweep: each is solved for its steps, gets its run id, and is accepted or dropped."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from harness.data.dataset import DataConfig
from harness.data.prepare import find_prepared
from harness.run.config import RunConfig, TrainingConfig
from harness.run.identity import run_id
from harness.run.length import BudgetError, solve
from model.config_validation import ConfigError, build
from model.memory import memory_estimate_bytes
from sweeps.config.cluster import ClusterConfig
from sweeps.config.study import Control, StudyConfig, SweepConfig
from sweeps.grid.ladder import equal_lengths, ladder_models


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The facts of a data set that a plan needs; `digest` is None until it is prepared."""

    digest: str | None
    unique_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid. A dropped cell keeps its reason; `run_id` is None until the data is prepared."""

    run: RunConfig
    data: DataFacts
    run_id: str | None
    verdict: Literal["OK", "DROP"]
    reason: str = ""


NO_SWEEP = (
    "no sweep chosen: add sweep=NAME, one that loopscale plan --help lists or the path of a file (loopscale "
    "new writes one), or sweep.name=... and its grid"
)
NO_NAME = "sweep.name is not set: write `name: NAME` below `sweep:`, or add sweep.name=NAME"
Lookup = Callable[[DataConfig], DataFacts]
T = TypeVar("T")


def cells(study: StudyConfig, lookup: Lookup) -> list[Cell]:
    """Return all cells of the study, the product first, then the listed ones; a repeated cell appears once.

    `lookup` is called once per data set.

    Raises
    ------
    ConfigError : the sweep has no name, no recurrences or no lengths, or lengths of two kinds.
    """
    _check_sweep(study.sweep)
    data_sets: list[DataConfig] = []
    trainings: list[TrainingConfig] = []
    facts: list[DataFacts] = []
    seen: dict[object, Cell] = {}
    result = []
    for run in _runs(study):
        data = index_of(run.data, data_sets)
        if data == len(facts):
            facts.append(lookup(run.data))
        cell = solve_cell(run, facts[data], study.sweep)
        # Before the data is prepared there is no run id, and the fields that decide it stand in.
        training = index_of(run.training, trainings)
        key = (run.scale, run.model, run.optimizer, run.schedule, training, cell.run.steps, run.seed, data)
        name = cell.run_id or key
        if cell.verdict == "OK" and name in seen:
            if seen[name].run == cell.run:
                continue
            cell = dataclasses.replace(
                cell, verdict="DROP", reason=f"the same training as {cell.run_id or 'another cell'}"
            )
        seen.setdefault(name, cell)
        result.append(cell)
    return result


def plan_cells(study: StudyConfig) -> list[Cell]:
    """Return the study's cells, named where the data is prepared under `study.cache`."""
    solved = cells(study, lambda data: _facts(data, Path(study.cache)))
    if study.cluster.device_memory_gb is None:
        return solved
    return [_check_memory(cell, study.cluster) for cell in solved]


def _facts(data: DataConfig, cache: Path) -> DataFacts:
    prepared = find_prepared(data, cache)
    if prepared is None:
        return DataFacts(digest=None, unique_tokens=data.unique_tokens)
    return DataFacts(digest=prepared.digest, unique_tokens=prepared.unique_tokens)


def index_of(value: T, known: list[T]) -> int:
    """Return the index of an equal value in `known`, to which a new value is appended.

    Serves as a key for the sections of a run that are not hashable; a sweep has few different ones.
    """
    for number, other in enumerate(known):
        if other is value or other == value:
            return number
    known.append(value)
    return len(known) - 1


def solve_cell(run: RunConfig, data: DataFacts, sweep: SweepConfig) -> Cell:
    """Return the cell of a run, solved for its steps, with its verdict."""
    try:
        solved = solve(run)
    except BudgetError as error:
        return Cell(run=run, data=data, run_id=None, verdict="DROP", reason=str(error))
    assert solved.steps is not None
    name = run_id(solved, data.digest) if data.digest else None
    reason = ""
    tokens = solved.steps * solved.batch_tokens
    if solved.steps < sweep.min_steps:
        reason = f"{solved.steps} steps, fewer than sweep.min_steps={sweep.min_steps}"
    elif data.unique_tokens and tokens > sweep.max_epochs * data.unique_tokens:
        epochs = tokens / data.unique_tokens
        reason = (
            f"{epochs:.2f} epochs of {data.unique_tokens:.3g} tokens, sweep.max_epochs={sweep.max_epochs:g}"
        )
    return Cell(run=solved, data=data, run_id=name, verdict="DROP" if reason else "OK", reason=reason)


def _check_memory(cell: Cell, cluster: ClusterConfig) -> Cell:
    """Return the cell, dropped if it does not fit the memory of a device."""
    needed, limit_gb = memory_bytes(cell, cluster), cluster.device_memory_gb or math.inf
    if cell.verdict == "DROP" or needed <= limit_gb * 1e9:
        return cell
    micro_batch = cell.run.training.micro_batch
    advice = "take more devices" if micro_batch in (None, 1) else "lower training.micro_batch"
    reason = f"needs about {needed / 1e9:.3g} GB, cluster.device_memory_gb={limit_gb:g}: {advice}"
    return dataclasses.replace(cell, verdict="DROP", reason=reason)


def memory_bytes(cell: Cell, cluster: ClusterConfig) -> float:
    """Return the estimated memory of one device; an unset micro-batch is the largest that fits."""
    training, world = cell.run.training, cluster.resources_of(cell.run.scale).world_size
    limit_bytes = (cluster.device_memory_gb or math.inf) * 1e9

    def needed(size: int) -> float:
        estimate = memory_estimate_bytes(
            cell.run.model,
            size,
            precision=training.precision,
            checkpoint_loops=training.checkpoint_loops,
            optimizer=cell.run.optimizer.name,
        )
        shards = world if training.parallel == "fsdp" else 1
        return estimate.total - estimate.held + estimate.held / shards

    share = max(1, training.batch_sequences // world)
    size = min(training.micro_batch or share, share)
    while training.micro_batch is None and size > 1 and needed(size) > limit_bytes:
        size = math.ceil(size / 2)
    return needed(size)


def _check_sweep(sweep: SweepConfig) -> None:
    if not sweep.name:
        has_grid = sweep.mean_recurrences and any(getattr(sweep, kind) for kind in _LENGTHS)
        raise ConfigError(NO_NAME if has_grid else NO_SWEEP)
    kinds = [kind for kind in _LENGTHS if getattr(sweep, kind)]
    if len(kinds) != 1:
        raise ConfigError(f"sweep.{kinds or 'lengths'}: give exactly one of {', '.join(_LENGTHS)}")
    for key in sweep.axes:
        if key in ("seed", "steps", *_LENGTHS.values(), "model.mean_recurrence", "model.depth_sampling"):
            raise ConfigError(f"sweep.axes.{key}: the grid sets it; use the sweep's own field")
    if not sweep.mean_recurrences and sweep.control == "none" and not sweep.cells:
        raise ConfigError("sweep.mean_recurrences=[]: give at least one mean recurrence, a control, or cells")


_LENGTHS = {"budgets_flops": "budget_flops", "tokens": "tokens", "tokens_per_param": "tokens_per_param"}


def _runs(study: StudyConfig) -> Iterator[RunConfig]:
    """Yield the runs of the grid, then those of its ladder; runs may repeat."""
    looped = []
    for run in _grid(study):
        yield run
        if run.model.kind == "looped" and run.model.mean_recurrence > 1:
            looped.append(run)
    ladder = study.sweep.ladder
    if ladder is None:
        return
    seeds = ladder.seeds or study.sweep.seeds
    for run in looped:
        for name, model in ladder_models(run.model, ladder).items():
            rung = dataclasses.replace(run, scale=name, model=model)
            for key, value in study.sweep.per_scale.get(name, {}).items():
                rung = _replaced(rung, key, value, f"per_scale.{name}")
            for length, seed in itertools.product(equal_lengths(run, ladder), seeds):
                yield dataclasses.replace(rung, seed=seed, **length)


def _grid(study: StudyConfig) -> Iterator[RunConfig]:
    sweep = study.sweep
    kind = next(kind for kind in _LENGTHS if getattr(sweep, kind))
    lengths: list[float] = getattr(sweep, kind)
    templates = {name: list(_variants(run, study)) for name, run in study.runs.items()}

    def product(
        scales: list[str], recurrences: list[int], control: Control, lengths: list[float], seeds: list[int]
    ) -> Iterator[RunConfig]:
        depths = _depths(recurrences, control)
        # One model object per depth, so that its properties are computed once.
        models = {
            scale: [
                [
                    dataclasses.replace(run.model, **depth) if run.model.kind == "looped" else run.model
                    for depth in depths
                ]
                for run in templates[scale]
            ]
            for scale in scales
        }
        for scale, length, seed in itertools.product(scales, lengths, seeds):
            chosen: dict[str, Any] = dict.fromkeys(_LENGTHS.values()) | {
                "steps": None,
                _LENGTHS[kind]: length,
                "seed": seed,
            }
            for template, variants in zip(templates[scale], models[scale], strict=True):
                for model in variants:
                    yield dataclasses.replace(template, model=model, **chosen)

    scales = list(study.runs)
    yield from product(scales, sweep.mean_recurrences, sweep.control, lengths, sweep.seeds)
    for name, listed in sweep.cells.items():
        unknown = set(listed.scales) - set(scales)
        if unknown:
            raise ConfigError(f"sweep.cells.{name}.scales={sorted(unknown)}: choose from {', '.join(scales)}")
        if not listed.mean_recurrences and listed.control == "none":
            raise ConfigError(f"sweep.cells.{name}: give mean_recurrences or a control")
        values = (
            listed.scales or scales,
            listed.mean_recurrences,
            listed.lengths or lengths,
            listed.seeds or sweep.seeds,
        )
        for chosen, depths, sizes, seeds in _zipped(name, values) if listed.zipped else [values]:
            yield from product(chosen, depths, listed.control, sizes, seeds)


def _zipped(name: str, values: tuple[list[Any], ...]) -> Iterator[tuple[list[Any], ...]]:
    sizes = {len(column) for column in values if len(column) > 1}
    if len(sizes) > 1:
        shown = ", ".join(str(len(column)) for column in values)
        raise ConfigError(
            f"sweep.cells.{name}: zipped lists differ in length (scales, mean_recurrences, lengths, seeds: "
            f"{shown}); give each as many values, or one"
        )
    for position in range(max(sizes, default=1)):
        yield tuple(column[position : position + 1] if len(column) > 1 else column for column in values)


def _depths(recurrences: list[int], control: Control) -> list[dict[str, Any]]:
    depths: list[dict[str, Any]] = [
        {"mean_recurrence": depth, "backprop_depth": None} for depth in recurrences
    ]
    if control != "none":
        depths.append({"mean_recurrence": 1, "backprop_depth": None, "depth_sampling": control})
    return depths


def _variants(run: RunConfig, study: StudyConfig) -> Iterator[RunConfig]:
    threads = study.cluster.threads_per_run if run.training.threads is None else run.training.threads
    training = dataclasses.replace(run.training, threads=threads, max_epochs=study.sweep.max_epochs)
    run = dataclasses.replace(run, training=training)
    axes = study.sweep.axes
    for values in itertools.product(*axes.values()):
        variant = run
        for key, value in zip(axes, values, strict=True):
            variant = _replaced(variant, key, value, "axes")
        yield variant


def _replaced(run: RunConfig, key: str, value: Any, source: str) -> RunConfig:
    mapping = dataclasses.asdict(run)
    target = mapping
    *groups, last = key.split(".")
    for group in groups:
        target = target.get(group, {})
    if not isinstance(target, dict) or last not in target:
        raise ConfigError(f"sweep.{source}.{key}: a run has no such key")
    target[last] = value
    changed = build(RunConfig, mapping)
    # An unchanged data set stays the same object, which makes comparisons fast.
    return changed if changed.data != run.data else dataclasses.replace(changed, data=run.data)
