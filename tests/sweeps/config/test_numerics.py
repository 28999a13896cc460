"""Settings that are `auto`: precision and compilation follow the device, and no run id means two things."""

from __future__ import annotations

import pytest

import loopscale
from harness.run.config import RunConfig
from sweeps.config import gpus, numerics
from sweeps.config.compose import compose_study
from sweeps.launch.launch import write_ledger
from sweeps.state.ledger import read_ledger


def choices(run: RunConfig):
    return run.training.precision, run.training.compile, run.optimizer.newton_schulz_dtype


ON_CPU, ON_GPU = ("float32", False, "float32"), ("bfloat16", True, "bfloat16")


@pytest.fixture
def gpu_here(tmp_path, monkeypatch):
    """A machine with one GPU and a torch that can use it."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path / "dev")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(numerics, "version", lambda package: "2.13.0")


@pytest.fixture
def no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def composed(*overrides):
    (run,) = compose_study(["model=looped_140m", *overrides]).runs.values()
    return run


def test_one_run_on_a_machine_with_a_gpu_is_compiled_bfloat16(gpu_here):
    assert choices(composed()) == ON_GPU


def test_without_a_gpu_nothing_changes(no_gpu):
    assert choices(composed()) == ON_CPU


@pytest.mark.parametrize("reason", ["device", "torch"])
def test_a_gpu_that_the_run_does_not_use_changes_nothing(gpu_here, monkeypatch, reason):
    if reason == "torch":
        monkeypatch.setattr(numerics, "version", lambda package: "2.13.0+cpu")
    assert choices(composed("training.device=cpu" if reason == "device" else "seed=1")) == ON_CPU


def test_a_profile_that_asks_for_gpus_decides_on_any_machine(no_gpu):
    assert choices(composed("cluster=slurm_h100")) == ON_GPU
    assert choices(composed("cluster=slurm")) == ON_CPU
    assert choices(composed("cluster=slurm", "training.device=cuda")) == ON_GPU


def test_what_is_written_is_what_runs(no_gpu):
    told = composed("cluster=slurm_h100", "training.precision=float32", "training.compile=false")
    assert choices(told) == ("float32", False, "bfloat16")


@pytest.mark.parametrize("sweep", ["isoflop_140m", "study_15k", "demo", "stability"])
def test_shipped_studies_are_the_same_on_every_machine(sweep, gpu_here, monkeypatch):
    here = compose_study([f"sweep={sweep}"]).runs
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    elsewhere = compose_study([f"sweep={sweep}"]).runs
    assert here == elsewhere


def ids(overrides):
    return set(loopscale.plan(overrides)["run_id"])


def test_a_launched_sweep_keeps_its_run_ids_where_a_gpu_appears(no_gpu, tiny_sweep, tmp_path, request):
    write_ledger(loopscale.compose(tiny_sweep))
    before = ids(tiny_sweep)
    assert before == set(read_ledger(tmp_path / "runs" / "tiny").run_ids)
    request.getfixturevalue("gpu_here")
    assert ids(tiny_sweep) == before == ids([*tiny_sweep, "cluster=slurm_h100"])
    assert ids([*tiny_sweep, "sweep.name=new"]).isdisjoint(before)


def test_the_ledger_says_what_auto_stands_for(gpu_here, tiny_sweep, tmp_path):
    write_ledger(loopscale.compose(tiny_sweep))
    ledger = read_ledger(tmp_path / "runs" / "tiny")
    assert ledger.devices == {"looped_40k": "cuda"} == ledger.pinned_devices
