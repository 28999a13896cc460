import dataclasses

import pytest
import torch

import loopscale
from harness.distributed.parallel import replicate
from harness.distributed.process_group import ALONE
from harness.run.config import TrainingConfig
from harness.training import device, session
from harness.training.device import (
    available_bytes,
    find_micro_batch,
    largest_fitting,
    measured_flops_per_s,
    peak_flops_per_s,
)
from harness.training.session import Counters, Meter
from model.config_validation import ConfigError
from model.memory import memory_estimate_bytes
from model.transformer import build_model


@pytest.mark.parametrize(("limit", "found"), [(32, 32), (31, 16), (5, 4), (1, 1), (0, None)])
def test_the_share_is_halved_until_it_fits(limit, found):
    assert largest_fitting(32, lambda size: size <= limit) == found


def test_odd_shares_are_rounded_up():
    tried = []
    assert largest_fitting(7, lambda size: tried.append(size) or size == 1) == 1
    assert tried == [7, 4, 2, 1]


@pytest.fixture
def run(tiny):
    study = loopscale.compose([*tiny, "training.batch_sequences=16", "steps=5"])
    return next(iter(study.runs.values()))


def test_on_a_cpu_the_estimate_meets_the_memory_there_is(run, monkeypatch):
    replica = replicate(build_model(run.model, seed=0), ALONE, "ddp")
    assert find_micro_batch(run, replica) == 16 and available_bytes() > 2**20
    room = memory_estimate_bytes(run.model, 4).total / 0.9 + 1
    monkeypatch.setattr(device, "available_bytes", lambda: room)
    assert find_micro_batch(run, replica) == 4
    fixed = dataclasses.replace(run, training=dataclasses.replace(run.training, micro_batch=3))
    assert find_micro_batch(fixed, replica) == 3
    monkeypatch.setattr(device, "available_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match="not even one sequence of 32 tokens fits"):
        find_micro_batch(run, replica)


@pytest.mark.parametrize(
    ("length", "width", "masked", "found"),
    [
        (64, 40, False, 16),
        (256, 40, False, 8),
        (4096, 40, False, 1),
        (256, 64, False, 16),
        (1024, 64, False, 8),
        (4096, 64, False, 2),
        (256, 64, True, 8),
        (1024, 64, True, 2),
    ],
)
def test_a_cpu_takes_a_few_thousand_tokens_at_once(run, monkeypatch, length, width, masked, found):
    """More of them where each block is one operator, as at a width of 64 but not of 40, without a mask."""
    model = dataclasses.replace(run.model, sequence_length=length, width=width, heads=2)
    training = dataclasses.replace(run.training, document_mask=masked)
    longer = dataclasses.replace(run, model=model, training=training)
    monkeypatch.setattr(device, "available_bytes", lambda: 10**12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    replica = replicate(build_model(longer.model, seed=0), ALONE, "ddp")
    assert find_micro_batch(longer, replica) == found


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
