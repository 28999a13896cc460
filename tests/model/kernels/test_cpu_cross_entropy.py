"""Cross-entropy as one operator against torch's in float64."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from model.kernels import AUTO, summed_nats
from model.kernels.cpu.cross_entropy import scored, takes_head
from model.kernels.reference import ReferenceKernels
from tests.workers import imports_compiler

torch.set_num_threads(1)


def drawn(tokens, width, vocabulary, scale=1.0):
    generator = torch.Generator().manual_seed(3)
    x = (scale * torch.randn(tokens, width, generator=generator)).requires_grad_()
    head = torch.randn(vocabulary, width, generator=generator).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    labels[::5] = -100
    return x, head, labels


# Around the edges of tiles (6 or 12 tokens) and of chunks (96 tokens); logits of some 20, and 130.
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", [(1, 32, 32), (7, 64, 96), (97, 128, 1024), (500, 32, 64)], ids=str)
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_nats_and_gradients_are_those_of_float64(case, scale, threads):
    x, head, labels = drawn(*case, scale=scale)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, head)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, labels, reduction="none", ignore_index=-100)
    torch.set_num_threads(threads)
    assert takes_head(x, head)
    loss = summed_nats(x, head, labels, AUTO)
    found = torch.autograd.grad(3 * loss, (x, head))
    torch.set_num_threads(1)
    assert loss.item() == pytest.approx(expected.sum().item(), rel=1e-6, abs=1e-6)
    for gradient, wanted in zip(found, torch.autograd.grad(3 * expected.sum(), exact), strict=True):
        assert (gradient - wanted).norm() <= 1e-5 * wanted.norm().clamp(min=1)
    torch.testing.assert_close(AUTO.token_nats(x, head, labels).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_sum_does_not_depend_on_threads_even_where_they_wait_for_a_core(gradients):
    x, head, labels = drawn(1500, 64, 256)
    alone = scored(x, head, labels, gradients=gradients)
    torch.set_num_threads(7)
    together = [scored(x, head, labels, gradients=gradients) for _ in range(20)]
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for again in together for a, b in zip(alone, again, strict=True))


def test_not_a_number_is_passed_on_and_a_label_beyond_the_vocabulary_refused():
    x, head, labels = drawn(20, 32, 32)
    with torch.no_grad():
        x[3, 5] = float("nan")
    nats, grad_x, grad_head = scored(x, head, labels, gradients=True)
    assert nats.isnan().nonzero().tolist() == [[3]]
    assert grad_x[3].isnan().all() and grad_x[:3].isfinite().all() and grad_head.isnan().any()
    for label in (32, -1):
        labels[4] = label
        with pytest.raises(IndexError, match=f"label {label} is not in a vocabulary of 32 tokens"):
            summed_nats(x, head, labels, AUTO)


@imports_compiler
def test_executed_flops_are_those_of_the_plain_products():
    x, head, labels = drawn(100, 32, 64)
    counts = []
    assert takes_head(x, head)
    for kernels in (AUTO, ReferenceKernels()):
        with FlopCounterMode(display=False) as counter:
            summed_nats(x, head, labels, kernels).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 100 * 32 * 64


def test_torch_scores_what_the_operator_does_not():
    x, head, _ = drawn(4, 32, 32)
    assert takes_head(x, head)
    assert not takes_head(x, torch.zeros(40, 32))
    assert not takes_head(x, torch.zeros(2**14, 32))  # its logits would leave the caches
    assert not takes_head(x.double(), head.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not takes_head(x, head)
