"""Calibration: every shape of a sweep trains for a few steps on the target device, and its speed is kept."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.data.dataset import DataConfig
from harness.data.prepare import find_prepared, prepare
from harness.run.config import EvaluationConfig, LoggerConfig, RunConfig
from harness.run.folder import RunFolder
from harness.run.identity import run_id
from harness.run.metrics import read_metrics
from harness.storage.files import write_json
from model.config_validation import ConfigError
from sweeps.backends.registry import open_backend
from sweeps.config.cluster import Resources
from sweeps.config.study import StudyConfig, SweepConfig
from sweeps.grid.cells import Cell, DataFacts, plan_cells
from sweeps.launch.launch import register
from sweeps.launch.submit import submit_missing
from sweeps.planning.cost import calibration_file, cluster_name, shape_of
from sweeps.state.ledger import read_ledger

TIME_MIN = 15  # of a job that times shapes
STEPS = 8
WARM_STEPS = 3  # the first ones also compile, allocate and read data
WORDS = 600_000  # of random text, used if the sweep's data is not prepared


def calibrate(study: StudyConfig, watch: Callable[[Path], None]) -> int:
    """Time the shapes of the study's cells that were not timed before; return how many were.

    Each trains for a few steps where the sweep's runs would train: in the local pool, or in one job array.
    The speeds lie in `<root>/.calibration/<cluster>` and price every later plan under that root. `watch`
    takes the folder of the short runs and returns when all of them have ended.
    """
    if open_backend(study.cluster).simulated:
        raise ConfigError(f"cluster.kind={study.cluster.kind} trains nothing, so nothing can be timed there")
    root = Path(study.root)
    name = cluster_name(study.cluster)
    untimed: dict[Path, RunConfig] = {}
    for cell in plan_cells(study):
        resources = study.cluster.resources_of(cell.run.scale)
        path = calibration_file(root, name, cell.run, resources)
        if cell.verdict == "OK" and not path.exists():
            untimed.setdefault(path, cell.run)
    if not untimed:
        return 0
    print(f"timing {len(untimed)} shapes on {name}, {STEPS} steps each", file=sys.stderr)
    scratch = root / ".calibration" / name / "runs"
    runs = _train(study, untimed, scratch, watch)
    for path, run in untimed.items():
        _keep(path, run, study.cluster.resources_of(run.scale), runs[path])
    shutil.rmtree(scratch)
    return len(untimed)


def _train(
    study: StudyConfig, untimed: dict[Path, RunConfig], scratch: Path, watch: Callable[[Path], None]
) -> dict[Path, RunFolder]:
    """Train a short run of every shape and return their folders."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    facts, data, cache = _data(study, scratch)
    cells = {}
    for path, run in untimed.items():
        short = _short(run, data)
        name = run_id(short, str(facts.digest))
        cells[path] = Cell(run=short, data=facts, run_id=name, verdict="OK")
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
    register(probe, list(cells.values()))
    with _started(probe, folder):
        watch(folder)
    return {path: RunFolder(folder / str(cell.run_id)) for path, cell in cells.items()}


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


def _short(run: RunConfig, data: DataConfig) -> RunConfig:
    training = dataclasses.replace(run.training, log_every=1, checkpoint_every_s=1e9)
    return dataclasses.replace(
        run,
        data=data,
        steps=STEPS,
        budget_flops=None,
        training=training,
        evaluation=EvaluationConfig(blocks=2, batch_blocks=2, max_depth=1),
        logger=LoggerConfig(),
        seed=0,
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


def _keep(path: Path, run: RunConfig, resources: Resources, trained: RunFolder) -> None:
    lines = read_metrics(trained.metrics)[WARM_STEPS:]
    if not lines:
        print(f"{path.stem} was not timed: {trained.status().message}", file=sys.stderr)
        return
    tokens_per_s = statistics.median(line["tokens_per_s"] for line in lines)
    shape = shape_of(run.scale, run.model.table_kind, run.model.mean_recurrence, run.batch_tokens)
    write_json(
        path,
        {
            "shape": list(shape),
            "resources": dataclasses.asdict(resources),
            "tokens_per_s": tokens_per_s,
            "flops_per_s": tokens_per_s * run.nominal_flops_per_token,
            "device": trained.record()["device"],
            "steps": len(lines),
        },
    )
