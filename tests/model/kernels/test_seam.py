"""One seam for kernels: all implementations agree, one is chosen by name, nothing outside asks which."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import loopscale
from model.config import ModelConfig
from model.config_validation import ConfigError
from model.kernels import AUTO, Context, LoopInputs, Workload, kernels_for, name_in_use, summed_nats
from model.layers import Block, rotary_table
from tests.model.test_transformer import awake, gradients

ROOT = Path(__file__).resolve().parents[3]
torch.set_num_threads(1)
CONFIG = ModelConfig(
    width=64,
    heads=2,
    prelude_layers=1,
    core_layers=2,
    coda_layers=1,
    vocabulary_size=96,
    sequence_length=40,
)
WORKLOAD = Workload(config=CONFIG, device="cpu")
NAMES = ["reference", "cpu"]


@pytest.fixture(params=NAMES)
def kernels(request):
    return kernels_for(request.param, WORKLOAD)


def normal(*shape, seed=0, double=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (x.double() if double else x).requires_grad_()


def near(found, expected, tolerance=5e-6):
    for ours, exact in zip(found, expected, strict=True):
        assert (ours - exact).norm() <= tolerance * exact.norm().clamp(min=1)


def test_attention_is_that_of_float64(kernels):
    def computed(double):
        query = normal(2, 4, 33, 32, double=double)
        key, value = (normal(2, 2, 33, 32, seed=seed, double=double) for seed in (1, 2))
        if double:
            result = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        else:
            result = kernels.attention(query, key, value)
        return result, *torch.autograd.grad(result.square().sum(), (query, key, value))

    near(computed(double=False), computed(double=True))


@pytest.mark.parametrize("gated", [True, False])
def test_a_block_is_that_of_float64(kernels, gated):
    def computed(double):
        block = Block(CONFIG, gated, kernels)
        for seed, parameter in enumerate(block.parameters()):
            parameter.data = 0.3 * normal(*parameter.shape, seed=seed).detach()
        block = block.double() if double else block
        x, rows = (normal(3, 40, 64, seed=seed, double=double) for seed in (20, 21))
        rope = rotary_table(40, CONFIG.head_dim, 50_000.0)
        result = block(x, rope.double() if double else rope, rows if gated else None)
        given = (x, *([rows] if gated else []), *block.parameters())
        return result, *torch.autograd.grad(result.square().sum(), given)

    near(computed(double=False), computed(double=True))


def test_loops_without_gradient_are_those_taken_one_by_one(kernels):
    model = awake(CONFIG, kernels=kernels)
    first, drive = (normal(3, 40, 64, seed=seed) for seed in (1, 2))
    rows = {layer: normal(3, 40, 64, seed=layer).detach() for layer in (1, 2)}
    inputs = LoopInputs(
        first=first,
        drive=drive,
        carry=torch.full((64,), 0.5),
        context=Context(rope=model.rope, value_rows=rows),
    )
    states = kernels.loops(model, inputs, [5, 2, 1])
    assert not states.requires_grad
    for index, count in enumerate([5, 2, 1]):
        exact = awake(CONFIG).double()
        one = {layer: value[index : index + 1].double() for layer, value in rows.items()}
        context = Context(rope=model.rope.double(), value_rows=one)
        state = first[index : index + 1].double()
        for _ in range(count):
            state = exact.loop_once(state, drive[index : index + 1].double(), inputs.carry.double(), context)
        near([states[index : index + 1]], [state])


def test_cross_entropy_is_that_of_float64(kernels):
    labels = torch.arange(300) % 96
    labels[::7] = -100
    x, head = normal(300, 64), normal(96, 64, seed=1)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, head)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, labels, ignore_index=-100, reduction="none")
    loss = summed_nats(x, head, labels, kernels)
    near(
        [loss, *torch.autograd.grad(loss, (x, head))],
        [expected.sum(), *torch.autograd.grad(expected.sum(), exact)],
    )
    near([kernels.token_nats(x, head, labels)], [expected])
    nats, hits = kernels.token_scores(x, head, labels.clamp(min=0))
    near([nats[labels >= 0]], [expected[labels >= 0]])
    assert torch.equal(hits, (x @ head.T).argmax(dim=1) == labels.clamp(min=0))


@pytest.mark.parametrize("fields", [{}, {"mlp": "swiglu"}, {"kv_heads": 1, "injection": "linear"}], ids=str)
def test_a_model_learns_the_same_with_each(fields):
    config = replace(CONFIG, **fields)
    tokens = torch.randint(96, (4, 40), generator=torch.Generator().manual_seed(0))
    found = []
    for name in NAMES:
        model = awake(config, kernels=kernels_for(name, WORKLOAD))
        loss = model.loss(tokens, tokens, [5, 1, 3, 2], range(4))
        found.append({"loss": loss.detach()} | gradients(model, loss))
    for name, expected in found[0].items():
        assert (found[1][name] - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cuda"}, "they run on a CPU, this run is on cuda"),
        ({"precision": "bfloat16"}, "they compute in float32, this run in bfloat16"),
        ({"config": replace(CONFIG, width=60, heads=6)}, "heads of 10 channels"),
    ],
)
def test_kernels_that_cannot_be_used_are_an_error_only_where_they_are_asked_for(changes, reason):
    workload = replace(WORKLOAD, **changes)
    with pytest.raises(ConfigError, match=f"^training.kernels=cpu: .*{reason}.*; use auto or reference$"):
        kernels_for("cpu", workload)
    assert name_in_use(kernels_for("auto", workload), workload) == "reference"
    assert name_in_use(AUTO, WORKLOAD) == "cpu"


@pytest.mark.parametrize(("choice", "ran"), [("auto", "cpu"), ("cpu", "cpu"), ("reference", "reference")])
def test_the_record_says_which_ran_and_the_run_id_does_not(tiny, choice, ran, monkeypatch):
    if choice == "reference":
        monkeypatch.setattr("model.kernels.cpu.library.load", forbidden)
        monkeypatch.setattr("model.kernels.cpu.library.failure", forbidden)
        monkeypatch.setattr("model.kernels.cpu.library.columns", forbidden)
    settings = ["model.width=64", "model.heads=2", "tokens=640", f"training.kernels={choice}"]
    record = loopscale.train([*tiny, *settings])
    assert record["kernels"] == ran
    assert record["run_id"] == loopscale.train([*tiny, *settings[:-1]])["run_id"]


def forbidden(*_):
    raise AssertionError("the reference needs no C++")


DETAILS = re.compile(
    r"is_fused|has_kernel|can_score|can_fuse|\bfuses|\bfused_|ctypes|\bCXX\b|largest_width|loops_as_one|"
    r"\blibrary\.columns|flash_sdp|(?:from|import) model\.kernels\.\w|model import kernels|mallopt"
)


def test_nothing_outside_the_kernels_knows_which_there_are():
    for room in ("model", "harness", "sweeps", "analysis"):
        for path in (ROOT / room).rglob("*.py"):
            if "kernels" not in path.relative_to(ROOT).parts:
                assert not DETAILS.findall(path.read_text()), path
