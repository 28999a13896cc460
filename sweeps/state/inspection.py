"""Everything about one run: its status, attempts, failures and log, and the command that repeats it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from harness.run.folder import RunFolder
from sweeps.backends.job_array import array_folder, latest_elements, read_arrays
from sweeps.backends.registry import open_backend
from sweeps.config.shell import quote
from sweeps.state.ended_jobs import attempts_of
from sweeps.state.ledger import Ledger
from sweeps.state.status import status

LOG_LINES = 20


def inspect_run(folder: Path, ledger: Ledger, run: RunFolder) -> dict[str, Any]:
    """Return everything known about one run of a sweep, as JSON values."""
    frame = status(folder).frame_with_trunks
    row = {str(key): value for key, value in frame.set_index("run_id").loc[run.run_id].items()}
    state = run.status()
    return {
        "run_id": run.run_id,
        **row,
        "folder": str(run.path),
        "failures": state.failures,
        "micro_batch_changed": run.record().get("micro_batch_changed", 0),
        "places": attempts_of(run),
        "log": log_tail(run, job_lines(folder, ledger, run)),
        "repeat": repeat_command(folder, ledger, run),
    }


def as_text(details: dict[str, Any]) -> str:
    """Return what `inspect_run` returns as lines of text."""
    skipped = ("log", "repeat", "places", "message", "job", "node")
    lines = [
        f"{name:<20} {value}"
        for name, value in details.items()
        if name not in skipped and value not in (None, "")
    ]
    lines += [f"{'message':<20} {details['message']}"] if details["message"] else []
    for place in details["places"]:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(place["started_s"]))
        job = f"{place['cluster']}:{place['job']}" if place["job"] else f"process {place['pid']}"
        lines.append(f"{'attempt ' + str(place['attempt']):<20} {began} {job} on {place['node']}")
    lines += ["", *(f"| {line}" for line in details["log"]), "", "to repeat it by hand:", details["repeat"]]
    return "\n".join(lines)


def log_tail(run: RunFolder, printed: list[str]) -> list[str]:
    """Return the last lines of the run's newest log: its traceback or output, else what its job `printed`."""
    logs = run.path / "logs"
    own = [
        path
        for path in [*logs.glob("error_*.txt"), logs / "output.txt"]
        if path.exists() and path.stat().st_size
    ]
    if own:
        newest = max(own, key=lambda path: path.stat().st_mtime)
        return newest.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return printed[-LOG_LINES:]


def job_lines(folder: Path, ledger: Ledger, run: RunFolder) -> list[str]:
    """Return what the job that the run was last in has printed."""
    latest = latest_elements(read_arrays(folder)).get(run.run_id)
    if latest is None:
        return []
    array, index = latest
    output = open_backend(ledger.cluster).job_output(array_folder(folder, array), index)
    return output.lines if output else []


def repeat_command(folder: Path, ledger: Ledger, run: RunFolder) -> str:
    """Return the command that trains the run again from the start, with the same code, elsewhere."""
    latest = latest_elements(read_arrays(folder)).get(run.run_id)
    code = (folder / latest[0].snapshot).resolve() if latest else Path(__file__).resolve().parents[2]
    shown = quote(code)
    cache = quote((folder / ledger.cache).resolve())
    return (
        f"cd {shown} && PYTHONPATH={shown} OMP_NUM_THREADS={ledger.cluster.threads_per_run} "
        f"{quote(sys.executable)} -m loopscale train run={quote(run.path.resolve())} "
        f'root="$(mktemp -d)" cache={cache}'
    )
