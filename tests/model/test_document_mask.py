"""Attention within documents: a packed sequence gives each document what it gets alone."""

from __future__ import annotations

import pytest
import torch

from model.config import ModelConfig
from model.layers import document_mask
from model.transformer import build_model

LENGTHS = [5, 1, 9, 3]  # of the documents in a sequence
SIZES = {"width": 32, "heads": 2, "vocabulary_size": 50, "sequence_length": 18}


def test_a_token_sees_itself_and_what_is_before_it_in_its_document():
    mask = document_mask(torch.tensor([[0, 0, 1, 1]]))
    assert mask.int().tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]]


def built(kind):
    if kind == "transformer":
        sizes = {"prelude_layers": 3, "core_layers": 0, "coda_layers": 0}
    else:
        # A drawn first state differs from place to place: with none, a document knows nothing of its place.
        sizes = {"prelude_layers": 1, "core_layers": 2, "coda_layers": 1, "mean_recurrence": 3}
        sizes["state_init"] = "zero"
    config = ModelConfig(kind=kind, **SIZES, **sizes)
    model = build_model(config, seed=0)
    with torch.no_grad():  # output projections start at zero: give every path something to say
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.double()


@pytest.mark.parametrize("kind", ["transformer", "looped"])
def test_packed_documents_are_computed_as_each_alone(kind):
    model = built(kind)
    tokens = torch.randint(50, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    labels = torch.roll(tokens, 1, dims=1)
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS)).expand(2, -1)
    depths = [2, 4]  # the second joins the loop first: the sequences change places
    packed = model.loss(tokens, labels, depths, [0, 0], reduction="sum", documents=documents)
    packed.backward()
    gradient = model.prelude[0].attn.c_k.weight.grad.clone()
    model.zero_grad()
    alone = torch.zeros(())
    for row, depth in enumerate(depths):
        for part, of in zip(tokens[row].split(LENGTHS), labels[row].split(LENGTHS), strict=True):
            alone = alone + model.loss(part[None], of[None], [depth], [0], reduction="sum")
    alone.backward()
    assert packed.item() == pytest.approx(alone.item(), rel=1e-6)  # the sum is kept in float32
    apart = model.prelude[0].attn.c_k.weight.grad
    assert (gradient - apart).norm() < 1e-5 * apart.norm()  # logits are float32
    together = model.loss(tokens, labels, depths, [0, 0], reduction="sum")
    assert abs(together - packed) > 1e-3  # without the mask documents do see each other
    curve = model.depth_losses(tokens, labels, 4, [0, 0], documents)
    torch.testing.assert_close(
        curve[depths[0] - 1, 0] + curve[depths[1] - 1, 1], packed.detach(), rtol=1e-6, atol=0
    )
