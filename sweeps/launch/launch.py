"""Launch: data prepared, ledger written, workers started; run again, it adds only what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.data.config import DataConfig
from harness.data.dataset import prepare
from model.config_validation import ConfigError
from sweeps.config.cluster import ClusterConfig, default_parallel_runs
from sweeps.config.study import StudyConfig
from sweeps.grid.cells import Cell
from sweeps.launch.submit import show_job_files, submit_missing
from sweeps.planning.plan import plan_cells
from sweeps.state.ledger import Ledger, read_ledger
from sweeps.state.registration import register, would_register
from sweeps.state.retry import reopen

Progress = Callable[[str, float], None]
_DETACHED: list[subprocess.Popen[bytes]] = []  # workers that outlive this process, which never waits for them


def prepare_data(study: StudyConfig, progress: Progress | None = None) -> None:
    """Prepare every data set that the study's scales and axes name, under `study.cache`."""
    for data in data_sets(study):
        prepare(data, Path(study.cache), progress)


def data_sets(study: StudyConfig) -> list[DataConfig]:
    """Return the data sets of the study's scales and axes, each once."""
    found = [run.data for run in study.runs.values()]
    if study.sweep.axes:
        found += {id(cell.run.data): cell.run.data for cell in plan_cells(study)}.values()
    return [data for number, data in enumerate(found) if data not in found[:number]]


def write_ledger(study: StudyConfig, progress: Progress | None = None) -> Ledger:
    """Prepare the data and enter all OK cells into the sweep's ledger; what stands there already stays."""
    return register(study, _planned(study, progress))


def _planned(study: StudyConfig, progress: Progress | None) -> list[Cell]:
    """Prepare the data and return all cells, one of which can run at least."""
    if not study.sweep.name:
        plan_cells(study)  # complains
    prepare_data(study, progress)
    planned = plan_cells(study)
    if not any(cell.verdict == "OK" for cell in planned):
        raise ConfigError(f"no cell of sweep {study.sweep.name} can run; the first: {planned[0].reason}")
    return planned


def launch(study: StudyConfig, progress: Progress | None = None) -> tuple[Path, list[str]]:
    """Enter the study into its ledger and start or submit what is missing; return its folder and remarks.

    With `retry_failed`, failed runs are opened again; otherwise they stay as they are. A fake cluster is
    stepped to its end, in a folder of its own.
    """
    if study.cluster.kind == "fake":
        from sweeps.launch.rehearsal import rehearse

        return rehearse(study), []
    planned = _planned(study, progress)
    ledger = register(study, planned)
    folder = Path(study.root) / ledger.name
    if study.retry_failed:
        for run in ledger.nodes(folder):
            reopen(run)
    dropped = [cell for cell in planned if cell.verdict != "OK"]
    told = f"{len(dropped)} of {len(planned)} cells were dropped, which loopscale plan shows; the first: "
    return folder, [*([told + dropped[0].reason] if dropped else []), *start_missing(folder)]


def start_missing(folder: Path) -> list[str]:
    """Start or submit what is missing of a launched sweep, as its ledger says; returns remarks."""
    ledger = read_ledger(folder)
    if ledger.cluster.kind == "slurm":
        from sweeps.backends.slurm import Slurm

        return submit_missing(folder, ledger, Slurm(ledger.cluster)).notes
    _DETACHED.extend(start_workers(folder, ledger.cluster))
    return []


def dry_run(study: StudyConfig, show: Callable[[str], None]) -> None:
    """Show the job files that `launch` would submit now; prepares, writes and submits nothing."""
    from sweeps.backends.slurm import Slurm

    if study.cluster.kind != "slurm":
        raise ConfigError(f"cluster.kind={study.cluster.kind}: only a SLURM cluster has job files")
    folder = Path(study.root) / str(study.sweep.name)
    cells = [cell for cell in plan_cells(study) if cell.verdict == "OK"]
    impatient = replace(study.cluster, patience_s=0.0)
    show_job_files(folder, would_register(study, cells), Slurm(impatient, dry_run=True), show)


def start_workers(
    folder: Path, cluster: ClusterConfig, *, owner: int | None = None
) -> list[subprocess.Popen[bytes]]:
    """Start the local pool on the sweep's folder and return its processes.

    The workers outlive this process unless it is given as `owner`. A slot that is taken is left alone.
    """
    folder = folder.resolve()
    environment = os.environ | {"OMP_NUM_THREADS": str(cluster.threads_per_run)}
    arguments = [str(owner)] if owner is not None else []
    workers = []
    for number in range(cluster.parallel_runs or default_parallel_runs(cluster.threads_per_run)):
        with (folder / f"worker_{number}.log").open("ab") as log:
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "sweeps.workers.local_pool", str(folder), str(number), *arguments],
                    cwd=Path(__file__).resolve().parents[2],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    return workers
