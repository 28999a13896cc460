"""The CPU kernel against torch's attention in float64, and what happens where it cannot be compiled."""

import os
import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.kernels import AUTO
from model.kernels.cpu.library import load, takes_channels
from model.kernels.reference import ReferenceKernels
from tests.harness.processes import CONTEXT
from tests.workers import imports_compiler, in_processes

torch.set_num_threads(1)


def inputs(batch, heads, kv_heads, length, dim, seed=0):
    """Draw queries, keys and values that share one tensor, as the model projects them, and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(batch, length, heads + 2 * kv_heads, dim, generator=generator)
    parts = both.split([heads, kv_heads, kv_heads], dim=2)
    grad = torch.randn(batch, heads, length, dim, generator=generator)
    return *(part.transpose(1, 2).requires_grad_() for part in parts), grad


def exact(query, key, value, grad):
    """Compute result and gradients in float64, by torch."""
    doubles = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    result = F.scaled_dot_product_attention(*doubles, is_causal=True, enable_gqa=True)
    return result, *torch.autograd.grad(result, doubles, grad.double())


def ours(query, key, value, grad, kernels=AUTO):
    result = kernels.attention(query, key, value)
    return result, *torch.autograd.grad(result, (query, key, value), grad)


# Around the edges of the tiles: 6 queries, 16 or 32 keys, blocks of 12 to 96 queries.
SHAPES = [
    (1, 1, 1, 1, 32),
    (2, 4, 4, 5, 32),
    (2, 4, 2, 16, 64),
    (1, 6, 2, 33, 96),
    (3, 4, 1, 97, 32),
    (1, 2, 2, 256, 128),
    (1, 1, 1, 1030, 32),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_result_and_gradients_are_those_of_float64(shape):
    assert takes_channels(shape[-1])
    given = inputs(*shape)
    for found, expected in zip(ours(*given), exact(*given), strict=True):
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max().clamp(min=1)


def test_scores_of_any_size_are_weighed():
    query, key, value, grad = inputs(1, 2, 2, 40, 32)
    large = (query.detach() * 1000).requires_grad_(), key, value, grad
    expected = exact(*large)[0]
    assert (ours(*large)[0] - expected).abs().max() < 1e-3
    equal = torch.zeros_like(query).requires_grad_(), key, value, grad
    means = value.cumsum(dim=2) / torch.arange(1, 41)[:, None]
    assert (ours(*equal)[0] - means).abs().max() < 1e-6


def test_a_sequence_depends_neither_on_its_neighbours_nor_on_threads():
    many = inputs(4, 2, 2, 50, 32)
    one = [tensor[2:3].detach().requires_grad_() for tensor in many[:3]]
    whole, alone = ours(*many), ours(*one, many[3][2:3])
    torch.set_num_threads(2)
    threaded = ours(*many)
    torch.set_num_threads(1)
    for all_, single, both in zip(whole, alone, threaded, strict=True):
        assert torch.equal(all_[2:3], single)
        assert torch.equal(all_, both)


def test_the_future_is_not_seen():
    query, key, value, _ = inputs(1, 2, 2, 30, 32)
    before = AUTO.attention(query, key, value)
    with torch.no_grad():
        key[:, :, 20:] += 1
        value[:, :, 20:] += 1e6
    after = AUTO.attention(query, key, value)
    assert torch.equal(before[:, :, :20], after[:, :, :20])
    assert (before[:, :, 20:] - after[:, :, 20:]).abs().min() > 1


def test_not_a_number_is_passed_on():
    query, key, value, _ = inputs(1, 2, 2, 30, 32)
    with torch.no_grad():
        query[:, :, 7] = float("nan")
    result = AUTO.attention(query, key, value)
    assert result[:, :, 7].isnan().all() and result[:, :, 8:].isfinite().all()


@imports_compiler
def test_the_tracer_sees_what_the_operators_do():
    query, key, value, grad = inputs(2, 4, 2, 20, 32)
    operators = torch.ops.loopscale
    torch.library.opcheck(operators.causal_attention, (query, key, value))
    with torch.no_grad():
        result, logs = operators.causal_attention(query, key, value)
        given = (query.detach(), key.detach(), value.detach(), result, logs, grad)
        torch.library.opcheck(operators.causal_attention_backward, given)


@imports_compiler
def test_compiled_code_calls_it():
    query, key, value, grad = inputs(2, 4, 2, 20, 32)
    torch.compiler.assume_constant_result(takes_channels)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def doubled(query, key, value):
        return 2 * AUTO.attention(query + 0, key, value)

    result = doubled(query, key, value)
    grads = torch.autograd.grad(result, (query, key, value), grad)
    for found, expected in zip((result, *grads), exact(query, key, value, grad), strict=True):
        assert (found - 2 * expected).abs().max() <= 4e-6 * expected.abs().max().clamp(min=1)


@imports_compiler
def test_executed_flops_are_those_of_the_plain_products():
    query, key, value, grad = inputs(2, 4, 4, 24, 32)
    with FlopCounterMode(display=False) as counter:
        ours(query, key, value, grad)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as plain:
        ours(query, key, value, grad, ReferenceKernels())
    assert counter.get_total_flops() == plain.get_total_flops() > 0


def test_torch_computes_what_the_kernel_does_not():
    query, key, value, grad = (
        tensor.detach() for tensor in inputs(1, 2, 2, 9, 24)
    )  # 24 is no multiple of 16 or 32
    expected = exact(query, key, value, grad)[0]
    assert (AUTO.attention(query, key, value) - expected).abs().max() < 2e-6
    halves = [tensor.bfloat16() for tensor in (query, key, value)]
    assert AUTO.attention(*halves).dtype == torch.bfloat16


def attended():
    """Check that the kernel takes heads of 32 channels, and attend to something with them."""
    drawn = torch.randn(3, 1, 2, 20, 32, generator=torch.Generator().manual_seed(0))
    return takes_channels(32), AUTO.attention(*drawn).sum().item()


def _attend(answers, cache, compiler):
    os.environ |= {"XDG_CACHE_HOME": str(cache), "CXX": str(compiler)}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        answers.send((*attended(), [str(warning.message) for warning in said]))


def tried(cache, compiler, processes):
    """Return the answers of processes that have to compile the kernels at the same time."""
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(processes)]
    for _, theirs in pipes:
        CONTEXT.Process(target=_attend, args=(theirs, cache, compiler)).start()
    assert all(ours.poll(timeout=240) for ours, _ in pipes)
    return [ours.recv() for ours, _ in pipes]


@in_processes
def test_without_a_compiler_torch_computes_and_says_so_once(tmp_path):
    ((takes, found, (said,)),) = tried(tmp_path, "/no/such/compiler", 1)
    assert "without the kernels of model/kernels/cpu" in said and "/no/such/compiler" in said
    compiled, expected = attended()
    assert compiled and not takes
    assert found == pytest.approx(expected, abs=1e-4)


# A compiler that is done when two have started; it leaves the library that was compiled before.
SLOW_COMPILER = """#!/bin/sh
touch {folder}/started.$$
tries=0
while [ $(ls {folder}/started.* | wc -l) -lt 2 ] && [ $tries -lt 600 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
while [ "$1" != -o ]; do shift; done
cp {library} "$2"
"""


@in_processes
def test_processes_that_compile_at_once_leave_one_kernel(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(SLOW_COMPILER.format(folder=tmp_path, library=load()._name))
    compiler.chmod(0o755)
    assert tried(tmp_path, compiler, 2) == [(*attended(), [])] * 2 and attended()[0]
    assert len(list(tmp_path.glob("started.*"))) == 2
    assert [path.suffix for path in (tmp_path / "loopscale").iterdir()] == [".so"]
