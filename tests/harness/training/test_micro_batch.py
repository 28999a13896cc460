import dataclasses

import pytest
import torch

import loopscale
from harness.distributed.process_group import ALONE
from harness.training import micro_batch
from harness.training.device import available_bytes
from harness.training.micro_batch import find_micro_batch, largest_fitting
from model.config_validation import ConfigError
from model.memory import memory_estimate_bytes
from model.transformer import LoopedTransformer, build_model


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
    model = build_model(run.model, seed=0)
    assert find_micro_batch(run, model, ALONE) == 16 and available_bytes() > 2**20
    room = memory_estimate_bytes(run.model, 4).total / 0.9 + 1
    monkeypatch.setattr(micro_batch, "available_bytes", lambda: room)
    assert find_micro_batch(run, model, ALONE) == 4
    fixed = dataclasses.replace(run, training=dataclasses.replace(run.training, micro_batch=3))
    assert find_micro_batch(fixed, model, ALONE) == 3
    monkeypatch.setattr(micro_batch, "available_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match="not even one sequence of 32 tokens fits"):
        find_micro_batch(run, model, ALONE)


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
    assert find_micro_batch(longer, build_model(longer.model, seed=0), ALONE) == found


@pytest.fixture
def full_gpu(monkeypatch):
    """A function that lets passes of more than `limit` sequences fail as on a full GPU; returns the tries."""

    def let_fail(limit, where):
        tried, loss = [], LoopedTransformer.loss

        def failing(self, tokens, *inputs, **options):
            tried.append(len(tokens))
            nats = loss(self, tokens, *inputs, **options)
            if len(tokens) > limit and where == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return Backward.apply(nats, len(tokens) > limit)

        monkeypatch.setattr(LoopedTransformer, "loss", failing)
        monkeypatch.setattr(micro_batch, "_is_tried", lambda device: True)
        return tried

    return let_fail


class Backward(torch.autograd.Function):
    """The identity, whose backward pass fails for want of memory if `fails`."""

    @staticmethod
    def forward(ctx, x, fails):
        ctx.fails = fails
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.fails:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return grad, None


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_that_does_not_fit_leaves_no_trace(run, full_gpu, where):
    model, fresh = (build_model(run.model, seed=0) for _ in range(2))
    tried = full_gpu(4, where)
    assert find_micro_batch(run, model, ALONE) == 4
    assert tried == [16, 8, 4]
    tokens = torch.arange(4 * 32).view(4, 32) % 300
    for each in (model, fresh):
        each.loss(tokens, tokens, [2, 1, 3, 2], range(4)).backward()
    for one, other in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_an_error_of_another_kind_is_not_taken_for_want_of_memory(run, monkeypatch):
    def broken(*_inputs, **_options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(micro_batch, "_is_tried", lambda device: True)
    monkeypatch.setattr(LoopedTransformer, "loss", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        find_micro_batch(run, build_model(run.model, seed=0), ALONE)


def test_the_search_begins_at_the_largest_share_whose_estimate_fits(run, full_gpu, monkeypatch):
    tried = full_gpu(16, "forward")
    room = memory_estimate_bytes(run.model, 4).total / 0.9
    monkeypatch.setattr(micro_batch, "memory_bytes", lambda device: room)
    monkeypatch.setattr(micro_batch, "peak_memory_bytes", lambda device: 0)
    assert find_micro_batch(run, build_model(run.model, seed=0), ALONE) == 4
    assert tried == [4]


def test_the_processes_agree_on_the_smallest(run):
    class Two:
        world = 2

        def all_gather(self, size):
            assert size == 8
            return [size, 2]

    assert find_micro_batch(run, build_model(run.model, seed=0), Two()) == 2
