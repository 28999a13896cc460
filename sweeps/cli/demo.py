"""The demo: a whole small study on this machine, from text to a report."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from model.config_validation import ConfigError
from sweeps.cli.analyse import report_sweep
from sweeps.cli.progress import stage_progress, watch
from sweeps.config.study import EvalConfig, FitTableConfig, StudyConfig
from sweeps.launch.launch import start_workers, write_ledger
from sweeps.state.collect import collect
from sweeps.state.eta import gaps, has_ended
from sweeps.state.status import status


def run_demo(study: StudyConfig) -> Path:
    """Run `study` through every room and return the path of its report; finished runs are not repeated.

    The workers end with this process, each leaving a checkpoint. Raises ConfigError when runs failed.
    """
    with stage_progress() as progress:
        ledger = write_ledger(study, progress)
    folder = Path(study.root) / ledger.name
    print(f"{len(ledger.run_ids)} runs in {folder}; stop with Ctrl-C, run again to continue", flush=True)
    workers = start_workers(folder, study.cluster, owner=os.getpid())
    try:
        watch(folder, alive=lambda _: any(worker.poll() is None for worker in workers))
    finally:
        _end(workers)
    frame = status(folder)
    complaint = f"{gaps(frame)}; loopscale status sweep={ledger.name} says why"
    if not frame["status"].map(has_ended).all():
        raise ConfigError(f"{complaint}; run the demo again to continue")
    if study.tasks:
        from sweeps.cli.evaluate import evaluate_models

        with stage_progress() as progress:
            evaluate_models(
                EvalConfig(sweep=ledger.name, root=study.root, cache=study.cache, tasks=study.tasks), progress
            )
    collect(folder)
    page, lines = report_sweep(FitTableConfig(sweep=ledger.name, root=study.root))
    print(f"report: {page}")
    for line in lines:
        print(line)
    if not (frame["status"] == "done").all():
        raise ConfigError(complaint)
    return page


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        worker.wait()
