"""Under autocast the matrices of the loop are cast once for all loops, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import ModelConfig
from model.kernels import Workload, autocast, compile_blocks, kernels_for
from model.transformer import LoopedTransformer, build_model
from tests.workers import imports_compiler

torch.set_num_threads(1)
CPU = torch.device("cpu")
CONFIG = ModelConfig(
    width=32, heads=2, prelude_layers=1, core_layers=2, coda_layers=1, vocabulary_size=64, sequence_length=16
)
CASTS = (torch.ops.aten._to_copy.default, torch.ops.prims.convert_element_type.default)
ARE_MADE = 2 * 4 + 1  # joint matrix, its merge and the two of the MLP, of two blocks; one gate


class Counting(TorchDispatchMode):
    """Count the casts of matrices to bfloat16 that have the shapes of a block's."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.count, self._shapes = 0, shapes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CASTS and kwargs.get("dtype") is torch.bfloat16 and args[0].shape in self._shapes:
            self.count += 1
        return func(*args, **kwargs)


def model_with_weights() -> LoopedTransformer:
    kernels = kernels_for("reference", Workload(config=CONFIG, device="cpu"))
    model = build_model(CONFIG, seed=0, kernels=kernels)
    for name, parameter in model.named_parameters():
        if "proj" in name:  # else the blocks are the identity
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def loss(model: LoopedTransformer, depth: int, precision: str = "bfloat16") -> torch.Tensor:
    tokens = torch.arange(3 * 16).view(3, 16) % 64
    with autocast(CPU, precision):
        return model.loss(tokens, tokens.roll(1), [depth] * 3, [0, 1, 2])


def core_shapes(model: LoopedTransformer) -> set[torch.Size]:
    return {matrix.shape for block in model.core_blocks() for _, matrix in block.matrices()}


@pytest.mark.parametrize("depth", [1, 9])
def test_the_loop_casts_no_matrix(depth):
    model = model_with_weights()
    with Counting(core_shapes(model)) as counting:
        loss(model, depth)
    blocks = 2 * 4 + sum(block.attn.ve_gate is not None for block in (*model.prelude, *model.coda))
    injection_and_readout = 2
    assert counting.count == ARE_MADE + blocks + injection_and_readout


def test_nothing_is_cast_in_float32_and_nothing_stays():
    model = model_with_weights()
    with Counting(core_shapes(model)) as counting:
        loss(model, 9, "float32")
    assert counting.count == 0
    loss(model, 9)
    assert all(module.cast is None for block in model.core_blocks() for module, _ in block.matrices())


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_gradient_is_that_of_float32_to_rounding(recomputed):
    gradients = {}
    for precision in ("float32", "bfloat16"):
        model = model_with_weights()
        model.checkpoint_loops = recomputed
        loss(model, 6, precision).backward()
        gradients[precision] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients["float32"].keys() == gradients["bfloat16"].keys()
    for name, exact in gradients["float32"].items():
        assert (gradients["bfloat16"][name] - exact).norm() < 0.03 * exact.norm(), name


@imports_compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # raised inside torch
def test_the_compiled_loop_casts_no_matrix():
    model, graphs = model_with_weights(), []
    compile_blocks(model.core_blocks(), largest_batch=3, backend=traced(graphs))
    loss(model, 9).backward()
    assert len(graphs) == 4  # with a gate or without, with gradient or without
    for graph in graphs:
        cast = [
            node
            for node in graph.nodes
            if node.target in CASTS
            and node.args[0].op == "placeholder"
            and node.args[0].meta["val"].ndim == 2
        ]
        assert cast == []


@imports_compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # raised inside torch
def test_compiled_loops_are_recomputed_to_the_same_gradient():
    gradients = []
    for recomputed in (False, True):
        model = model_with_weights()
        model.checkpoint_loops = recomputed
        compile_blocks(model.core_blocks(), largest_batch=3, backend="aot_eager")
        loss(model, 6).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, kept in gradients[0].items():
        # Recomputed, the gradients of loops are added up in float32.
        assert (gradients[1][name] - kept).norm() < 0.01 * kept.norm(), name


def traced(graphs: list[torch.fx.Graph]) -> Callable[..., Any]:
    """Return a compiler that keeps the forward graphs, as inductor is given them, and runs them eagerly."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def forward(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(module.graph)
        return make_boxed_func(module.forward)

    return aot_autograd(
        fw_compiler=forward,
        inference_compiler=forward,
        bw_compiler=lambda module, inputs: make_boxed_func(module.forward),
    )
