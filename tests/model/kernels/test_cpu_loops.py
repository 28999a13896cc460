"""The loops without gradient as one operator against one block after the other."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.kernels import AUTO
from model.kernels.cpu import CpuKernels
from model.kernels.reference import ReferenceKernels
from tests.model.test_transformer import awake, gradients
from tests.workers import imports_compiler

torch.set_num_threads(1)
CONFIG = ModelConfig(
    width=64,
    heads=2,
    prelude_layers=2,
    core_layers=2,
    coda_layers=1,
    vocabulary_size=64,
    sequence_length=40,
    backprop_depth=2,
)
DEPTHS = [7, 2, 5, 1, 3, 6]


class BlockByBlock(CpuKernels):
    loops = ReferenceKernels.loops


class Calls(TorchDispatchMode):
    """List the operators of this project that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "loopscale":
            self.names.append(func.name().removeprefix("loopscale::"))
        return func(*args, **(kwargs or {}))


def pair(config):
    whole, each = awake(config), awake(config, kernels=BlockByBlock())
    tokens = torch.randint(64, (6, config.sequence_length), generator=torch.Generator().manual_seed(0))
    return whole, each, tokens


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "fields",
    [{}, {"injection": "add"}, {"kv_heads": 1}, {"core_layers": 3, "coda_layers": 2}, {"width": 128}],
    ids=str,
)
def test_every_sequence_comes_out_as_if_block_by_block(fields, threads):
    whole, each, tokens = pair(replace(CONFIG, **fields))
    torch.set_num_threads(threads)
    with Calls() as calls:
        ours = whole.logits(tokens, DEPTHS, range(6))
        loss = whole.loss(tokens, tokens, DEPTHS, range(6))
    expected = each.logits(tokens, DEPTHS, range(6)), each.loss(tokens, tokens, DEPTHS, range(6))
    torch.set_num_threads(1)
    assert "loops" in calls.names
    assert torch.equal(ours, expected[0]) and torch.equal(loss, expected[1])
    found, wanted = gradients(whole, loss), gradients(each, expected[1])
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def test_it_is_taken_only_where_it_computes_the_same():
    def loops_called(fields=None, depths=DEPTHS, threads=1, prepare=lambda model: None):
        model, _, tokens = pair(replace(CONFIG, **(fields or {})))
        prepare(model)
        torch.set_num_threads(threads)
        with Calls() as calls:
            model.loss(tokens, tokens, depths, range(6))
        torch.set_num_threads(1)
        return "loops" in calls.names

    assert loops_called()
    assert not loops_called({"injection": "linear"})
    assert not loops_called({"mlp": "swiglu"})
    assert not loops_called(depths=[2, 1, 2, 2, 2, 1])  # all with gradient
    assert loops_called(depths=[5] * 6, threads=6)
    assert not loops_called(depths=[5, 1, 1, 1, 1, 1], threads=2)  # a second thread would wait
    looks = []
    assert not loops_called(prepare=lambda m: m.core[-1].register_forward_hook(lambda *_: looks.append(1)))
    assert len(looks) == 7


@imports_compiler
def test_executed_flops_are_counted_alike():
    counts = []
    tokens = pair(CONFIG)[2]
    for kernels in (AUTO, ReferenceKernels()):
        model = awake(CONFIG, kernels=kernels)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.loss(tokens, tokens, DEPTHS, range(6)).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
