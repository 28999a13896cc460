"""A launched sweep that goes on on another kind of cluster: refused while jobs of the old kind are live."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from model.config_validation import ConfigError
from sweeps.backends.base import Backend
from sweeps.backends.job_array import element_id, read_arrays
from sweeps.backends.registry import open_backend
from sweeps.config.cluster import ClusterConfig
from sweeps.state.ledger import read_ledger

NAMED = 3  # jobs in a message


def check_move(folder: Path, cluster: ClusterConfig) -> str:
    """Return a remark if the sweep in `folder` was launched on another kind of cluster, "" if not.

    Raises ConfigError while something of it is queued or running there.
    """
    if not (folder / "sweep.json").exists():
        return ""
    ledger = read_ledger(folder)
    old, new = open_backend(replace(ledger.cluster, patience_s=0.0)), open_backend(cluster)
    if new.simulated or new.config.kind == old.config.kind:
        return ""
    moves = f"sweep {ledger.name} was launched on {old.display_name}"
    try:
        jobs = live_jobs(folder, old)
    except ConfigError as error:  # no command of that cluster is here
        return f"{moves}, which cannot be asked from here ({error}), and goes on on {new.display_name}"
    if not jobs:
        return f"{moves} and goes on on {new.display_name}"
    shown = ", ".join(jobs[:NAMED]) + (", ..." if len(jobs) > NAMED else "")
    raise ConfigError(
        f"{moves}, where {len(jobs)} jobs are queued or running ({shown}): leave cluster= out to go on "
        f"there, or cancel first: loopscale cancel sweep={ledger.name}"
    )


def live_jobs(folder: Path, backend: Backend) -> list[str]:
    """Return the jobs or worker processes of a backend that are at the sweep now."""
    if backend.pulls_runs:
        return [f"process {worker}" for worker in backend.workers(folder)]
    elements = backend.states(read_arrays(folder))
    live = [(each, index) for (_, index), each in sorted(elements.items()) if each.is_live]
    return [f"{backend.name}:{element_id(each.job_id, index)}" for each, index in live]
