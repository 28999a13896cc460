"""The looped transformer: prelude, a core that each sequence runs through as often as its own depth, coda."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from model.cross_entropy import IGNORE, summed_nats, token_nats
from model.initialise import first_states, initialise
from model.injection import build_injection
from model.kernels.cpu.loops import fused_loops, suits_threads
from model.layers import Block, Linear, RMSNorm, document_mask, rotary_table
from model.value_embedding_layers import gated_layers, value_table_layers

# What blocks read beside the stream. Layer -> its value-embedding rows of the batch's tokens [B, L, kv d];
# MASK -> which token looks at which [B, 1, L, L], where that is not simply all before it.
Rows = dict[int, Tensor]
MASK = -1


class LoopedTransformer(nn.Module):
    """Run the looped model of arXiv 2604.12946; a plain transformer is a prelude alone.

    A sequence's result depends on its tokens, its depth and its state seed, never on its neighbours in the
    batch. Sequences stand from deepest to shallowest and join the loop so that all of them leave it together
    (Algorithm 2); a loop computes those that have joined, nothing else.
    """

    rope: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.loops_as_one = True  # where there is an operator for the loops without gradient
        self.checkpoint_loops = False  # recompute the activations of each loop in the backward pass
        width, gated = config.width, gated_layers(config)
        self._in_core = range(config.prelude_layers, config.prelude_layers + config.core_layers)
        blocks = [Block(config, gated=layer in gated) for layer in range(config.layers)]
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
        """Give the nats of the labels, averaged or summed over those that are not -100.

        tokens and labels are [B, L], label i belonging to token i; depths and state_seeds have one entry per
        sequence. documents [B, L] keeps attention within tokens of the same number. Only the last
        `backprop_depth` loops of a sequence carry gradient.
        """
        order = self._order(depths, len(tokens))
        x = self._final(tokens, depths, state_seeds, order, documents)
        labels = labels if order is None else labels[order]
        nats = summed_nats(x.flatten(0, 1), self.embedding, labels.flatten())
        return nats if reduction == "sum" else nats / (labels != IGNORE).sum().clamp(min=1)

    @torch.no_grad()
    def logits(self, tokens: Tensor, depths: Sequence[int], state_seeds: Sequence[int]) -> Tensor:
        """Give the logits [B, L, V] of tokens [B, L], each sequence at its own depth."""
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
        """Give the summed nats [depths_max, B] of each sequence at depths 1, 2, ..., all from one pass."""
        x, rows = self._embed(tokens, documents)
        x = self._blocks(self.prelude, 0, x, rows)
        if self.config.kind == "transformer":
            return self._sequence_nats(x, labels).expand(depths_max, -1)
        drive, carry = self.injection.prepare(self.prelude_norm(x))
        state = self._first_states(state_seeds, x)
        nats = []
        for _ in range(depths_max):
            state = self._loop_once(state, drive, carry, rows)
            nats.append(self._sequence_nats(self._after_loop(state, rows), labels))
        return torch.stack(nats)

    def _order(self, depths: Sequence[int], batch: int) -> list[int] | None:
        """List the sequences from deepest to shallowest; None where they stand so already."""
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
        """Run all layers and the final norm on the sequences in the given order."""
        if order is not None:
            tokens = tokens[order]
            documents = None if documents is None else documents[order]
            depths, seeds = [depths[i] for i in order], [seeds[i] for i in order]
        x, rows = self._embed(tokens, documents)
        x = self._blocks(self.prelude, 0, x, rows)
        if self.config.kind == "looped":
            x = self._after_loop(self._loop(x, rows, depths, seeds), rows)
        return self.final_norm(x)

    def _embed(self, tokens: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Rows]:
        rows = {int(layer): F.embedding(tokens, table) for layer, table in self.value_tables.items()}
        if documents is not None:
            rows[MASK] = document_mask(documents)
        return F.embedding(tokens, self.embedding), rows

    def _blocks(self, blocks: nn.ModuleList, first_layer: int, x: Tensor, rows: Rows) -> Tensor:
        rope = self.rope[: x.shape[1]]
        for layer, block in enumerate(blocks, start=first_layer):
            x = block(x, rope, rows.get(layer), rows.get(MASK))
        return x

    def _loop(self, x: Tensor, rows: Rows, depths: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Run sequences of descending depths through the core; each joins when its own depth remains."""
        drive, carry = self.injection.prepare(self.prelude_norm(x))
        first = self._first_states(seeds, x)
        rows = {key: rows[key] for key in (MASK, *self._in_core) if key in rows}
        state, joined, differentiable = first[:0], 0, torch.is_grad_enabled()
        with_gradient = self.config.resolved_backprop_depth if differentiable else 0
        without = [depth - with_gradient for depth in depths if depth > with_gradient]
        deepest = depths[0]
        if self._fuses_loops(x, without, carry, rows):
            joined, deepest = len(without), with_gradient
            state = self._fused_loops(first[:joined], drive[:joined], carry, rows, without)
        for remaining in range(deepest, 0, -1):
            active = sum(depth >= remaining for depth in depths)
            if active > joined:
                state, joined = torch.cat([state, first[joined:active]]), active
            active_rows = {layer: _leading(value, active) for layer, value in rows.items()}
            inputs = (state, _leading(drive, active), carry, active_rows)
            with torch.set_grad_enabled(remaining <= with_gradient):
                if self.checkpoint_loops and torch.is_grad_enabled():
                    state = checkpoint(
                        self._loop_once, *inputs, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    state = self._loop_once(*inputs)
        return state

    def _fuses_loops(self, x: Tensor, loops: list[int], carry: Tensor, rows: Rows) -> bool:
        """Say whether the loops without gradient are one operator, as for small models on a CPU."""
        if not loops or carry.ndim > 1 or not self.loops_as_one or not suits_threads(loops):
            return False
        # A matrix that carries states over has no kernel; who hooks a block wants to see each loop.
        return all(block.is_fused(x, rows.get(MASK)) and not block._forward_hooks for block in self.core)

    def _fused_loops(
        self, first: Tensor, drive: Tensor, carry: Tensor, rows: Rows, loops: list[int]
    ) -> Tensor:
        own_rows = [_leading(rows[layer], len(loops)) if layer in rows else None for layer in self._in_core]
        return fused_loops(
            first,
            drive,
            carry.expand(first.shape[-1]),
            loops,
            self.rope[: first.shape[1]],
            own_rows,
            [block.fused_weights(own) for block, own in zip(self.core, own_rows, strict=True)],
            self.config.heads,
            self.config.resolved_kv_heads,
            self.config.norm_eps,
        )

    def _loop_once(self, state: Tensor, drive: Tensor, carry: Tensor, rows: Rows) -> Tensor:
        state = self.injection.mix(state, drive, carry)
        return self._blocks(self.core, self.config.prelude_layers, state, rows)

    def _after_loop(self, state: Tensor, rows: Rows) -> Tensor:
        first_layer = self.config.prelude_layers + self.config.core_layers
        stream = self.readout(state).to(state.dtype)  # autocast would leave the residual stream in bfloat16
        return self._blocks(self.coda, first_layer, stream, rows)

    def _first_states(self, seeds: Sequence[int], x: Tensor) -> Tensor:
        return first_states(self.config.state_init, seeds, x)

    def _sequence_nats(self, x: Tensor, labels: Tensor) -> Tensor:
        nats = token_nats(self.final_norm(x).flatten(0, 1), self.embedding, labels.flatten())
        return nats.view(labels.shape).sum(dim=1)


def _leading(x: Tensor, count: int) -> Tensor:
    """Take the first `count` sequences, without a slice (and its zero-filled gradient) where that is all."""
    return x if len(x) == count else x[:count]


def build_model(config: ModelConfig, *, seed: int, device: torch.device | str = "cpu") -> LoopedTransformer:
    """Build the model with its first weights: equal seeds, equal bits; no global random state moves."""
    with torch.device(device):
        model = LoopedTransformer(config)
    if torch.device(device).type != "meta":
        initialise(model, config.width, seed)
    return model
