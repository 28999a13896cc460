"""Runs and a sweep that several files read."""

from __future__ import annotations

import shutil

import pytest

import loopscale
from sweeps.launch.launch import write_ledger


@pytest.fixture(scope="session")
def trained_once(made_once, tiny_run):
    """The root of a finished run of 20 steps."""
    settings = ["tokens=2560", "model.sequence_length=64"]
    return made_once("trained", lambda folder: loopscale.train([f"root={folder}", *tiny_run, *settings]))


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of that run."""
    (run,) = shutil.copytree(trained_once / "single", tmp_path / "runs" / "single").glob("looped_*")
    return run


@pytest.fixture(scope="session")
def finished_once(made_once, tiny_study_in):
    """The sweep `tiny`, its six runs done."""

    def make(folder):
        from sweeps.workers.local_pool import work

        write_ledger(tiny_study_in(folder))
        work(folder / "tiny", stop=lambda: False)

    return made_once("finished", make) / "tiny"


@pytest.fixture
def finished(finished_once, tmp_path, tiny_study):
    """A copy of that sweep below this test's root, its ledger with this process's cache."""
    folder = shutil.copytree(finished_once, tmp_path / "runs" / "tiny")
    write_ledger(tiny_study())
    return folder
