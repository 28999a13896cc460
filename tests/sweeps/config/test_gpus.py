import subprocess
from types import SimpleNamespace

import pytest

from sweeps.backends.local import LocalPool
from sweeps.config import gpus
from sweeps.config.cluster import ClusterConfig
from sweeps.config.gpus import gpu_of, visible_gpus


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with three GPUs and no CUDA_VISIBLE_DEVICES."""
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_the_gpus_of_a_machine_are_its_device_files(machine, monkeypatch):
    assert visible_gpus() == ["0", "1", "10"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,MIG-7")
    assert visible_gpus() == ["1", "MIG-7"]
    for none in ("", "NoDevFiles"):  # the latter is what SLURM sets
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert visible_gpus() == []


def test_runs_side_by_side_see_one_device_each(machine, monkeypatch):
    assert [gpu_of(slot, 4) for slot in range(4)] == ["0", "1", "10", "0"]
    assert gpu_of(0, 1) is None  # a run by itself sees all
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert gpu_of(1, 2) is None


@pytest.mark.parametrize(("parallel_runs", "seen"), [(None, ["4", "7"]), (3, ["4", "7", "4"]), (1, ["4,7"])])
def test_each_worker_of_the_local_pool_has_a_gpu(tmp_path, monkeypatch, parallel_runs, seen):
    started = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")

    def start(*_command, env, **_options):
        started.append(env)
        return SimpleNamespace(pid=1)

    monkeypatch.setattr(subprocess, "Popen", start)
    LocalPool(ClusterConfig(parallel_runs=parallel_runs)).start_workers(tmp_path, owner=1)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in started] == seen


def test_without_a_gpu_the_cpu_cores_decide(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("sweeps.backends.local.available_cores", lambda: 8)
    assert LocalPool(ClusterConfig(threads_per_run=2)).size == 4
