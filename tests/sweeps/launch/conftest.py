"""A sweep of 200 cells on the simulated cluster."""

from __future__ import annotations

import shutil

import pytest

from sweeps.backends.simulated import SimulatedCluster
from sweeps.config.cluster import ClusterConfig
from sweeps.grid.cells import DataFacts, cells
from sweeps.launch.launch import register
from sweeps.launch.rehearsal import stand_in
from sweeps.state.ledger import read_ledger

GRID = [
    "sweep=isoflop_140m",
    "cluster=fake",
    "data.unique_tokens=1_000_000_000_000",
    "sweep.mean_recurrences=[2,4]",
    "sweep.control=none",
    "sweep.budgets_flops=[1e18]",
    f"sweep.seeds={list(range(100))}",
]


@pytest.fixture
def study(composed, tmp_path):
    """200 cells on a cluster where one attempt in five fails."""
    return composed(GRID, root=str(tmp_path))


@pytest.fixture(scope="module")
def registered(composed, tmp_path_factory):
    """Those cells in a ledger."""
    root = tmp_path_factory.mktemp("registered")
    study = composed(GRID, root=str(root))
    facts = DataFacts(digest="d" * 16, unique_tokens=10**12)
    register(study, cells(study, lambda _: facts))
    return root / str(study.sweep.name)


@pytest.fixture
def entered(registered, tmp_path):
    """A copy of that sweep, and a cluster where nothing fails."""
    folder = shutil.copytree(registered, tmp_path / registered.name)
    ledger = read_ledger(folder)
    cluster = SimulatedCluster(
        ClusterConfig(kind="fake"), lambda run, failure: stand_in(folder / run, failure)
    )
    return folder, ledger, cluster


def run_dry(cluster):
    while cluster.step():
        pass
