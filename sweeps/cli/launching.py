"""`loopscale launch`, `status`, `cancel`, `retry` and `collect`: commands on a whole sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model.config_validation import ConfigError
from sweeps.cli.help import Command, profile_keys
from sweeps.cli.tables import as_json, as_text, to_json
from sweeps.config.commands import StatusConfig
from sweeps.config.compose import compose_table
from sweeps.config.next_command import command_line, next_command
from sweeps.config.study import StudyConfig
from sweeps.state.profile import study_of

if TYPE_CHECKING:
    from sweeps.launch.submit import Submission

PURSUIT = "pursuit.json"  # in a sweep's folder, of a pursuit
MOST = 0.5  # share of the runs that are done, from which the laws come next
STATUS_COLUMNS = {
    "run_id": "run",
    "trunk_id": "trunk",
    "target_flops": "target FLOPs",
    "status": "",
    "attempts": "",
    "step": "",
    "steps": "",
    "train_loss_nats": "train loss",
    "val_loss_nats": "val loss",
    "tokens_per_s": "tokens/s",
    "eta_s": "ETA",
    "job": "",
    "node": "",
    "message": "",
}


def launch_sweep(study: StudyConfig) -> tuple[Path, Submission]:
    """Launch the study's sweep with a progress bar; return its folder and what was submitted.

    On a simulated cluster it is rehearsed to its end, in a folder of its own.
    """
    from sweeps.backends.registry import open_backend
    from sweeps.launch.submit import Submission

    if open_backend(study.cluster).simulated:
        from sweeps.launch.rehearsal import rehearse

        return rehearse(study), Submission(jobs=[], notes=[])
    from sweeps.cli.progress import stage_progress
    from sweeps.launch.launch import launch

    with stage_progress() as progress:
        return launch(study, progress)


def _launch(overrides: list[str]) -> str | None:
    study = study_of(overrides)
    if study.dry_run:
        from sweeps.launch.launch import dry_run

        dry_run(study, print)
        return _unlaunched_text(study)
    if study.confirm and not _confirm(study):
        return None
    folder, submission = launch_sweep(study)
    if study.format == "json":
        return _status_json(folder, submission.notes, submitted=submission.jobs)
    return _launched_text(study, folder, [str(submission), *submission.notes])


def _unlaunched_text(study: StudyConfig) -> str:
    """Return what a dry run did not submit, and the command that submits it."""
    from sweeps.planning.plan import plan

    return "\n".join(
        ["", "nothing was submitted", plan(study).summary(), next_command("launch", study.overrides)]
    )


def _confirm(study: StudyConfig) -> bool:
    """Return True if the launch may start: a person agrees to the plan's cost, or there is no cost."""
    from sweeps.backends.registry import open_backend
    from sweeps.launch.move import check_move
    from sweeps.planning.plan import plan

    if open_backend(study.cluster).simulated:
        return True

    moved = check_move(Path(study.root) / str(study.sweep.name), study.cluster)
    planned = plan(study)
    print("\n".join(filter(None, (planned.summary(), moved))), file=sys.stderr)
    if planned.is_done:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("launch asks before it starts and there is no terminal to ask: add confirm=false")
    print("start? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _launched_text(study: StudyConfig, folder: Path, notes: Sequence[str]) -> str:
    """Return the state of a sweep that was just launched or rehearsed, with the remarks of the launch."""
    from sweeps.backends.registry import open_backend
    from sweeps.state.status import status

    root = [] if study.root == StudyConfig.root else [f"root={study.root}"]
    text = status(folder).summary([f"sweep={folder.name}", *root], notes=notes)
    if not open_backend(study.cluster).simulated:
        return text
    *lines, _ = text.splitlines()  # what was rehearsed has no losses to collect
    real = [override for override in study.overrides if override not in study.profile]
    return "\n".join([*lines, next_command("launch", real)])


def _status(overrides: list[str]) -> str:
    settings = compose_table("status", overrides)
    if settings.run is not None:
        return _one_run(settings)
    if settings.watch:
        from sweeps.cli.progress import watch_until_idle

        try:
            watch_until_idle(settings.folder, settings.page)
        except KeyboardInterrupt:
            print("no longer watched; the runs go on (loopscale cancel stops them)", file=sys.stderr)
    if settings.page is not None:
        from sweeps.cli.live_page import write_live_page
        from sweeps.state.status import status

        write_live_page(status(settings.folder), settings.folder, settings.page, live=False)
        return str(settings.page)
    if settings.format == "json":
        return _status_json(settings.folder)
    return _status_text(settings, [text for text in overrides if text.startswith(("sweep=", "root="))])


def _status_text(settings: StatusConfig, at: Sequence[str]) -> str:
    """Return the table of runs, the counts, the expected end and the next command of the sweep `at`."""
    from sweeps.state.status import status

    state = status(settings.folder)
    text = state.summary(at)
    columns = {"run_id": "run"} | dict.fromkeys(state.axes, "") | STATUS_COLUMNS
    parts = [as_text(state.frame_with_trunks, columns), text]
    if (settings.folder / PURSUIT).exists():
        from sweeps.pursuit.pursue import summary
        from sweeps.pursuit.record import read

        record = read(settings.folder)
        parts.insert(1, summary(record) if record else "")
    return "\n".join(parts)


def _status_json(folder: Path, notes: Sequence[str] = (), **more: object) -> str:
    from sweeps.state.eta import counts
    from sweeps.state.status import status

    state = status(folder)
    return as_json(
        state.frame,
        counts=counts(row["status"] for row in state.rows),
        notes=[*notes, *state.notes],
        forecast=state.forecast,
        trunks=state.trunks,
        **more,
    )


def _one_run(settings: StatusConfig) -> str:
    """Return everything that is known of the run `settings.run`."""
    from sweeps.launch.control import find_run
    from sweeps.state.inspection import as_text, inspect_run
    from sweeps.state.ledger import read_ledger

    ledger = read_ledger(settings.folder)
    details = inspect_run(settings.folder, ledger, find_run(settings.folder, ledger, str(settings.run)))
    return to_json(details) if settings.format == "json" else as_text(details)


def _cancel(overrides: list[str]) -> str:
    from sweeps.launch.control import cancel

    settings = compose_table("cancel", overrides)
    cancelled = cancel(settings)
    if settings.format == "json":
        return to_json({"cancelled": cancelled})
    if not cancelled:
        return "nothing was queued or running"
    at = [text for text in overrides if text.startswith(("sweep=", "root="))]
    return "\n".join([*(f"cancelled {one}" for one in cancelled), next_command("launch", at)])


def _retry(overrides: list[str]) -> str:
    from sweeps.launch.control import retry

    settings = compose_table("retry", overrides)
    started, notes = retry(settings)
    if settings.format == "json":
        return to_json({"started": started, "notes": notes})
    return "\n".join([*([f"started again: {run}" for run in started] or ["no run has failed"]), *notes])


def _collect(overrides: list[str]) -> str:
    from sweeps.state.collect import collect, gaps

    settings = compose_table("collect", overrides)
    collected = collect(settings.folder, [Path(folder) for folder in settings.also])
    if settings.format == "json":
        return as_json(collected.runs)
    written = ", ".join(f"{name}.parquet ({count} rows)" for name, count in collected.rows.items())
    lines = [f"{settings.folder}: {written}", gaps(collected.runs)]
    done = collected.runs["status"] == "done"
    if done.mean() < MOST:
        lines.append(next_command("status", overrides))
        if done.any():
            lines.append(f"or already: {command_line('fit', overrides)}")
    else:
        lines.append(next_command("fit", overrides))
    return "\n".join(lines)


COMMANDS = {
    "launch": Command(
        run=_launch,
        summary="plan, confirm, start what is missing, return at once",
        example="loopscale launch sweep=demo confirm=false",
        more=profile_keys,
    ),
    "status": Command(
        run=_status,
        summary="the state of a launched sweep, run by run",
        example="loopscale status sweep=demo watch=true",
        settings="table/status",
    ),
    "cancel": Command(
        run=_cancel,
        summary="stop a launched sweep, or on a cluster one run of it; launch continues it",
        example="loopscale cancel sweep=demo",
        settings="table/cancel",
    ),
    "retry": Command(
        run=_retry,
        summary="start failed runs again",
        example="loopscale retry sweep=demo failed=true",
        settings="table/retry",
    ),
    "collect": Command(
        run=_collect,
        summary="one table of runs and one of (run, depth), Parquet and CSV",
        example="loopscale collect sweep=demo",
        settings="table/collect",
    ),
}
