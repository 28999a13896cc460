"""Folders of small runs."""

from __future__ import annotations

import pytest

import loopscale
from harness.data.prepare import prepare
from harness.run.folder import create
from harness.run.length import solve


@pytest.fixture
def make(tiny, tmp_path, cache):
    """Create the folder of a run with further overrides."""

    def create_run(*more, parent="runs"):
        study = loopscale.compose([*tiny, *(more or ("tokens=2560",))])
        run = solve(next(iter(study.runs.values())))
        dataset = prepare(run.data, cache)
        folder = create(
            tmp_path / parent, run, data_digest=dataset.digest, unique_tokens=dataset.unique_tokens
        )
        return folder, dataset

    return create_run
