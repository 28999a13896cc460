"""The looped transformer: prelude, a core that each sequence runs through as often as its own depth, coda.

First weights and states are drawn from counters: no global random state is read or moved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig, gated_layers, value_table_layers
from model.depth import counter_seed
from model.injection import INITIAL_STEP, build_injection, first_states, initial_std
from model.kernels import AUTO, IGNORE, Context, Kernels, LoopInputs, run_loops, summed_nats
from model.layers import Block, Linear, RMSNorm, cast_once, document_mask, rotary_table


class LoopedTransformer(nn.Module):
    """Run the looped model of arXiv 2604.12946; a plain transformer is a prelude alone.

    A sequence's result depends on its tokens, its depth and its state seed, never on its neighbours in the
    batch. Sequences stand from deepest to shallowest and join the loop so that all of them leave it together
    (Algorithm 2); a loop computes those that have joined, nothing else.
    """

    rope: Tensor

    def __init__(self, config: ModelConfig, kernels: Kernels = AUTO) -> None:
        super().__init__()
        self.config, self.kernels = config, kernels
        self.checkpoint_loops = False  # recompute the activations of each loop in the backward pass
        width, gated = config.width, gated_layers(config)
        self.first_layer = config.prelude_layers  # of the core
        blocks = [Block(config, layer in gated, kernels) for layer in range(config.layers)]
        core, coda = config.prelude_layers, config.prelude_layers + config.core_layers
        self.embedding = nn.Parameter(torch.empty(config.vocabulary_size, width))
        table = (config.vocabulary_size, config.kv_width)
        self.value_tables = nn.ParameterDict(
            {str(layer): torch.empty(table) for layer in value_table_layers(config)}
        )
        self.prelude = nn.ModuleList(blocks[:core])
        self.core = nn.ModuleList(blocks[core:coda])
        self.coda = nn.ModuleList(blocks[coda:])
        self.final_norm = RMSNorm(width, config.norm_eps)
        if config.kind == "looped":
            self.prelude_norm = RMSNorm(width, config.norm_eps) if config.prelude_norm else nn.Identity()
            self.injection = build_injection(config)
            self.readout = Linear(width, width) if config.readout else nn.Identity()
        rope = rotary_table(config.sequence_length, config.head_dim, config.rope_theta)
        self.register_buffer("rope", rope, persistent=False)

    def loss(
        self,
        tokens: Tensor,
        labels: Tensor,
        depths: Sequence[int],
        state_seeds: Sequence[int],
        reduction: Literal["mean", "sum"] = "mean",
        documents: Tensor | None = None,
    ) -> Tensor:
        """Return the nats of the labels, averaged or summed over those that are not -100.

        tokens and labels are [B, L], label i belonging to token i; depths and state_seeds have one entry per
        sequence. documents [B, L] keeps attention within tokens of the same number. Only the last
        `backprop_depth` loops of a sequence carry gradient.
        """
        order = self._order(depths, len(tokens))
        x = self._final(tokens, depths, state_seeds, order, documents)
        labels = labels if order is None else labels[order]
        nats = summed_nats(x.flatten(0, 1), self.embedding, labels.flatten(), self.kernels)
        return nats if reduction == "sum" else nats / (labels != IGNORE).sum().clamp(min=1)

    @torch.no_grad()
    def logits(self, tokens: Tensor, depths: Sequence[int], state_seeds: Sequence[int]) -> Tensor:
        """Return the logits [B, L, V] of tokens [B, L], each sequence at its own depth."""
        order = self._order(depths, len(tokens))
        x = self._final(tokens, depths, state_seeds, order)
        if order is not None:
            x = torch.empty_like(x).index_copy_(0, torch.tensor(order, device=x.device), x)
        return F.linear(x, self.embedding)

    @torch.no_grad()
    def depth_losses(
        self,
        tokens: Tensor,
        labels: Tensor,
        depths_max: int,
        state_seeds: Sequence[int],
        documents: Tensor | None = None,
    ) -> Tensor:
        """Return the summed nats [depths_max, B] of each sequence at depths 1, 2, ..., all from one pass."""
        x, context = self._embed(tokens, documents)
        x = self._blocks(self.prelude, 0, x, context)
        if self.config.kind == "transformer":
            return self._sequence_nats(x, labels).expand(depths_max, -1)
        drive, carry = self.injection.prepare(self.prelude_norm(x))
        state = self._first_states(state_seeds, x)
        nats = []
        with cast_once(self.core_blocks()):
            for _ in range(depths_max):
                state = self.loop_once(state, drive, carry, context)
                nats.append(self._sequence_nats(self._after_loop(state, context), labels))
        return torch.stack(nats)

    def _order(self, depths: Sequence[int], batch: int) -> list[int] | None:
        """Return the sequences from deepest to shallowest; None if they are in that order already."""
        if self.config.kind == "transformer":
            return None
        if len(depths) != batch or min(depths) < 1:
            raise ValueError(f"expected {batch} depths of at least 1, one per sequence, got {list(depths)}")
        order = sorted(range(batch), key=lambda i: -depths[i])
        return None if order == list(range(batch)) else order

    def _final(
        self,
        tokens: Tensor,
        depths: Sequence[int],
        seeds: Sequence[int],
        order: list[int] | None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Return the final norm's output [B, L, d] of the sequences in this order."""
        if order is not None:
            tokens = tokens[order]
            documents = None if documents is None else documents[order]
            depths, seeds = [depths[i] for i in order], [seeds[i] for i in order]
        x, context = self._embed(tokens, documents)
        x = self._blocks(self.prelude, 0, x, context)
        if self.config.kind == "looped":
            x = self._after_loop(self._loop(x, context, depths, seeds), context)
        return self.final_norm(x)

    def _embed(self, tokens: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Context]:
        rows = {int(layer): F.embedding(tokens, table) for layer, table in self.value_tables.items()}
        mask = None if documents is None else document_mask(documents)
        context = Context(rope=self.rope[: tokens.shape[1]], value_rows=rows, mask=mask)
        return F.embedding(tokens, self.embedding), context

    def _blocks(self, blocks: nn.ModuleList, first_layer: int, x: Tensor, context: Context) -> Tensor:
        for layer, block in enumerate(blocks, start=first_layer):
            x = block(x, context.rope, context.value_rows.get(layer), context.mask)
        return x

    def _loop(self, x: Tensor, context: Context, depths: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Run sequences of descending depths through the core, the last loops with gradient."""
        drive, carry = self.injection.prepare(self.prelude_norm(x))
        inputs = LoopInputs(
            first=self._first_states(seeds, x), drive=drive, carry=carry, context=self._core_only(context)
        )
        with_gradient = self.config.resolved_backprop_depth if torch.is_grad_enabled() else 0
        without = [depth - with_gradient for depth in depths if depth > with_gradient]
        rest = [min(depth, with_gradient) for depth in depths]
        state = inputs.first[:0]
        with cast_once(self.core_blocks()):
            if without:
                state = self.kernels.loops(self, inputs.leading(len(without)), without)
            if not self.checkpoint_loops:
                return run_loops(self.loop_once, inputs, rest, state)
        return run_loops(self._recomputed_loop, inputs, rest, state)

    def _core_only(self, context: Context) -> Context:
        core = range(self.first_layer, self.first_layer + len(self.core))
        rows = {layer: context.value_rows[layer] for layer in core if layer in context.value_rows}
        return replace(context, value_rows=rows)

    def all_blocks(self) -> list[Block]:
        """Return the blocks in the order of the layers."""
        return [*self.prelude, *self.core, *self.coda]

    def core_blocks(self) -> list[Block]:
        """Return the blocks of the core."""
        return list(self.core)

    def loop_once(self, state: Tensor, drive: Tensor, carry: Tensor, context: Context) -> Tensor:
        """Map the states [B, L, d] by one loop: the injection, then the core."""
        state = self.injection.mix(state, drive, carry)
        return self._blocks(self.core, self.first_layer, state, context)

    def _recomputed_loop(self, *inputs: Any) -> Tensor:
        def loop(*inputs: Any) -> Tensor:
            with cast_once(self.core_blocks()):  # here, so that it is computed again in the same way
                return self.loop_once(*inputs)

        state: Tensor = checkpoint(loop, *inputs, use_reentrant=False, preserve_rng_state=False)
        return state

    def _after_loop(self, state: Tensor, context: Context) -> Tensor:
        stream = self.readout(state).to(state.dtype)  # autocast would leave the residual stream in bfloat16
        return self._blocks(self.coda, self.first_layer + len(self.core), stream, context)

    def _first_states(self, seeds: Sequence[int], x: Tensor) -> Tensor:
        return first_states(self.config.state_init, seeds, x)

    def _sequence_nats(self, x: Tensor, labels: Tensor) -> Tensor:
        x = self.final_norm(x).flatten(0, 1)
        return self.kernels.token_nats(x, self.embedding, labels.flatten()).view(labels.shape).sum(dim=1)


def build_model(
    config: ModelConfig, *, seed: int | None, device: torch.device | str = "cpu", kernels: Kernels = AUTO
) -> LoopedTransformer:
    """Return the model with its first weights: equal seeds, equal bits; no global random state moves.

    With `seed=None` the weights have any value, for a caller that loads them: orthogonal ones take long.
    """
    with torch.device(device):
        model = LoopedTransformer(config, kernels)
    if seed is not None and torch.device(device).type != "meta":
        initialise(model, config.width, seed)
    return model


def model_from_weights(config: ModelConfig, weights: Mapping[str, Tensor]) -> LoopedTransformer:
    """Return the model that takes over these weights, one for each of its parameters, without a copy."""
    model = build_model(config, seed=None, device="meta")
    model.load_state_dict(dict(weights), assign=True)
    model.rope = rotary_table(config.sequence_length, config.head_dim, config.rope_theta)
    return model


@torch.no_grad()
def initialise(model: nn.Module, width: int, seed: int) -> None:
    """Set every parameter as published ("scaled-zero", orthogonal); each depends on (seed, its name) alone.

    Output projections start at 0, so that every block starts as the identity.
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(counter_seed("weights", seed, name))
        parameter.copy_(_first_value(name, parameter, width, generator))


def _first_value(name: str, parameter: Tensor, width: int, generator: torch.Generator) -> Tensor:
    shape, device = parameter.shape, parameter.device
    leaf = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if leaf == "dt_bias":
        return torch.full(shape, math.log(math.expm1(INITIAL_STEP)))
    if leaf == "A_log" or leaf in ("c_proj", "proj"):
        return torch.zeros(shape)
    if leaf == "B":
        return torch.eye(width)
    if parameter.ndim == 1:
        return torch.ones(shape)
    if name.startswith("value_tables."):
        return torch.randn(shape, generator=generator)
    if leaf == "ve_gate":
        bound = 1 / math.sqrt(shape[1])
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    gain = initial_std(width) * math.sqrt(max(shape))
    return gain * _orthogonal(torch.randn(shape, generator=generator).to(device))


def _orthogonal(gaussian: Tensor) -> Tensor:
    """Orthonormalise the shorter side of a Gaussian matrix, uniformly over such matrices."""
    tall = gaussian if gaussian.shape[0] >= gaussian.shape[1] else gaussian.T
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    return q if tall is gaussian else q.T
