"""Folders of small runs."""

from __future__ import annotations

import pytest

import loopscale
from harness.data.prepare import prepare
from harness.run.folder import create
from harness.run.length import solve


@pytest.fixture(scope="session")
def make_in(tiny_run, cache):
    """Create the folder of a tiny run with further overrides, in a parent folder."""

    def create_run(parent, *more):
        study = loopscale.compose([*tiny_run, *(more or ("tokens=2560",))])
        run = solve(next(iter(study.runs.values())))
        dataset = prepare(run.data, cache)
        folder = create(parent, run, data_digest=dataset.digest, unique_tokens=dataset.unique_tokens)
        return folder, dataset

    return create_run


@pytest.fixture
def make(make_in, tmp_path):
    """Create the folder of a tiny run with further overrides, below tmp_path."""
    return lambda *more, parent="runs": make_in(tmp_path / parent, *more)
