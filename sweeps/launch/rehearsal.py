"""A rehearsal: a sweep through the real launcher on a simulated cluster, with nothing trained."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from analysis.format import plural
from harness.run.folder import RunFolder
from harness.storage.files import write_json
from model.config_validation import ConfigError
from sweeps.backends.simulated import SimulatedCluster
from sweeps.config.study import StudyConfig
from sweeps.grid.cells import NO_SWEEP, DataFacts, cells
from sweeps.launch.launch import register
from sweeps.launch.submit import submit_missing
from sweeps.state.ledger import Ledger

REHEARSAL = "rehearsal-"  # before the sweep's name: its folder holds no results
DIGEST = "rehearsal"
MAX_LAUNCHES = 100


def rehearse(study: StudyConfig) -> Path:
    """Step the sweep through the scripted cluster, launching again until nothing is open; return its folder.

    The folder is `<root>/rehearsal-<sweep>`, apart from the sweep's own: its records say device "fake" and
    hold no losses.
    """
    folder, ledger, cluster, launches = rehearse_with(study)
    failed = sum(run.status().state == "failed" for run in ledger.runs(folder))
    print(
        f"rehearsal in {folder}: {plural(len(ledger.run_ids), 'run')}, {failed} failed for good; "
        f"{launches} launches, {cluster.submissions} arrays, {cluster.now_s / 3600:.1f} simulated hours",
        file=sys.stderr,
    )
    return folder


def rehearse_with(study: StudyConfig) -> tuple[Path, Ledger, SimulatedCluster, int]:
    """Rehearse and return folder, ledger, cluster and the number of launches."""
    if not study.sweep.name:
        raise ConfigError(NO_SWEEP)
    sweep = dataclasses.replace(study.sweep, name=f"{REHEARSAL}{study.sweep.name}")
    study = dataclasses.replace(study, sweep=sweep)
    folder = Path(study.root) / str(sweep.name)
    if (folder / "sweep.json").exists():
        raise ConfigError(f"{folder} holds an earlier rehearsal: delete it, or choose another sweep.name")
    facts = DataFacts(digest=DIGEST, unique_tokens=10**15)
    ledger = register(study, cells(study, lambda _: facts))
    cluster = SimulatedCluster(study.cluster, lambda run, failure: stand_in(folder / run, failure))
    launches = 0
    while launches < MAX_LAUNCHES:
        launches += 1
        submission = submit_missing(folder, ledger, cluster)
        if not submission.runs:
            break
        while cluster.step():
            pass
    return folder, ledger, cluster, launches


def stand_in(path: Path, failure: str) -> None:
    """Write what an attempt that ends in the class `failure` leaves in its run folder; "" is a good end."""
    run = RunFolder(path)
    before = run.status()
    status = dataclasses.replace(before, state="running", attempts=before.attempts + 1, message="")
    if failure in ("diverged", "bad_config", "code_error", "oom"):  # what a run records itself
        status = status.failed(failure, f"rehearsed {failure}")
    elif not failure:
        run.set_record(run.record() | {"status": "done", "device": "fake", "wall_s": 0.0}, sync=False)
        write_json(run.depth_curve, [], sync=False)
        status = dataclasses.replace(status, state="done", step=status.steps)
    run.set_status(status, sync=False)  # else it is left as running, as by a killed process
