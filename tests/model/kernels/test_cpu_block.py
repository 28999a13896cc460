"""The block as one operator against the block of plain torch, in float64, and where it is not used."""

import ctypes
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.kernels import AUTO
from model.kernels.cpu.block import Sizes
from model.kernels.cpu.library import largest_width, load
from model.kernels.reference import ReferenceKernels
from model.layers import Block, rotary_table
from model.memory import memory_estimate_bytes
from tests.model.test_memory import saved_bytes
from tests.model.test_transformer import awake
from tests.workers import imports_compiler

torch.set_num_threads(1)
CONFIG = ModelConfig(
    width=64,
    heads=2,
    prelude_layers=1,
    core_layers=1,
    coda_layers=1,
    vocabulary_size=64,
    sequence_length=64,
)


def block_of(config, gated=True, kernels=AUTO):
    block = Block(config, gated, kernels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in block.parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return block


def is_fused(block, x, mask=None):
    return block.kernels.is_one_operator(block, x, mask)


def inputs(config, batch, length, gated=True):
    """Draw a stream, angles, the rows of value embeddings, and a gradient."""
    generator = torch.Generator().manual_seed(2)
    x, grad = torch.randn(2, batch, length, config.width, generator=generator)
    rows = torch.randn(batch, length, config.kv_width, generator=generator).requires_grad_()
    rope = rotary_table(length, config.head_dim, config.rope_theta)
    return x.requires_grad_(), rope, rows if gated else None, grad


def computed(block, x, rope, rows, grad):
    """Return the result and all gradients, in the order of stream, rows and weights."""
    result = block(x, rope, rows)
    wanted = [tensor for tensor in (x, rows, *block.parameters()) if tensor is not None]
    return [result, *torch.autograd.grad(result, wanted, grad)]


def exactly(block, x, rope, rows, grad):
    """Compute the same in float64, for which there is no operator."""
    x, rows = (None if tensor is None else tensor.detach().double().requires_grad_() for tensor in (x, rows))
    return computed(deepcopy(block).double(), x, rope.double(), rows, grad.double())


# Around the edges of tiles (6 or 12 tokens), chunks (96 tokens) and groups (512 tokens).
CASES = {
    "two tokens": (CONFIG, 1, 2),
    "less than a tile": (CONFIG, 1, 5),
    "more than a group": (CONFIG, 9, 64),
    "odd": (replace(CONFIG, sequence_length=131), 3, 131),
    "grouped": (replace(CONFIG, width=128, heads=4, kv_heads=2), 2, 33),
    "wide heads": (replace(CONFIG, width=192, heads=2, kv_heads=1), 2, 40),
    "narrow MLP": (replace(CONFIG, mlp_width=32), 2, 50),
    "a head of half a vector": (replace(CONFIG, width=16, heads=1), 3, 40),
    "a head of one and a half": (replace(CONFIG, width=48, heads=1), 2, 33),
    "widest": (replace(CONFIG, width=largest_width(), heads=4), 1, 20),
}


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize(("config", "batch", "length"), CASES.values(), ids=CASES)
def test_result_and_gradients_are_those_of_float64(config, batch, length, gated):
    block, given = block_of(config, gated), inputs(config, batch, length, gated)
    assert is_fused(block, given[0])
    ours = computed(block, *given)
    for found, expected in zip(ours, exactly(block, *given), strict=True):
        assert (found - expected).norm() <= 3e-6 * expected.norm().clamp(min=1)


@pytest.mark.parametrize(("config", "batch", "length"), CASES.values(), ids=CASES)
def test_without_gradient_nothing_is_kept_and_the_result_is_the_same(config, batch, length):
    block, given = block_of(config), inputs(config, batch, length)
    expected = block(*given[:3])
    with torch.no_grad(), Peak() as peak:
        assert torch.equal(block(*given[:3]), expected)
    assert peak.floats == expected.numel()


class Peak(TorchDispatchMode):
    """Add up the numbers in what the operators of a block give."""

    floats = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func.namespace == "loopscale":
            self.floats += sum(tensor.numel() for tensor in made)
        return made


def test_a_single_token_attends_to_itself():
    block, given = block_of(CONFIG), inputs(CONFIG, 3, 1)
    for found, expected in zip(computed(block, *given), exactly(block, *given), strict=True):
        assert (found - expected).norm() <= 3e-5 * expected.norm().clamp(min=1)


def test_inputs_may_lie_in_memory_as_they_like():
    block, (x, rope, rows, grad) = block_of(CONFIG), inputs(CONFIG, 2, 40)
    expected = computed(block, x, rope, rows, grad)
    turned = [tensor.detach().transpose(0, 2).contiguous().transpose(0, 2) for tensor in (x, rows, grad)]
    with torch.no_grad():
        block.mlp.fc.weight.set_(block.mlp.fc.weight.t().contiguous().t())
    assert not turned[0].is_contiguous() and not block.mlp.fc.weight.is_contiguous()
    found = computed(block, turned[0].requires_grad_(), rope, turned[1].requires_grad_(), turned[2])
    assert all(map(torch.equal, found, expected))
    one = torch.ones(()).expand(2, 40, CONFIG.width)
    assert all(map(torch.equal, computed(block, x, rope, rows, one), computed(block, x, rope, rows, one + 0)))


def test_more_threads_than_tokens_and_recomputation_change_nothing():
    block, (x, rope, rows, grad) = block_of(CONFIG), inputs(CONFIG, 1, 5)
    expected = computed(block, x, rope, rows, grad)
    torch.set_num_threads(7)
    threaded = computed(block, x, rope, rows, grad)
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(threaded[:3], expected[:3], strict=True))
    again = checkpoint(block, x, rope, rows, use_reentrant=False)
    wanted = (x, rows, *block.parameters())
    assert all(map(torch.equal, torch.autograd.grad(again, wanted, grad), expected[1:]))


def test_it_cannot_be_differentiated_twice():
    block, (x, rope, rows, _) = block_of(CONFIG), inputs(CONFIG, 1, 8)
    (slope,) = torch.autograd.grad(block(x, rope, rows).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_the_narrower_library_is_for_what_the_wider_one_does_not_divide():
    wide = load().columns()
    assert load(64, 128) is load(64) is load()
    assert load(48).columns() == load(64, 16).columns() == 16 <= wide


def test_what_is_kept_is_counted_beyond_two_billion():
    sizes = Sizes(batch=1024, length=2048, heads=8, kv_heads=8, dim=32, hidden=1024, gate_channels=32)
    per_token = 3 * 256 + 16 + 8 + 256 + 8 + 256 + 1024
    assert load().kept_floats(ctypes.byref(sizes)) == 1024 * 2048 * per_token


def test_a_sequence_depends_neither_on_its_neighbours_nor_on_threads():
    block, (x, rope, rows, grad) = block_of(CONFIG), inputs(CONFIG, 11, 64)
    whole = computed(block, x, rope, rows, grad)
    torch.set_num_threads(2)
    threaded = computed(block, x, rope, rows, grad)
    torch.set_num_threads(1)
    one = [tensor[4:5].detach().requires_grad_() for tensor in (x, rows)]
    alone = computed(block, one[0], rope, one[1], grad[4:5])
    for all_, both, single in list(zip(whole, threaded, alone, strict=True))[:3]:
        assert torch.equal(all_, both) and torch.equal(all_[4:5], single)
    names = ["result", "x", "rows", *(name for name, _ in block.named_parameters())]
    for name, all_, both in zip(names, whole, threaded, strict=True):
        # Gradients of weights are summed by thread.
        assert torch.allclose(all_, both, rtol=1e-6, atol=1e-6 * all_.abs().max().item()), name


def test_not_a_number_is_passed_on():
    block, (x, rope, rows, _) = block_of(CONFIG), inputs(CONFIG, 3, 30)
    with torch.no_grad():
        x[1, 20] = float("nan")
        result = block(x, rope, rows)
    assert result[[0, 2]].isfinite().all() and result[1, 20:].isnan().all()


@imports_compiler
def test_executed_flops_are_those_of_the_plain_products():
    given = inputs(CONFIG, 2, 64)
    counts = []
    for kernels in (AUTO, ReferenceKernels()):
        block = block_of(CONFIG, kernels=kernels)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            assert is_fused(block, given[0]) == (kernels is AUTO)
            block(*given[:3]).backward(given[3])
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_it_keeps_less_than_is_estimated_for_torch():
    ratio = saved_bytes(CONFIG, 8) / memory_estimate_bytes(CONFIG, 8).activations
    # Of a block: streams before and after attention, projections, attended, the positive part; not 17 widths.
    assert ratio == pytest.approx(10 / 17, rel=0.15)


def test_torch_computes_what_the_operator_does_not():
    x = torch.zeros(1, 4, CONFIG.width)
    block = block_of(CONFIG)
    assert is_fused(block, x)
    assert not is_fused(block, x, torch.ones(1, 1, 4, 4, dtype=torch.bool))
    assert not is_fused(block, x[:0])
    assert not is_fused(block, x.double()) and not is_fused(block, x.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_fused(block, x)
    for fields in ({"mlp": "swiglu"}, {"mlp_width": 40}, {"heads": 8}, {"width": 2 * largest_width()}):
        other = replace(CONFIG, **fields)
        assert not is_fused(block_of(other), torch.zeros(1, 4, other.width))


def test_a_whole_model_learns_the_same_with_and_without():
    tokens = torch.randint(CONFIG.vocabulary_size, (4, 64), generator=torch.Generator().manual_seed(0))
    found = []
    for kernels in (AUTO, ReferenceKernels()):
        model = awake(CONFIG, kernels=kernels)
        loss = model.loss(tokens, tokens, [5, 1, 3, 2], range(4))
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()} | {"loss": loss.detach()})
    for name, expected in found[1].items():
        assert (found[0][name] - expected).norm() <= 1e-5 * expected.norm(), name
