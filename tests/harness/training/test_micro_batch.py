import dataclasses

import pytest
import torch

import loopscale
from harness.distributed.parallel import replicate
from harness.distributed.process_group import ALONE
from harness.training import micro_batch
from harness.training.micro_batch import available_bytes, find_micro_batch, largest_fitting
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
    monkeypatch.setattr(micro_batch, "available_bytes", lambda: room)
    assert find_micro_batch(run, replica) == 4
    fixed = dataclasses.replace(run, training=dataclasses.replace(run.training, micro_batch=3))
    assert find_micro_batch(fixed, replica) == 3
    monkeypatch.setattr(micro_batch, "available_bytes", lambda: 1000)
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
    monkeypatch.setattr(micro_batch, "available_bytes", lambda: 10**12)
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
    monkeypatch.setattr(micro_batch, "_CGROUPS", tmp_path)
    monkeypatch.setattr(micro_batch, "_OWN_GROUPS", own)
    assert available_bytes() == 1048576
    (job / "memory.max").write_text("65536\n")
    assert available_bytes() == 65536
