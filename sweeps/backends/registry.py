"""The backend behind each `cluster.kind`, imported when it is used."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from sweeps.backends.base import Backend, CurrentJob
from sweeps.config.cluster import BACKENDS, ClusterConfig

JOB_BACKEND = "LOOPSCALE_BACKEND"  # set in jobs: the ledger of their sweep may name another cluster by now
# What torchrun sets in its processes; the latter two may also be a user's own.
RANK_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
)
RENDEZVOUS_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")


def register_backend(kind: str, factory: str | Callable[[ClusterConfig], Backend]) -> None:
    """Let `cluster.kind` name a further backend: its factory, or where to import it as "module:name"."""
    BACKENDS[kind] = factory


def open_backend(cluster: ClusterConfig) -> Backend:
    """Return the backend of a cluster profile; asks the cluster for nothing yet."""
    factory = BACKENDS[cluster.kind]
    if isinstance(factory, str):
        module, _, name = factory.partition(":")
        factory = getattr(importlib.import_module(module), name)
    backend: Backend = factory(cluster)
    return backend


def backend_of_job(cluster: ClusterConfig) -> Backend:
    """Return the backend whose job this process is in; started by hand, that of the sweep's cluster."""
    return open_backend(replace(cluster, kind=os.environ.get(JOB_BACKEND, cluster.kind)))


def environment_outside_jobs() -> dict[str, str]:
    """Return this process's environment without what a job of any backend, or torchrun, has set in it.

    What is started from within a job would take itself for a part of that job.
    """
    backends = [open_backend(ClusterConfig(kind=kind)) for kind in BACKENDS]
    prefixes = tuple(prefix for backend in backends for prefix in backend.job_variables)
    kept = {name for backend in backends for name in backend.kept_variables}
    ranks = (*RANK_VARIABLES, *RENDEZVOUS_VARIABLES) if "RANK" in os.environ else RANK_VARIABLES
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or not (name.startswith(prefixes) or name in ranks)
    }


@contextmanager
def outside_jobs() -> Iterator[None]:
    """Hide what `environment_outside_jobs` leaves out from the programs that are started meanwhile."""
    hidden = {name: os.environ[name] for name in os.environ.keys() - environment_outside_jobs().keys()}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def current_job() -> CurrentJob | None:
    """Return the job that this process is in, of whichever backend, None if it is in none."""
    jobs = (open_backend(ClusterConfig(kind=kind)).current_job() for kind in BACKENDS)
    return next((job for job in jobs if job is not None), None)
