"""A forward pass of new tokens that attend to the cached keys and values of those before them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.decoding import Decoding
from model.kernels import Context
from model.layers import Block
from model.transformer import LoopedTransformer


class KeyValueCache(Protocol):
    """Keys and values by layer, those inside the loop once per kept loop; caches of transformers are such."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Add those of new tokens [B, KV, n, D]; return those of all tokens so far."""


class NoCache:
    """Attention among the given tokens alone."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return what is given."""
        return keys, values


class PreallocatedCache:
    """Keys and values [B, KV, capacity, D] of each layer, allocated once for all tokens to come.

    A second update of a layer at the same positions replaces the first one.
    """

    def __init__(self, config: ModelConfig, layers: int, batch: int, capacity: int, like: Tensor) -> None:
        shape = (batch, config.resolved_kv_heads, capacity, config.head_dim)
        self._layers = [(like.new_empty(shape), like.new_empty(shape)) for _ in range(layers)]
        self.start = 0  # position of the first new token

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store those of the tokens from `start` on; return those of all tokens up to them."""
        end = self.start + keys.shape[2]
        all_keys, all_values = self._layers[layer]
        all_keys[:, :, self.start : end], all_values[:, :, self.start : end] = keys, values
        return all_keys[:, :, :end], all_values[:, :, :end]

    @property
    def size_bytes(self) -> int:
        """Return the bytes that are allocated."""
        return sum(part.numel() * part.element_size() for layer in self._layers for part in layer)


@dataclass
class _Leaving:
    """Which tokens have left the loop, and the keys and values of their last one, by core layer."""

    left: Tensor  # bool [B, n]
    loops: Tensor  # int64 [B, n], spent so far
    last: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def hold(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, of tokens that have left those of their last loop."""
        if layer in self.last:
            left = self.left[:, None, :, None]
            old_keys, old_values = self.last[layer]
            keys, values = torch.where(left, old_keys, keys), torch.where(left, old_values, values)
        self.last[layer] = keys, values
        return keys, values


@dataclass(frozen=True, kw_only=True)
class CachedPass:
    """What all layers of one pass share.

    rope holds the angles of the new tokens, [n, 1, D / 2, 2] or one row per sequence [B, n, ...]. mask
    [B or 1, 1, n, all tokens] is True where a new token attends to a token; without it, a single token
    attends to all and several ones, which then are the first, to those before them.
    """

    model: LoopedTransformer
    decoding: Decoding
    rope: Tensor
    cache: KeyValueCache
    mask: Tensor | None = None

    def run(self, tokens: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Return the final norm's output [B, n, d] and the loops spent, int64 [B, n].

        Tokens are [B, n], their first states [B or 1, n, d].
        """
        model = self.model
        x, context = model._embed(tokens)
        x = self._blocks(model.prelude, 0, 0, x, context)
        loops = torch.full(tokens.shape, self.decoding.depth, device=tokens.device)
        if model.config.kind == "transformer":
            return model.final_norm(x), torch.ones_like(loops)
        drive, carry = model.injection.prepare(model.prelude_norm(x))
        state = first.expand_as(x)
        if self.decoding.exit != "fixed":
            return self._until_exit(state, drive, carry, context)
        for loop in range(self.decoding.depth):
            state = self._loop(loop, state, drive, carry, context)
        return self._after_loop(state, context), loops

    def _until_exit(
        self, state: Tensor, drive: Tensor, carry: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Loop until every token has left; those that have are frozen, and fill the caches of later loops."""
        by_entropy, threshold = self.decoding.exit == "entropy", self.decoding.threshold
        shape, device = state.shape[:2], state.device
        leaving = _Leaving(
            left=torch.zeros(shape, dtype=torch.bool, device=device),
            loops=torch.zeros(shape, dtype=torch.int64, device=device),
        )
        output = None
        for loop in range(self.decoding.depth):
            new = self._loop(loop, state, drive, carry, context, leaving)
            new = torch.where(leaving.left[..., None], state, new)
            leaving.loops += ~leaving.left
            if by_entropy:
                output = self._after_loop(new, context)
                leaves = self._entropy(output) < threshold
            else:
                leaves = (new - state).float().norm(dim=-1) < threshold * new.float().norm(dim=-1)
            leaving.left |= leaves
            state = new
            if leaving.left.all():
                self._fill(loop, leaving)
                break
        return self._after_loop(state, context) if output is None else output, leaving.loops

    def _fill(self, loop: int, leaving: _Leaving) -> None:
        """Store what all tokens leave behind in the loops after `loop`, which none of them runs."""
        core = len(self.model.core)
        for slot in range(self.decoding.slot(loop) + 1, self.decoding.kept_loops):
            for layer, (keys, values) in leaving.last.items():
                self.cache.update(keys, values, self.model.first_layer + slot * core + layer)

    def _entropy(self, output: Tensor) -> Tensor:
        log_p = F.linear(output, self.model.embedding).float().log_softmax(dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1)

    def _loop(
        self,
        loop: int,
        state: Tensor,
        drive: Tensor,
        carry: Tensor,
        context: Context,
        leaving: _Leaving | None = None,
    ) -> Tensor:
        model, first = self.model, self.model.first_layer
        cached = first + self.decoding.slot(loop) * len(model.core)
        state = model.injection.mix(state, drive, carry)
        return self._blocks(model.core, first, cached, state, context, leaving)

    def _after_loop(self, state: Tensor, context: Context) -> Tensor:
        model, core = self.model, len(self.model.core)
        cached = model.first_layer + self.decoding.kept_loops * core
        x = self._blocks(model.coda, model.first_layer + core, cached, model.readout(state), context)
        normed: Tensor = model.final_norm(x)
        return normed

    def _blocks(
        self,
        blocks: nn.ModuleList,
        layer: int,
        cached: int,
        x: Tensor,
        context: Context,
        leaving: _Leaving | None = None,
    ) -> Tensor:
        """Run blocks whose numbers start at `layer` in the model and at `cached` in the cache."""
        for number, block in enumerate(blocks):
            rows = context.value_rows.get(layer + number)
            query, key, value = block.attn.project(block.norm_1(x), self.rope, rows)
            if leaving is not None:
                key, value = leaving.hold(number, key, value)
            x = self._attend(block, x, query, *self.cache.update(key, value, cached + number))
        return x

    def _attend(self, block: Block, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self.mask,
            is_causal=self.mask is None and query.shape[2] > 1,
            enable_gqa=block.attn.grouped,
        )
        x = x + block.attn.merge(out)
        return x + block.mlp(block.norm_2(x))
