"""Text generation at a chosen depth, with cached keys and values for the layers of every kept loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.cached_pass import CachedPass, PreallocatedCache
from model.decoding import Decoding
from model.depth import counter_seed
from model.injection import first_states
from model.kernels import IGNORE
from model.transformer import LoopedTransformer

LEAST_TEMPERATURE = 1e-6  # below it float32 logits overflow, and the likeliest token is all that is left


class Decoder:
    """Read tokens one after the other or several at once, each sequence of the batch with its own h_0."""

    def __init__(
        self,
        model: LoopedTransformer,
        decoding: Decoding,
        *,
        batch: int,
        length: int,
        state_seeds: Sequence[int],
    ) -> None:
        config, like = model.config, model.embedding
        self._model, self._decoding = model, decoding
        self.cache = PreallocatedCache(config, decoding.cached_layers(config), batch, length, like)
        empty = like.new_empty(batch, length, config.width)
        self._first = first_states(config.state_init, state_seeds, empty)

    @torch.no_grad()
    def read(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the last token's logits [B, V] and the loops spent by each, int64 [B, n].

        tokens [B, n] follow those read before; several are read at once only as the first ones.
        """
        new = slice(self.cache.start, self.cache.start + tokens.shape[1])
        rope = self._model.rope[new]
        reading = CachedPass(
            model=self._model, decoding=self._decoding, rope=rope, cache=self.cache, mask=mask
        )
        hidden, loops = reading.run(tokens, self._first[:, new])
        self.cache.start = new.stop
        return F.linear(hidden[:, -1], self._model.embedding), loops


@torch.no_grad()
def stream_tokens(
    model: LoopedTransformer,
    prompt: Tensor,
    *,
    new_tokens: int,
    decoding: Decoding,
    state_seeds: Sequence[int],
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yield the next token of every sequence, int64 [B], `new_tokens` times.

    prompt is [B, P]. A temperature below LEAST_TEMPERATURE takes the likeliest token; otherwise sampling
    depends on `seed` alone.

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
    decoder = Decoder(model, decoding, batch=batch, length=length, state_seeds=state_seeds)
    generator = torch.Generator(prompt.device).manual_seed(counter_seed("generate", seed))
    tokens = prompt
    for _ in range(new_tokens):
        logits, _ = decoder.read(tokens)
        if temperature < LEAST_TEMPERATURE:
            chosen = logits.argmax(dim=1)
        else:
            chosen = torch.multinomial((logits / temperature).softmax(dim=1), 1, generator=generator)[:, 0]
        yield chosen
        tokens = chosen[:, None]


@dataclass(frozen=True, kw_only=True)
class DecodedLosses:
    """What decoding given texts token by token costs: nats, float32 [B, L], and loops, int64 [B, L]."""

    nats: Tensor
    loops: Tensor


@torch.no_grad()
def decoded_losses(
    model: LoopedTransformer,
    tokens: Tensor,
    labels: Tensor,
    decoding: Decoding,
    state_seeds: Sequence[int],
    documents: Tensor | None = None,
) -> DecodedLosses:
    """Return the nats of labels [B, L] when the tokens before them are decoded one by one.

    A label of -100 has none. documents [B, L] keeps attention within tokens of the same number.
    """
    batch, length = tokens.shape
    decoder = Decoder(model, decoding, batch=batch, length=length, state_seeds=state_seeds)
    nats, loops = [], []
    for position in range(length):
        mask = None
        if documents is not None:
            mask = (documents[:, : position + 1] == documents[:, position, None])[:, None, None]
        logits, spent = decoder.read(tokens[:, position, None], mask)
        target = labels[:, position]
        nats.append(F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="none"))
        loops.append(spent[:, 0])
    return DecodedLosses(nats=torch.stack(nats, dim=1), loops=torch.stack(loops, dim=1))
