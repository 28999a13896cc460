"""Launch: prepare the data, register the runs, start what is missing. Launched again, it adds what is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.data.dataset import DataConfig, Progress
from harness.data.prepare import prepare
from model.config_validation import ConfigError
from sweeps.backends.registry import open_backend
from sweeps.config.study import StudyConfig
from sweeps.grid.cells import Cell, index_of
from sweeps.launch.submit import show_job_files, submit_missing
from sweeps.planning.plan import plan_cells
from sweeps.state.ledger import Ledger, read_ledger
from sweeps.state.registration import register, would_register
from sweeps.state.retry import reopen


def prepare_data(study: StudyConfig, progress: Progress | None = None) -> None:
    """Prepare every data set that the study's scales and axes name, under `study.cache`."""
    for data in data_sets(study):
        prepare(data, Path(study.cache), progress)


def data_sets(study: StudyConfig) -> list[DataConfig]:
    """Return the data sets of the study's scales and axes, each once."""
    runs = list(study.runs.values())
    if study.sweep.axes:
        runs += [cell.run for cell in plan_cells(study)]
    known: list[DataConfig] = []
    for run in runs:
        index_of(run.data, known)
    return known


def write_ledger(study: StudyConfig, progress: Progress | None = None) -> Ledger:
    """Prepare the data and register all OK cells in the sweep's ledger; what stands there already stays."""
    return register(study, _planned(study, progress))


def launch(study: StudyConfig, progress: Progress | None = None) -> tuple[Path, list[str]]:
    """Register the study's runs and start or submit what is missing; return the sweep's folder and remarks.

    With `retry_failed`, failed runs are opened again; otherwise they stay as they are. On a simulated cluster
    the sweep is rehearsed to its end, in a folder of its own.
    """
    if open_backend(study.cluster).simulated:
        from sweeps.launch.rehearsal import rehearse

        return rehearse(study), []
    planned = _planned(study, progress)
    ledger = register(study, planned)
    folder = Path(study.root) / ledger.name
    if study.retry_failed:
        for run in ledger.nodes(folder):
            reopen(run)
    dropped = [cell.reason for cell in planned if cell.verdict != "OK"]
    notes = []
    if dropped:
        counted = f"{len(dropped)} of {len(planned)} cells were dropped"
        notes.append(f"{counted}, which loopscale plan shows; the first: {dropped[0]}")
    return folder, [*notes, *start_missing(folder)]


def start_missing(folder: Path) -> list[str]:
    """Start or submit what is missing of a launched sweep, as its ledger says; return remarks."""
    ledger = read_ledger(folder)
    backend = open_backend(ledger.cluster)
    if backend.simulated:
        return [f"{backend.display_name} starts nothing: launch the sweep to rehearse it"]
    if not backend.pulls_runs:
        return submit_missing(folder, ledger, backend).notes
    backend.start_workers(folder)
    return []


def dry_run(study: StudyConfig, show: Callable[[str], None]) -> None:
    """Show the job files that `launch` would submit now; prepares, writes and submits nothing."""
    backend = open_backend(replace(study.cluster, patience_s=0.0))
    if not backend.has_job_files:
        raise ConfigError(f"cluster.kind={study.cluster.kind}: {backend.display_name} has no job files")
    folder = Path(study.root) / str(study.sweep.name)
    cells = [cell for cell in plan_cells(study) if cell.verdict == "OK"]
    show_job_files(folder, would_register(study, cells), backend, show)


def _planned(study: StudyConfig, progress: Progress | None) -> list[Cell]:
    """Prepare the data and return all cells; raise ConfigError if none of them can run."""
    if not study.sweep.name:
        plan_cells(study)  # raises the error that says so
    prepare_data(study, progress)
    planned = plan_cells(study)
    if not any(cell.verdict == "OK" for cell in planned):
        raise ConfigError(f"no cell of sweep {study.sweep.name} can run; the first: {planned[0].reason}")
    return planned
