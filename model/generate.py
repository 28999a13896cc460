"""Text generation at a chosen depth, with a key/value cache for every layer of every loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.depth import counter_seed
from model.injection import first_states
from model.kernels import Context
from model.layers import Block
from model.transformer import LoopedTransformer


class _Cache:
    """Keys and values [B, KV, capacity, D] of one layer in one loop."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, like: Tensor) -> None:
        shape = (batch, config.resolved_kv_heads, capacity, config.head_dim)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)

    def extend(self, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
        end = start + keys.shape[2]
        self.keys[:, :, start:end], self.values[:, :, start:end] = keys, values
        return self.keys[:, :, :end], self.values[:, :, :end]


def _cached_block(
    block: Block, x: Tensor, rope: Tensor, rows: Tensor | None, cache: _Cache, start: int
) -> Tensor:
    query, key, value = block.attn.project(block.norm_1(x), rope, rows)
    key, value = cache.extend(key, value, start)
    # Several tokens come at once only as the prompt, whose keys start where its queries do.
    out = F.scaled_dot_product_attention(
        query, key, value, is_causal=query.shape[2] > 1, enable_gqa=block.attn.grouped
    )
    x = x + block.attn.merge(out)
    return x + block.mlp(block.norm_2(x))


def _next_logits(
    model: LoopedTransformer, tokens: Tensor, first: Tensor, start: int, depth: int, caches: Sequence[_Cache]
) -> Tensor:
    """Run tokens [B, n] that begin at position `start` and give the last one's logits [B, V]."""
    rope = model.rope[start : start + tokens.shape[1]]
    following = iter(caches)

    def run(blocks: nn.ModuleList, first_layer: int, x: Tensor, context: Context) -> Tensor:
        for layer, block in enumerate(blocks, start=first_layer):
            x = _cached_block(block, x, rope, context.value_rows.get(layer), next(following), start)
        return x

    config = model.config
    x, context = model._embed(tokens)
    x = run(model.prelude, 0, x, context)
    if config.kind == "looped":
        drive, carry = model.injection.prepare(model.prelude_norm(x))
        x = first
        for _ in range(depth):
            x = run(model.core, model.first_layer, model.injection.mix(x, drive, carry), context)
        x = run(model.coda, model.first_layer + len(model.core), model.readout(x), context)
    return F.linear(model.final_norm(x[:, -1]), model.embedding)


@torch.no_grad()
def stream_tokens(
    model: LoopedTransformer,
    prompt: Tensor,
    *,
    new_tokens: int,
    depth: int,
    state_seeds: Sequence[int],
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yield the next token of every sequence, int64 [B], `new_tokens` times.

    prompt is [B, P]. Every loop of every layer keeps its own keys and values, so a step costs one position.
    Temperature 0 takes the likeliest token; otherwise sampling depends on `seed` alone.

    Raises
    ------
    ValueError : prompt and continuation do not fit the context.
    """
    config, (batch, prompted) = model.config, prompt.shape
    length = prompted + new_tokens
    if length > config.sequence_length:
        raise ValueError(
            f"{prompted} prompt tokens and {new_tokens} new ones do not fit sequence_length="
            f"{config.sequence_length}; ask for at most {max(0, config.sequence_length - prompted)} new ones"
        )
    like = model.embedding
    layers = config.layers + (depth - 1) * config.core_layers
    caches = [_Cache(config, batch, length, like) for _ in range(layers)]
    first = first_states(config.state_init, state_seeds, like.new_empty(batch, length, config.width))
    generator = torch.Generator(like.device).manual_seed(counter_seed("generate", seed))
    tokens, start = prompt, 0
    for _ in range(new_tokens):
        end = start + tokens.shape[1]
        logits = _next_logits(model, tokens, first[:, start:end], start, depth, caches)
        if temperature == 0:
            chosen = logits.argmax(dim=1)
        else:
            chosen = torch.multinomial((logits / temperature).softmax(dim=1), 1, generator=generator)[:, 0]
        yield chosen
        tokens, start = chosen[:, None], end
