"""A forward pass of new tokens that attend to the cached keys and values of those before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.kernels import Context
from model.layers import Block
from model.transformer import LoopedTransformer


class KeyValueCache(Protocol):
    """Keys and values by layer, those inside the loop once per loop; caches of transformers are such."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Add those of new tokens [B, KV, n, D]; return those of all tokens so far."""


class NoCache:
    """Attention among the given tokens alone."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return what is given."""
        return keys, values


class PreallocatedCache:
    """Keys and values [B, KV, capacity, D] of each layer, allocated once for all tokens to come."""

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


def cached_layers(config: ModelConfig, depth: int) -> int:
    """Return how many layers of keys and values a token has at a depth: the core's once per loop."""
    return config.layers + (depth - 1) * config.core_layers


@dataclass(frozen=True, kw_only=True)
class CachedPass:
    """What all layers of one pass share.

    rope holds the angles of the new tokens, [n, 1, D / 2, 2] or one row per sequence [B, n, ...]. mask
    [B or 1, 1, n, all tokens] is True where a new token attends to a token; without it, a single token
    attends to all and several ones, which then are the first, to those before them.
    """

    model: LoopedTransformer
    depth: int
    rope: Tensor
    cache: KeyValueCache
    mask: Tensor | None = None

    def run(self, tokens: Tensor, first: Tensor) -> Tensor:
        """Return the final norm's output [B, n, d] for tokens [B, n] with the first states [B or 1, n, d]."""
        model = self.model
        x, context = model._embed(tokens)
        x = self._blocks(model.prelude, 0, 0, x, context)
        if model.config.kind == "looped":
            drive, carry = model.injection.prepare(model.prelude_norm(x))
            x, core, cached = first, len(model.core), model.first_layer
            for _ in range(self.depth):
                x = model.injection.mix(x, drive, carry)
                x = self._blocks(model.core, model.first_layer, cached, x, context)
                cached += core
            x = self._blocks(model.coda, model.first_layer + core, cached, model.readout(x), context)
        normed: Tensor = model.final_norm(x)
        return normed

    def _blocks(self, blocks: nn.ModuleList, layer: int, cached: int, x: Tensor, context: Context) -> Tensor:
        """Run blocks whose numbers start at `layer` in the model and at `cached` in the cache."""
        for number, block in enumerate(blocks):
            x = self._block(block, x, context.value_rows.get(layer + number), cached + number)
        return x

    def _block(self, block: Block, x: Tensor, rows: Tensor | None, cached: int) -> Tensor:
        query, key, value = block.attn.project(block.norm_1(x), self.rope, rows)
        key, value = self.cache.update(key, value, cached)
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
