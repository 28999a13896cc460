"""Text generation at a chosen depth, with a key/value cache for every layer of every loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.cached_pass import CachedPass, PreallocatedCache, cached_layers
from model.depth import counter_seed
from model.injection import first_states
from model.transformer import LoopedTransformer


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
    cache = PreallocatedCache(config, cached_layers(config, depth), batch, length, like)
    first = first_states(config.state_init, state_seeds, like.new_empty(batch, length, config.width))
    generator = torch.Generator(like.device).manual_seed(counter_seed("generate", seed))
    tokens = prompt
    for _ in range(new_tokens):
        new = slice(cache.start, cache.start + tokens.shape[1])
        hidden = CachedPass(model=model, depth=depth, rope=model.rope[new], cache=cache).run(
            tokens, first[:, new]
        )
        logits = F.linear(hidden[:, -1], model.embedding)
        if temperature == 0:
            chosen = logits.argmax(dim=1)
        else:
            chosen = torch.multinomial((logits / temperature).softmax(dim=1), 1, generator=generator)[:, 0]
        yield chosen
        tokens, cache.start = chosen[:, None], new.stop
