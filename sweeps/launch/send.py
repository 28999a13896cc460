"""Job arrays handed to the scheduler, as many as it takes, and the job that launches again for the rest."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from model.config_validation import ConfigError
from sweeps.backends.base import Backend, QueueFull
from sweeps.backends.job_array import (
    JobArray,
    Submitted,
    array_folder,
    read_submitted,
    write_array,
    write_submitted,
)
from sweeps.launch.arrays import make_token
from sweeps.launch.code_snapshot import Snapshot, record_environment
from sweeps.launch.reconcile import submitted_here
from sweeps.state.ledger import Ledger

FOLLOW_UP = "sweeps.launch.follow_up"  # the module of a job that launches again


def submit_arrays(
    folder: Path, arrays: list[JobArray], backend: Backend, snapshot: Snapshot
) -> tuple[list[JobArray], QueueFull | None]:
    """Submit arrays until the scheduler takes no more; return those submitted, and its answer.

    Of the array that it refuses, halves are tried: nobody says how much there is room for.
    """
    sent: list[JobArray] = []
    for array in arrays:
        part, full = array, None
        while part.elements:
            try:
                _submit(folder, part, backend, snapshot)
            except QueueFull as error:
                shutil.rmtree(array_folder(folder, part))
                part = dataclasses.replace(array, elements=part.elements[: len(part.elements) // 2])
                full = error
                continue
            sent.append(part)
            break
        if full is not None:
            return sent, full
    return sent, None


def _submit(folder: Path, array: JobArray, backend: Backend, snapshot: Snapshot) -> None:
    write_array(folder, array)
    record_environment(array_folder(folder, array))
    job_id = backend.submit(folder, array, snapshot.version)
    write_submitted(folder, array, Submitted(cluster=backend.name, job_id=job_id))


def submit_follow_up(
    folder: Path, ledger: Ledger, backend: Backend, snapshot: Snapshot, arrays: list[JobArray]
) -> str:
    """Submit a job that launches again after one of the arrays in the queue; return its id, "" without one.

    It asks for one process of what the profile asks for by default.
    """
    job = backend.current_job()
    elements = backend.states(submitted_here(folder, arrays, backend.name))
    live = {name for (name, _), element in elements.items() if element.is_live}
    queued = [array for array in arrays if array.name in live]
    mine = [job_of(folder, each) for each in queued if each.module == FOLLOW_UP]
    others = [each for each in mine if not job or not job.job_id or not each.endswith(f":{job.job_id}")]
    if others:
        return f"job {others[0]} submits them"
    before = next((array for array in reversed(queued) if array.module != FOLLOW_UP), None)
    if before is None:
        return ""
    array = JobArray(
        token=make_token(f"{ledger.nonce}{len(arrays)}", 0, [[FOLLOW_UP]]),
        sweep=ledger.name,
        elements=[[]],
        resources=dataclasses.replace(
            ledger.cluster.resources, nodes=1, tasks_per_node=1, ranks="srun", gpus_per_node=None
        ),
        snapshot=snapshot.path,
        array_parallelism=1,
        after=before.token,
        module=FOLLOW_UP,
    )
    try:
        _submit(folder, array, backend, snapshot)
    except (QueueFull, ConfigError):
        shutil.rmtree(array_folder(folder, array))
        return ""
    return f"job {job_of(folder, array)} submits them"


def job_of(folder: Path, array: JobArray) -> str:
    """Return the qualified id of a submitted array."""
    submitted = read_submitted(array_folder(folder, array))
    assert submitted is not None
    return f"{submitted.cluster}:{submitted.job_id}"
