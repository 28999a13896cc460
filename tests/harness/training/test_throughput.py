import pytest
import torch

from harness.run.config import TrainingConfig
from harness.training import throughput
from harness.training.throughput import Counters, Meter, measured_flops_per_s, peak_flops_per_s

PEAKS = {"H100": 9.89e14, "H100 PCIe": 7.56e14, "A100": 3.12e14}


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 9.89e14), ("NVIDIA H100 PCIe", 7.56e14), ("NVIDIA A100-SXM4-80GB", 3.12e14)],
)
def test_the_peak_is_that_of_the_longest_name_that_fits(monkeypatch, name, peak):
    monkeypatch.setattr(throughput, "device_name", lambda device: name)
    training = TrainingConfig(precision="bfloat16", device_peaks=PEAKS)
    assert peak_flops_per_s(training, torch.device("cuda")) == peak


def test_a_stated_peak_wins_and_an_unknown_device_is_measured():
    cpu = torch.device("cpu")
    assert peak_flops_per_s(TrainingConfig(peak_flops_per_s=1e12, device_peaks=PEAKS), cpu) == 1e12
    assert 1e8 < measured_flops_per_s(cpu, "float32") < 1e14
    assert 1e8 < peak_flops_per_s(TrainingConfig(device_peaks=PEAKS), cpu) < 1e14


def test_a_window_gives_speed_utilisation_and_the_wait_for_data(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 4.0, 10.0, 11.0, 11.0, 14.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
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
