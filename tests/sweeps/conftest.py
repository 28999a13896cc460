"""Runs and a sweep that several files read."""

from __future__ import annotations

import os
import shutil

import pytest

import loopscale
from sweeps.launch.launch import write_ledger


@pytest.fixture(scope="session")
def trained_once(made_once, tiny_run):
    """The root of a finished run of 20 steps."""
    settings = ["tokens=2560", "model.sequence_length=64"]
    loopscale.data(tiny_run)  # another process may have trained it, with a cache of its own
    return made_once("trained", lambda folder: loopscale.train([f"root={folder}", *tiny_run, *settings]))


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of that run."""
    (run,) = shutil.copytree(trained_once / "single", tmp_path / "runs" / "single").glob("looped_*")
    return run


@pytest.fixture(scope="session")
def finished_once(made_once, tiny_study_in, tiny_run):
    """The sweep `tiny`, its six runs done."""

    def make(folder):
        from sweeps.workers.local_pool import work

        write_ledger(tiny_study_in(folder))
        work(folder / "tiny", stop=lambda: False)

    loopscale.data(tiny_run)
    return made_once("finished", make) / "tiny"


@pytest.fixture
def finished(finished_once, tmp_path, tiny_study):
    """A copy of that sweep below this test's root, its ledger with this process's cache."""
    folder = shutil.copytree(finished_once, tmp_path / "runs" / "tiny")
    write_ledger(tiny_study())
    return folder


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Put shell scripts on PATH under the names of SLURM's commands; each call is logged."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "calls"

    def put(name: str, script: str):
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{script}\n')
        path.chmod(0o755)
        return lambda: [line for line in log.read_text().splitlines() if line.startswith(name)]

    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    put("scontrol", "echo 'ClusterName = somewhere'; echo 'MaxArraySize = 50'")
    return put


@pytest.fixture
def queued(commands, tiny, tmp_path):
    """A function that launches a sweep of two runs on stand-ins for SLURM; returns folder and overrides."""

    def launch(*more: str):
        commands("squeue", "true")
        commands("sbatch", "echo 'Submitted batch job 5'")
        grid = ["sweep.name=queued", "sweep.tokens=[640]", "sweep.min_steps=5", "sweep.control=none"]
        overrides = [*tiny, *grid, "sweep.mean_recurrences=[2]", "sweep.seeds=[0,1]", "confirm=false"]
        loopscale.launch([*overrides, "cluster=slurm", *more])
        return tmp_path / "runs" / "queued", overrides

    return launch


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, an empty folder, with no configuration of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOOPSCALE_CONFIG", raising=False)
    return tmp_path
