"""Calibration: every shape of a sweep trains for a few steps on the target device, and its speed is kept."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.data.dataset import DataConfig
from harness.data.prepare import find_prepared, prepare
from harness.run.config import EvaluationConfig, LoggerConfig, RunConfig
from harness.run.folder import RunFolder
from harness.run.identity import run_id
from harness.run.metrics import read_metrics
from harness.storage.files import read_json, write_json
from model.config_validation import ConfigError
from sweeps.backends.registry import open_backend
from sweeps.config.cluster import Resources
from sweeps.config.next_command import command_line
from sweeps.config.shell import quote
from sweeps.config.study import StudyConfig, SweepConfig
from sweeps.grid.cells import Cell, DataFacts, plan_cells
from sweeps.launch.launch import register
from sweeps.launch.submit import submit_missing
from sweeps.planning.cost import calibration_file, cluster_name, shape_of
from sweeps.state.ledger import read_ledger

TIME_MIN = 15  # of a job that times shapes
STEPS = 8
REPEATS = 3  # of every shape, one after the other or side by side as the sweep's runs
NOISY = 0.2  # spread of the repeats of a shape above which something else ran
BUSY = 1.25  # processes per core, those that are timed included, above which they share cores with others
WARM_STEPS = 3  # the first ones also compile, allocate and read data
WORDS = 600_000  # of random text, used if the sweep's data is not prepared


def calibrate(study: StudyConfig, watch: Callable[[Path], None]) -> int:
    """Time the shapes of the study's cells that were not timed on a quiet machine; return how many were.

    Each trains for a few steps, several times, where the sweep's runs would train: in the local pool, or in
    one job array. The speeds lie in `<root>/.calibration/<cluster>` and price every later plan under that
    root. `watch` takes the folder of the short runs and returns when all of them have ended.
    """
    if open_backend(study.cluster).simulated:
        raise ConfigError(f"cluster.kind={study.cluster.kind} trains nothing, so nothing can be timed there")
    root = Path(study.root)
    name = cluster_name(study.cluster)
    untimed: dict[Path, RunConfig] = {}
    for cell in plan_cells(study):
        resources = study.cluster.resources_of(cell.run.scale)
        path = calibration_file(root, name, cell.run, resources)
        if cell.verdict == "OK" and (not path.exists() or read_json(path).get("busy")):
            untimed.setdefault(path, cell.run)
    folder = root / ".calibration" / name
    if not untimed:
        print(
            f"every shape was timed before; rm -r {quote(str(folder))} lets them be timed again",
            file=sys.stderr,
        )
        return 0
    print(f"timing {len(untimed)} shapes on {name}, {REPEATS} x {STEPS} steps each", file=sys.stderr)
    load = _load(study)
    runs = _train(study, untimed, folder / "runs", watch)
    spreads = []
    for path, run in untimed.items():
        resources = study.cluster.resources_of(run.scale)
        spreads.append(_keep(path, run, resources, runs[path], busy=bool(load)))
    shutil.rmtree(folder / "runs")
    _tell(study, load, [spread for spread in spreads if spread is not None])
    return len(untimed)


def _load(study: StudyConfig) -> str:
    """Return the load of this machine in words if the runs to time would share cores with others, else ""."""
    from harness.data.encoding import available_cores

    backend = open_backend(study.cluster)
    if not backend.pulls_runs:
        return ""
    cores, load = available_cores(), os.getloadavg()[0]
    side_by_side = sum(size for _, size in backend.concurrency(study.runs))
    own = side_by_side * study.cluster.threads_per_run
    return f"load {load:.1f} on {cores} cores before it began" if load + own > BUSY * cores else ""


def _tell(study: StudyConfig, load: str, spreads: Sequence[float]) -> None:
    """Print how far the repeats differ and, if the machine was busy, what to do about it."""
    if not spreads:
        return
    typical, worst = statistics.median(spreads), max(spreads)
    print(f"repeats of a shape differ by {typical:.0%} (median), {worst:.0%} at most", file=sys.stderr)
    if load or worst > NOISY:
        why = ", ".join(filter(None, (load, f"repeats differ by {worst:.0%}" * (worst > NOISY))))
        again = command_line("plan", study.overrides, "calibrate=true")
        print(
            f"warning: the machine was busy ({why}), so the hours are rough. When nothing else runs, {again} "
            "times the shapes in question again",
            file=sys.stderr,
        )


def _train(
    study: StudyConfig, untimed: dict[Path, RunConfig], scratch: Path, watch: Callable[[Path], None]
) -> dict[Path, list[RunFolder]]:
    """Train the short runs of every shape and return their folders."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    facts, data, cache = _data(study, scratch)
    cells: dict[Path, list[Cell]] = {path: [] for path in untimed}
    for seed in range(REPEATS):  # the repeats of a shape are spread over the whole time
        for path, run in untimed.items():
            short = _short(run, data, seed)
            name = run_id(short, str(facts.digest))
            cells[path].append(Cell(run=short, data=facts, run_id=name, verdict="OK"))
    resources = dataclasses.replace(study.cluster.resources, time_min=TIME_MIN)
    per_scale = {scale: {**own, "time_min": TIME_MIN} for scale, own in study.cluster.per_scale.items()}
    cluster = dataclasses.replace(study.cluster, resources=resources, per_scale=per_scale)
    folder = scratch / "calibration"
    probe = dataclasses.replace(
        study,
        root=str(scratch),
        cache=str(cache),
        sweep=SweepConfig(name=folder.name, trunk=False),
        cluster=cluster,
    )
    register(probe, [cell for repeats in zip(*cells.values(), strict=True) for cell in repeats])
    with _started(probe, folder):
        watch(folder)
    return {path: [RunFolder(folder / str(cell.run_id)) for cell in each] for path, each in cells.items()}


@contextmanager
def _started(probe: StudyConfig, folder: Path) -> Iterator[None]:
    """Start the runs of `folder`; wait at the end for the workers that this process owns."""
    backend = open_backend(probe.cluster)
    if not backend.pulls_runs:
        submit_missing(folder, read_ledger(folder), backend)
        yield
        return
    workers = backend.start_workers(folder, owner=os.getpid())
    try:
        yield
    finally:
        for worker in workers:
            worker.wait()


def _short(run: RunConfig, data: DataConfig, seed: int) -> RunConfig:
    training = dataclasses.replace(run.training, log_every=1, checkpoint_every_s=1e9)
    return dataclasses.replace(
        run,
        data=data,
        steps=STEPS,
        budget_flops=None,
        training=training,
        evaluation=EvaluationConfig(blocks=2, batch_blocks=2, max_depth=1),
        logger=LoggerConfig(),
        seed=seed,
    )


def _data(study: StudyConfig, scratch: Path) -> tuple[DataFacts, DataConfig, Path]:
    """Return the sweep's own data if it is prepared, else random text: only its speed matters."""
    data, cache = next(iter(study.runs.values())).data, Path(study.cache)
    prepared = find_prepared(data, cache)
    if prepared is None:
        draw = random.Random(0)
        words = [f"{draw.randrange(4096):x}" for _ in range(WORDS)]
        text = scratch / "text"
        text.mkdir()
        for number in range(20):
            (text / f"{number}.txt").write_text(" ".join(words[number::20]))
        data = DataConfig(
            name="calibration", source="text", path=str(text), vocabulary_size=300, validation_fraction=0.2
        )
        cache = scratch / "data"
        prepared = prepare(data, cache)
    return DataFacts(digest=prepared.digest, unique_tokens=prepared.unique_tokens), data, cache


def _keep(
    path: Path, run: RunConfig, resources: Resources, trained: Sequence[RunFolder], *, busy: bool
) -> float | None:
    """Write the speed of a shape, the median of its repeats; return their spread, None if none was timed."""
    lines = [read_metrics(each.metrics)[WARM_STEPS:] for each in trained]
    speeds = [statistics.median(line["tokens_per_s"] for line in each) for each in lines if each]
    if not speeds:
        print(f"{path.stem} was not timed: {trained[0].status().message}", file=sys.stderr)
        return None
    tokens_per_s = statistics.median(speeds)
    spread = (max(speeds) - min(speeds)) / tokens_per_s
    shape = shape_of(run.scale, run.model.table_kind, run.model.mean_recurrence, run.batch_tokens)
    device = next(each.record()["device"] for each, steps in zip(trained, lines, strict=True) if steps)
    write_json(
        path,
        {
            "shape": list(shape),
            "resources": dataclasses.asdict(resources),
            "tokens_per_s": tokens_per_s,
            "flops_per_s": tokens_per_s * run.nominal_flops_per_token,
            "device": device,
            "steps": sum(map(len, lines)),
            "spread": spread,
            "busy": busy or spread > NOISY,
        },
    )
    return spread
