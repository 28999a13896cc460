"""`loopscale demo`: a whole small study on this machine, from text to a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.format import plural
from model.config_validation import ConfigError
from sweeps.cli.help import Command
from sweeps.config.commands import CompareConfig
from sweeps.config.compose import compose_study
from sweeps.config.model_commands import EvalConfig
from sweeps.config.overrides import with_lists
from sweeps.config.shell import quote
from sweeps.config.study import StudyConfig

if TYPE_CHECKING:
    import subprocess


def run_demo(overrides: Sequence[str]) -> Path:
    """Compose the demo's study (`quick=true`: the smaller one), run it and return the path of its report."""
    quick = any(text.lstrip("+").lower() == "quick=true" for text in overrides)
    name = "demo_quick" if quick else "demo"
    return run_study(compose_study([f"sweep={name}", *with_lists(overrides, ("tasks",))]))


def run_study(study: StudyConfig) -> Path:
    """Train, evaluate, collect and report `study`; finished runs are not repeated.

    The workers end with this process, each with a checkpoint.

    Raises
    ------
    ConfigError : runs failed or are unfinished.
    """
    from sweeps.backends.local import LocalPool
    from sweeps.cli.fitting import report_sweep
    from sweeps.cli.progress import stage_progress, watch
    from sweeps.launch.launch import write_ledger
    from sweeps.state.collect import collect, gaps
    from sweeps.state.eta import has_ended
    from sweeps.state.status import status

    with stage_progress() as progress:
        ledger = write_ledger(study, progress)
    folder = Path(study.root) / ledger.name
    print(
        f"{plural(len(ledger.run_ids), 'run')} in {folder}; stop with Ctrl-C, run again to continue",
        flush=True,
    )
    workers = LocalPool(study.cluster).start_workers(folder, owner=os.getpid())
    try:
        watch(folder, alive=lambda _: any(worker.poll() is None for worker in workers))
    finally:
        _end(workers)
    frame = status(folder).frame
    unfinished = f"{gaps(frame)}; loopscale status sweep={ledger.name} shows the reasons"
    if not frame["status"].map(has_ended).all():
        raise ConfigError(f"{unfinished}; run the demo again to continue")
    if study.tasks:
        from sweeps.cli.models import evaluate_tasks

        evaluate_tasks(EvalConfig(sweep=ledger.name, root=study.root, cache=study.cache, tasks=study.tasks))
    collect(folder)
    page, headlines = report_sweep(CompareConfig(sweep=ledger.name, root=study.root))
    print("\n".join([*headlines, f"report: {page}; next: {_next_command(study, ledger.name)}"]))
    if not (frame["status"] == "done").all():
        raise ConfigError(unfinished)
    return page


def _next_command(study: StudyConfig, name: str) -> str:
    if study.quick:
        return "loopscale demo, since quick=true shows the works, not a law"
    root = "" if study.root == "runs" else f" root={quote(study.root)}"
    return f"loopscale plan sweep={name} suggest=8{root}"


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        worker.wait()


def _demo(overrides: list[str]) -> None:
    run_demo(overrides)


COMMANDS = {
    "demo": Command(
        run=_demo,
        summary="everything above in one go on this machine's CPU",
        example="loopscale demo quick=true",
    )
}
