import os

import pytest
import torch

from harness.run.config import TrainingConfig
from harness.training import device, session
from harness.training.device import (
    available_bytes,
    demand_determinism,
    is_out_of_memory,
    measured_flops_per_s,
    peak_flops_per_s,
    prepare_process,
)
from harness.training.session import Counters, Meter


def test_the_control_group_of_a_job_limits_it_and_so_do_those_above(tmp_path, monkeypatch):
    job = tmp_path / "slurm" / "job_7"
    job.mkdir(parents=True)
    (job / "memory.max").write_text("max\n")
    (job.parent / "memory.max").write_text("1048576\n")
    own = tmp_path / "cgroup"
    own.write_text("5:devices:/\n0::/slurm/job_7\n")
    monkeypatch.setattr(device, "_CGROUPS", tmp_path)
    monkeypatch.setattr(device, "_OWN_GROUPS", own)
    assert available_bytes() == 1048576
    (job / "memory.max").write_text("65536\n")
    assert available_bytes() == 65536


PEAKS = {"H100": 9.89e14, "H100 PCIe": 7.56e14, "A100": 3.12e14}


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 9.89e14), ("NVIDIA H100 PCIe", 7.56e14), ("NVIDIA A100-SXM4-80GB", 3.12e14)],
)
def test_the_peak_is_that_of_the_longest_name_that_fits(monkeypatch, name, peak):
    monkeypatch.setattr(device, "device_name", lambda _device: name)
    training = TrainingConfig(precision="bfloat16", device_peaks=PEAKS)
    assert peak_flops_per_s(training, torch.device("cuda")) == peak


def test_a_stated_peak_wins_and_an_unknown_device_is_measured():
    cpu = torch.device("cpu")
    assert peak_flops_per_s(TrainingConfig(peak_flops_per_s=1e12, device_peaks=PEAKS), cpu) == 1e12
    assert 1e8 < measured_flops_per_s(cpu, "float32") < 1e14
    assert 1e8 < peak_flops_per_s(TrainingConfig(device_peaks=PEAKS), cpu) < 1e14


def test_a_window_gives_speed_utilisation_and_the_wait_for_data(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 4.0, 10.0, 11.0, 11.0, 14.0])
    monkeypatch.setattr(session.time, "perf_counter", lambda: next(clock))
    counters = Counters(peak_flops_per_s=100.0)
    meter = Meter(counters)
    with meter.step():  # 0 to 4, waiting from 1 to 2
        with meter.waiting():
            pass
        counters.executed_flops += 200.0
    assert meter.window(batch_tokens=8) == {"tokens_per_s": 2.0, "mfu": 0.5, "data_wait_share": 0.25}
    with meter.step():  # 10 to 14, without a wait
        with meter.waiting():
            pass
        counters.executed_flops += 100.0
    assert meter.window(batch_tokens=8) == {"tokens_per_s": 2.0, "mfu": 0.25, "data_wait_share": 0.0}
    assert counters.train_s == 8.0 and counters.data_wait_s == 1.0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("NCCL error in: NCCLUtils.cpp:94, unhandled cuda error, Cuda failure 2 'out of memory'"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_want_of_memory_has_many_names(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("NCCL error: unhandled system error, Connection reset by peer"),
        ValueError("out of memory"),  # of our own, about a setting
    ],
)
def test_what_another_gpu_might_not_meet_is_no_want_of_memory(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("told", "used"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_segments_of_a_gpus_memory_expand_unless_told_otherwise(monkeypatch, told, used):
    environment = dict(told)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    prepare_process(torch.device("cuda", 0))
    assert environment.get("PYTORCH_CUDA_ALLOC_CONF") == used


def test_determinism_fills_no_memory_with_nan(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.get_deterministic_debug_mode()
    try:
        demand_determinism(compiled=False)
        assert torch.get_deterministic_debug_mode() == 2
        assert not torch.empty(4096).isnan().all()
    finally:
        torch.set_deterministic_debug_mode(before)
