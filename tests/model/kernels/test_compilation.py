import pytest
import torch

from model.kernels import autocast, compile_blocks, eager_fallback
from model.kernels.compilation import GRAPHS
from model.kernels.reference import ReferenceKernels
from tests.model.test_transformer import TINY, awake, batch, gradients
from tests.workers import imports_compiler

torch.set_num_threads(1)
# The tracer looks at every input's .grad.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    imports_compiler,
]


@pytest.fixture(scope="module")
def counted():
    from torch._dynamo.testing import CompileCounter  # seconds, which all who collect this file would wait

    torch._dynamo.reset()
    counter = CompileCounter()
    model = awake(TINY, kernels=ReferenceKernels())
    compile_blocks(model.all_blocks(), largest_batch=6, backend=counter)
    yield model, counter
    torch._dynamo.reset()


def test_each_block_shape_is_compiled_once_per_gradient_mode(counted):
    model, counter = counted  # two shapes: with and without a gate
    tokens, labels = batch(TINY, size=6)
    for depths in ([5, 1, 3, 2, 2, 2], [9, 8, 6, 5, 3, 2], [1] * 6, [2] * 4, [7, 1], [4]):
        size = len(depths)
        model.loss(tokens[:size], labels[:size], depths, range(size)).backward()
    model.depth_losses(tokens, labels, 3, range(6))
    model.depth_losses(tokens[:1], labels[:1], 3, range(1))
    assert 0 < counter.frame_count <= 4


def test_compiled_blocks_compute_the_same(counted):
    model, _ = counted
    tokens, labels = batch(TINY)
    plain = awake(TINY, kernels=ReferenceKernels())
    depths, seeds = [5, 1, 3, 2], range(4)
    ours, expected = (m.loss(tokens, labels, depths, seeds) for m in (model, plain))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, expected = gradients(model, ours), gradients(plain, expected)
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_a_document_mask_compiles_and_adds_a_graph_per_gradient_mode(counted):
    model, counter = counted
    before = counter.frame_count
    tokens, labels = batch(TINY)
    documents = torch.arange(16).div(5, rounding_mode="floor").expand(4, -1)
    plain = awake(TINY, kernels=ReferenceKernels())
    inputs = (tokens, labels, [5, 1, 3, 2], range(4))
    ours, expected = (each.loss(*inputs, documents=documents) for each in (model, plain))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    assert 0 < counter.frame_count - before <= 4


def test_every_graph_of_a_run_is_within_the_limit(counted):
    """Training and evaluation, with and without a mask, in float32 and under autocast."""
    model, counter = counted
    tokens, labels = batch(TINY)
    documents = torch.arange(16).div(5, rounding_mode="floor").expand(4, -1)
    for precision in ("float32", "bfloat16"):
        for mask in (None, documents):
            with autocast(torch.device("cpu"), precision):
                model.loss(tokens, labels, [5, 1, 3, 2], range(4), documents=mask).backward()
                model.depth_losses(tokens, labels, 3, range(4), mask)
    assert counter.frame_count <= GRAPHS == torch._dynamo.config.recompile_limit


def test_a_block_that_cannot_be_compiled_is_evaluated_without():
    def refuses(graph, inputs):
        raise RuntimeError("no compiler here")

    torch._dynamo.reset()
    model, plain = (awake(TINY, kernels=ReferenceKernels()) for _ in range(2))
    compile_blocks(model.all_blocks(), largest_batch=4, backend=refuses)
    tokens, labels = batch(TINY)
    with pytest.raises(RuntimeError, match="no compiler here"):
        model.depth_losses(tokens, labels, 2, range(4))
    with pytest.warns(UserWarning, match="evaluated without the compiler"), eager_fallback():
        ours = model.depth_losses(tokens, labels, 2, range(4))
    assert torch.equal(ours, plain.depth_losses(tokens, labels, 2, range(4)))
    torch._dynamo.reset()
