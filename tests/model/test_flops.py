import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.depth import draw_depths, expected_depths
from model.flops import executed_flops, flops_per_token, parameter_counts
from model.kernels.reference import ReferenceKernels
from model.transformer import LoopedTransformer, build_model
from tests.model.masked import masked_loss
from tests.model.test_transformer import TINY
from tests.workers import imports_compiler

torch.set_num_threads(1)


def published(layers, width, heads, mean=8, kind="looped"):
    parts = {"prelude_layers": layers, "core_layers": layers, "coda_layers": layers}
    if kind == "transformer":
        parts = {"prelude_layers": 3 * layers, "core_layers": 0, "coda_layers": 0}
    return ModelConfig(
        kind=kind,
        width=width,
        heads=heads,
        vocabulary_size=32_768,
        sequence_length=2048,
        mean_recurrence=mean,
        **parts,
    )


SIZES = {"140M": (2, 768, 6), "370M": (4, 1024, 8), "770M": (6, 1280, 10), "1.3B": (8, 1536, 12)}
PRINTED_PARAMETERS = [
    ("140M", "transformer", 143_141_184),
    ("370M", "transformer", 385_903_104),
    ("770M", "transformer", 773_375_040),
    ("1.3B", "transformer", 1_333_868_544),
    ("140M", "looped", 144_323_136),
    ("370M", "looped", 388_003_328),
    ("770M", "looped", 776_655_680),
    ("1.3B", "looped", 1_338_591_744),
]


@pytest.mark.parametrize(("size", "kind", "printed"), PRINTED_PARAMETERS)
def test_parameters_of_the_published_sizes(size, kind, printed):
    config = published(*SIZES[size], kind=kind)
    assert parameter_counts(config).total == printed
    model = build_model(config, seed=0, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == printed


@settings(max_examples=40, deadline=None)
@given(
    heads=st.sampled_from([(2, 2), (4, 2), (4, 1)]),
    layers=st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 3)),
    mlp=st.sampled_from(["relu2", "swiglu"]),
    injection=st.sampled_from(["diagonal", "linear", "add"]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    wiring=st.sampled_from(["matched", "published"]),
)
def test_counted_parts_are_those_of_the_built_model(heads, layers, mlp, injection, flags, wiring):
    config = ModelConfig(
        width=48,
        heads=heads[0],
        kv_heads=heads[1],
        mlp=mlp,
        prelude_layers=layers[0],
        core_layers=layers[1],
        coda_layers=layers[2],
        vocabulary_size=64,
        sequence_length=8,
        injection=injection,
        prelude_norm=flags[0],
        readout=flags[1],
        value_embeddings=flags[2],
        value_embedding_wiring=wiring,
        mean_recurrence=3,
    )
    model = build_model(config, seed=0, device="meta")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counts = parameter_counts(config)
    assert counts.total == sum(sizes.values())
    assert counts.embedding == sizes["embedding"]
    assert counts.core == sum(size for name, size in sizes.items() if name.startswith("core."))
    tables = sum(size for name, size in sizes.items() if name.startswith("value_tables."))
    assert counts.value_embedding == tables
    assert counts.embedding + counts.value_embedding + counts.core + counts.other == counts.total


MEANS = [1, 2, 4, 6, 8, 10, 12]
PRINTED_MFLOPS = [
    ("140M", "released", [828.2, 869.1, 1032.7, 1196.3, 1359.9, 1523.5, 1687.1]),
    ("140M", "paper", [526.2, 567.1, 730.7, 894.3, 1057.9, 1221.5, 1385.1]),
    ("370M", "released", [2428.7, 2562.9, 3099.9, 3636.8, 4173.7, 4710.7, 5247.6]),
    ("370M", "paper", [1422.1, 1556.3, 2093.2, 2630.2, 3167.1, 3704.0, 4241.0]),
]


@pytest.mark.parametrize(("size", "accounting", "printed"), PRINTED_MFLOPS)
def test_flops_per_token_of_the_published_grid(size, accounting, printed):
    configs = [published(*SIZES[size], mean=mean) for mean in MEANS]
    found = [
        flops_per_token(c, accounting).at(c.mean_recurrence, c.resolved_backprop_depth) / 1e6 for c in configs
    ]
    assert [round(value, 1) for value in found] == printed


def test_flops_per_token_of_the_published_transformers():
    flops = [flops_per_token(published(*SIZES[s], kind="transformer"), "released") for s in ("140M", "370M")]
    assert [round(f.at(1, 1) / 1e6, 1) for f in flops] == [821.1, 2416.1]
    assert all(f.per_loop == f.per_backprop_loop == 0 for f in flops)


def test_an_unknown_accounting_is_refused():
    with pytest.raises(ValueError, match="accounting must be paper or released, got 'kaplan'"):
        flops_per_token(TINY, "kaplan")


# Matrix products and attention, both passes, as torch itself counts them while it computes.
COUNTED = replace(TINY, width=128, heads=4, vocabulary_size=512, sequence_length=32)


def counted_flops(config, depths, loss=LoopedTransformer.loss, checkpoint_loops=False):
    model = build_model(config, seed=0, kernels=ReferenceKernels())
    model.checkpoint_loops = checkpoint_loops
    tokens = torch.zeros(len(depths), config.sequence_length, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss(model, tokens, tokens, depths, range(len(depths))).backward()
    return counter.get_total_flops()


def counted_by_depth(config, deepest):
    """Count one sequence at every depth; beyond the loops with gradient, each adds the same."""
    limit = config.resolved_backprop_depth
    counts = [counted_flops(config, [depth]) for depth in range(1, limit + 3)]
    for _ in range(limit + 2, deepest):
        counts.append(2 * counts[-1] - counts[-2])
    return counts


CONTROLS = [("fixed", 1), ("poisson", 1), ("poisson", 2), ("poisson", 4), ("poisson", 8), ("poisson", 12)]


@imports_compiler
@pytest.mark.parametrize(("sampling", "mean"), CONTROLS)
def test_executed_flops_are_the_expected_ones(sampling, mean):
    config = replace(COUNTED, depth_sampling=sampling, mean_recurrence=mean)
    batches = [draw_depths(config, seed=0, step=step, batch=8).tolist() for step in range(1000)]
    counts = counted_by_depth(config, max(map(max, batches)))
    assert counted_flops(config, batches[0]) == sum(counts[depth - 1] for depth in batches[0])
    tokens = config.sequence_length
    executed = np.mean([counts[depth - 1] for depths in batches for depth in depths]) / tokens
    expected = flops_per_token(config, "paper").at(*expected_depths(config))
    assert executed == pytest.approx(expected, rel=0.01)
    ours = sum(executed_flops(config, depths, tokens) for depths in batches) / (8000 * tokens)
    assert ours == pytest.approx(executed, rel=0.005)


@imports_compiler
def test_the_masked_form_spends_what_it_throws_away():
    config, depths = replace(COUNTED, mean_recurrence=8), [4, 9, 6, 14, 8, 8, 7, 8]
    counts = counted_by_depth(config, 14)
    masked = counted_flops(config, depths, masked_loss)
    assert masked == 8 * counts[14 - 1]  # all to the deepest
    assert masked > 1.2 * sum(counts[depth - 1] for depth in depths)


@imports_compiler
def test_recomputed_loops_cost_one_more_forward_pass_each():
    config = replace(COUNTED, mean_recurrence=2)
    once, twice = (counted_flops(config, [depth]) for depth in (2, 3))
    last_product = 2 * 32 * 128 * 512  # nothing needs its result again
    extra = counted_flops(config, [3], checkpoint_loops=True) - twice
    assert extra == (twice - once) - last_product


@imports_compiler
def test_linear_injection_is_charged_at_every_loop():
    config = replace(COUNTED, injection="linear", mean_recurrence=4)
    found = counted_flops(config, [4, 4])
    assert executed_flops(config, [4, 4], 32) == pytest.approx(found, rel=0.01)


def test_planning_never_imports_torch():
    code = "import sys, model.config, model.flops, model.depth; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
