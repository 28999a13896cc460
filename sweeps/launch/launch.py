"""Launch: prepare the data, register the runs, start what is missing. Launched again, it adds what is new."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from harness.data.dataset import DataConfig, Progress
from harness.data.loader import validation_rows
from harness.data.packed_files import keep_packings
from harness.data.prepare import find_prepared, prepare
from harness.run.config import CONFIG, RunConfig, config_text
from harness.run.folder import RunFolder, create, initial_files, reconcile
from harness.run.length import ORIGIN, SEGMENT, Origin, set_origin
from harness.run.pending_runs import pending_file, pending_files, pending_line, pending_lines, write_pending
from harness.storage.files import exclusive, write_json
from model.config_validation import ConfigError
from sweeps.backends.base import Backend
from sweeps.backends.registry import open_backend
from sweeps.config.cluster import ClusterConfig
from sweeps.config.study import StudyConfig
from sweeps.grid.cells import Cell, index_of, plan_cells
from sweeps.grid.trunks import Segment, Trunks, cell_name
from sweeps.launch.bad_nodes import forget
from sweeps.launch.move import check_move
from sweeps.launch.submit import Submission, show_job_files, submit_missing
from sweeps.state.ledger import (
    LOCK,
    Ledger,
    is_open,
    read_ledger,
    required_segments,
    state_of,
    trunks_of,
    unfinished_runs,
)
from sweeps.state.retry import reopen


def prepare_data(study: StudyConfig, progress: Progress | None = None) -> None:
    """Prepare and pack every data set that the study's scales and axes name, under `study.cache`."""
    runs = _runs(study)
    for data in data_sets(study):
        dataset = prepare(data, Path(study.cache), progress)
        packed = (run for run in runs if run.data == data and run.training.packing == "best_fit")
        for length in sorted({run.model.sequence_length for run in packed}):
            keep_packings(dataset, length)  # here, as every job of a first array would do it again


def data_sets(study: StudyConfig) -> list[DataConfig]:
    """Return the data sets of the study's scales and axes, each once."""
    known: list[DataConfig] = []
    for run in _runs(study):
        index_of(run.data, known)
    return known


def _runs(study: StudyConfig) -> list[RunConfig]:
    cells = plan_cells(study) if study.sweep.axes else []
    return [*study.runs.values(), *(cell.run for cell in cells)]


def write_ledger(study: StudyConfig, progress: Progress | None = None) -> Ledger:
    """Prepare the data and register all OK cells in the sweep's ledger; what stands there already stays."""
    return register(study, _planned(study, progress))


def launch(study: StudyConfig, progress: Progress | None = None) -> tuple[Path, Submission]:
    """Register the study's runs and start or submit what is missing; return the sweep's folder and what was.

    With `retry_failed`, failed runs are opened again; otherwise they stay as they are.
    """
    folder = Path(study.root) / str(study.sweep.name)
    moved = check_move(folder, study.cluster)
    planned = _planned(study, progress)
    ledger = register(study, planned)
    if study.retry_failed:
        forget(folder)
        for run in ledger.nodes(folder):
            reopen(run)
    dropped = [cell.reason for cell in planned if cell.verdict != "OK"]
    notes = [moved] if moved else []
    if dropped:
        counted = f"{len(dropped)} of {len(planned)} cells were dropped"
        notes.append(f"{counted}, which loopscale plan shows; the first: {dropped[0]}")
    submission = start_missing(folder, resubmit=study.resubmit)
    return folder, replace(submission, notes=[*notes, *submission.notes])


def start_missing(folder: Path, *, resubmit: bool = False) -> Submission:
    """Start or submit what is missing of a launched sweep, as its ledger says.

    With `resubmit`, queued jobs that ask for what the profile said before are replaced.
    """
    ledger = read_ledger(folder)
    backend = open_backend(ledger.cluster)
    if backend.simulated:
        note = f"{backend.display_name} starts nothing: launch the sweep to rehearse it"
        return Submission(jobs=[], notes=[note])
    if not backend.pulls_runs:
        return submit_missing(folder, ledger, backend, resubmit=resubmit)
    if not any(is_open(status, ledger.retry) for _, status in unfinished_runs(ledger, folder)):
        return Submission(jobs=[], notes=[])
    at_work = backend.workers(folder)
    notes = _beside(folder, backend)
    started = backend.start_workers(folder)
    if at_work:  # they keep their slots, and what was started for those ends at once
        named = ", ".join(at_work)
        notes.append(f"at work already: worker process {named}; another starts only where one has ended")
        new = [worker for worker in backend.workers(folder) if worker not in at_work]
        return Submission(jobs=[f"worker process {worker}" for worker in new], notes=notes)
    return Submission(jobs=[f"worker process {worker.pid}" for worker in started], notes=notes)


def _beside(folder: Path, backend: Backend) -> list[str]:
    """Return a note on the other sweeps under the root whose workers share this machine now."""
    others = sorted(
        ledger.parent.name
        for ledger in folder.resolve().parent.glob("*/sweep.json")
        if ledger.parent != folder.resolve() and backend.workers(ledger.parent)
    )
    if not others:
        return []
    return [
        f"{', '.join(others)} {'trains' if len(others) == 1 else 'train'} on this machine too, and sweeps "
        f"that share it take longer; loopscale cancel sweep={others[0]} stops one, launch continues it"
    ]


def dry_run(study: StudyConfig, show: Callable[[str], None]) -> None:
    """Show the job files that `launch` would submit now; prepares, writes and submits nothing."""
    backend = open_backend(replace(study.cluster, patience_s=0.0))
    if not backend.has_job_files:
        raise ConfigError(
            f"cluster.kind={study.cluster.kind}: {backend.display_name} has no job files; name the profile "
            "of a cluster that has: cluster=NAME, one of loopscale new --help"
        )
    folder = Path(study.root) / str(study.sweep.name)
    cells = [cell for cell in plan_cells(study) if cell.verdict == "OK"]
    show_job_files(folder, would_register(study, cells), backend, show)


def _planned(study: StudyConfig, progress: Progress | None) -> list[Cell]:
    """Prepare the data and return all cells; raise ConfigError if none of them can run."""
    if not study.sweep.name:
        plan_cells(study)  # raises the error that says so
    prepare_data(study, progress)
    _check_validation(study)
    planned = plan_cells(study)
    if not any(cell.verdict == "OK" for cell in planned):
        raise ConfigError(f"no cell of sweep {study.sweep.name} can run; the first: {planned[0].reason}")
    return planned


def _check_validation(study: StudyConfig) -> None:
    """Raise DataError if a run would fail at its start: it is evaluated on more text than is held out."""
    checked: set[tuple[str, str, int, int]] = set()
    for run in _runs(study):
        dataset = find_prepared(run.data, Path(study.cache))
        asked = (run.training.packing, run.model.sequence_length, run.evaluation.blocks)
        if dataset is not None and (dataset.digest, *asked) not in checked:
            checked.add((dataset.digest, *asked))
            packing, length, blocks = asked
            validation_rows(dataset, packing=packing, sequence_length=length, blocks=blocks)


def register(study: StudyConfig, cells: list[Cell]) -> Ledger:
    """Add all OK `cells` to the sweep's ledger; what is there stays.

    A run gets no folder yet but a line in planned.jsonl. A segment of a trunk gets its folder: a segment
    without one was deleted. A lock serialises two launches at once. Raises ConfigError when an existing
    folder holds another configuration.
    """
    assert study.sweep.name is not None
    folder = Path(study.root) / study.sweep.name
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / LOCK, wait=True):
        before = read_ledger(folder) if (folder / "sweep.json").exists() else None
        names = before.run_ids if before else []
        scales = before.scales if before else {}
        _check_data(folder, names, cells)
        trunks = trunks_of(study, before, cells)
        accepted = sorted((cell for cell in cells if cell.verdict != "DROP"), key=_cost, reverse=True)
        _register_runs(folder, accepted, trunks, set(names))
        scales |= {str(cell.run_id): cell.run.scale for cell in accepted}
        ledger = Ledger(
            name=study.sweep.name,
            run_ids=list(dict.fromkeys([*names, *(str(cell.run_id) for cell in accepted)])),
            cache=os.path.relpath(study.cache, folder),
            cluster=study.cluster,
            retry=study.retry,
            scales=scales,
            nonce=before.nonce if before else secrets.token_hex(4),
            segments=trunks.segments,
            parents=trunks.parents,
            profile=study.profile,
            overrides=study.overrides,
            devices=study.devices | (before.pinned_devices if before else {}),
            earlier=_earlier(before, study),
        )
        if trunks.segments:
            states = {run.run_id: state_of(run) for run in ledger.nodes(folder)}
            needed = required_segments(ledger, folder, states, failed_too=True)
            for name, segment, training, cell in trunks.training():
                scales[name] = training.scale
                if name in needed or name in states:  # a deleted one comes back only if it is needed
                    _create_segment(folder, name, segment, training, cell)
            os.sync()  # once for all folders: the ledger names nothing that a power failure can lose
        write_json(folder / "sweep.json", asdict(ledger))
    return ledger


def _register_runs(folder: Path, cells: list[Cell], trunks: Trunks, known: set[str]) -> None:
    """Write what a run's folder will begin with; update the settings of a run that has its folder.

    A run that is known keeps its record and its trunk, and takes over the machine settings only.
    """
    before = pending_lines(folder)
    lines = dict(before)
    for cell in cells:
        assert cell.data.digest and cell.data.unique_tokens and cell.run_id, "prepare the data first"
        run, parent = RunFolder(folder / cell.run_id), trunks.parents.get(cell.run_id)
        if run.exists():
            reconcile(run, cell.run)
            if parent and not (cell.run_id in known and (run.path / ORIGIN).exists()):
                set_origin(run, Origin(parent=parent))
        elif cell.run_id in known and cell.run_id in before:
            if (text := config_text(cell.run)) != pending_file(run.path, CONFIG):
                lines[cell.run_id] = pending_line(cell.run_id, pending_files(run.path) | {CONFIG: text})
        else:
            files = initial_files(
                run, cell.run, data_digest=cell.data.digest, unique_tokens=cell.data.unique_tokens
            )
            origin = {ORIGIN: asdict(Origin(parent=parent))} if parent else {}
            lines[cell.run_id] = pending_line(cell.run_id, origin | files)
    if lines != before:
        write_pending(folder, lines)


def _earlier(before: Ledger | None, study: StudyConfig) -> dict[str, ClusterConfig]:
    """Return the clusters of other kinds where the sweep was launched before, by kind."""
    clusters = {cluster.kind: cluster for cluster in before.clusters} if before else {}
    clusters.pop(study.cluster.kind, None)
    return clusters


def would_register(study: StudyConfig, cells: list[Cell]) -> Ledger:
    """Return the ledger that a launch of these cells would write.

    Writes nothing. Before the data is prepared the runs have no ids; they are numbered instead.
    """
    folder = Path(study.root) / str(study.sweep.name)
    scales = {
        cell_name(cell, number): cell.run.scale
        for number, cell in enumerate(sorted(cells, key=_cost, reverse=True))
    }
    nonce, before = "", None
    if (folder / "sweep.json").exists():
        before = read_ledger(folder)
        scales, nonce = before.scales | scales, before.nonce
    trunks = trunks_of(study, before, sorted(cells, key=_cost, reverse=True))
    scales |= {name: training.scale for name, _, training, _ in trunks.training()}
    ledger = Ledger(
        name=str(study.sweep.name),
        run_ids=[name for name in scales if name not in trunks.segments],
        cache="",
        cluster=study.cluster,
        retry=study.retry,
        scales=scales,
        nonce=nonce,
        segments=trunks.segments,
        parents=trunks.parents,
    )
    return ledger


def _create_segment(folder: Path, name: str, segment: Segment, run: RunConfig, cell: Cell) -> None:
    assert cell.data.digest is not None and cell.data.unique_tokens is not None, "prepare the data first"
    made = create(
        folder,
        run,
        data_digest=cell.data.digest,
        unique_tokens=cell.data.unique_tokens,
        sync=False,
        prefix=SEGMENT,
    )
    assert made.run_id == name
    set_origin(made, Origin(parent=segment.parent, segment=True), sync=False)


def _check_data(folder: Path, names: list[str], cells: list[Cell]) -> None:
    now = {cell.data.digest for cell in cells if cell.verdict == "OK"}
    before = (RunFolder(folder / name).data_digest() for name in names)
    if names and not any(digest in now for digest in before):  # as a rule the first one is
        others = {RunFolder(folder / name).data_digest() for name in names}
        raise ConfigError(
            f"{folder} holds runs on other data, {', '.join(sorted(others))}: "
            "choose another sweep.name, or delete the folder"
        )


def _cost(cell: Cell) -> float:
    # The longest first: run side by side, they end at about the same time.
    run = cell.run
    return (run.steps or 0) * run.batch_tokens * run.model.mean_recurrence
