"""Completion of text prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from harness.data.tokenizer import SPECIAL_TOKENS
from harness.data.tokenizer_file import open_tokenizer
from harness.evaluation.weights import tokenizer_text
from model.config_validation import ConfigError
from model.decoding import Decoding
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
    decoding: Decoding | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Continue each prompt by `new_tokens` tokens; return the new text.

    Parameters
    ----------
    depth : number of loops; by default the mean recurrence.
    decoding : in place of `depth`.
    temperature : of the sampling; 0 decodes greedily.
    seed : of the sampling and of h_0.

    Raises
    ------
    ConfigError : the tokenizer is not the model's or has no beginning-of-document token.
    ValueError : prompt and continuation do not fit the context.

    Notes
    -----
    A prompt starts with the beginning-of-document token, as documents do in training. Prompts with the same
    number of tokens share a batch.
    """
    tokenizer = open_tokenizer(tokenizer_text(tokenizer_file, model), tokenizer_file)
    bos = tokenizer.token_to_id(SPECIAL_TOKENS[0])
    if bos is None:
        raise ConfigError(f"{tokenizer_file} has no token {SPECIAL_TOKENS[0]}, which begins every document")
    encoded = [[bos, *tokenizer.encode(prompt, add_special_tokens=False).ids] for prompt in prompts]
    texts = [""] * len(prompts)
    for length in sorted({len(tokens) for tokens in encoded}):
        rows = [i for i, tokens in enumerate(encoded) if len(tokens) == length]
        stream = stream_tokens(
            model,
            torch.tensor([encoded[i] for i in rows], device=model.embedding.device),
            new_tokens=new_tokens,
            decoding=decoding or Decoding(depth=depth or model.config.own_depth),
            state_seeds=[counter_seed("completion", seed, i) for i in rows],
            temperature=temperature,
            seed=seed,
        )
        for i, tokens in zip(rows, torch.stack(list(stream), dim=1).tolist(), strict=True):
            texts[i] = tokenizer.decode(tokens)
    return texts
