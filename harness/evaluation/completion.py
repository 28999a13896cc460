"""Completions of prompts: text in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from harness.data.tokenizer import SPECIAL_TOKENS
from model.config_validation import ConfigError
from model.depth import counter_seed
from model.generate import stream_tokens
from model.transformer import LoopedTransformer


def complete(
    model: LoopedTransformer,
    tokenizer_file: Path,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    depth: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Continue each prompt by `new_tokens` tokens at depth `depth` (by default the mean recurrence).

    A prompt starts with the beginning-of-document token, as documents do in training. Prompts of one length
    in tokens share a batch.

    Raises ConfigError for a tokenizer with more tokens than the model, ValueError when the continuation does
    not fit the context.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    if tokenizer.get_vocab_size() > model.config.vocabulary_size:
        raise ConfigError(
            f"{tokenizer_file} has {tokenizer.get_vocab_size()} tokens, the model only "
            f"{model.config.vocabulary_size}: this is not its tokenizer"
        )
    bos = tokenizer.token_to_id(SPECIAL_TOKENS[0])
    if bos is None:
        raise ConfigError(f"{tokenizer_file} has no token {SPECIAL_TOKENS[0]}, with which documents begin")
    encoded = [[bos, *tokenizer.encode(prompt).ids] for prompt in prompts]
    texts = [""] * len(prompts)
    for length in sorted({len(tokens) for tokens in encoded}):
        rows = [i for i, tokens in enumerate(encoded) if len(tokens) == length]
        stream = stream_tokens(
            model,
            torch.tensor([encoded[i] for i in rows], device=model.embedding.device),
            new_tokens=new_tokens,
            depth=depth or model.config.own_depth,
            state_seeds=[counter_seed("completion", seed, i) for i in rows],
            temperature=temperature,
            seed=seed,
        )
        for i, tokens in zip(rows, torch.stack(list(stream), dim=1).tolist(), strict=True):
            texts[i] = tokenizer.decode(tokens)
    return texts
