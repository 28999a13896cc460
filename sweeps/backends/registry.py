"""The backend behind each `cluster.kind`, imported when it is used."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import replace

from sweeps.backends.base import Backend, CurrentJob
from sweeps.config.cluster import BACKENDS, ClusterConfig

JOB_BACKEND = "LOOPSCALE_BACKEND"  # set in jobs: the ledger of their sweep may name another cluster by now


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


def current_job() -> CurrentJob | None:
    """Return the job that this process is in, of whichever backend, None if it is in none."""
    jobs = (open_backend(ClusterConfig(kind=kind)).current_job() for kind in BACKENDS)
    return next((job for job in jobs if job is not None), None)
