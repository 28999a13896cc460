"""Byte-level BPE with the split pattern of GPT-4: train, encode, and the bytes behind each token."""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from harness.data_config import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")
BOS = 0

# GPT-4's pattern (cl100k_base): a word keeps its leading space, numbers go in groups of up to three digits.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> "Tokenizer":
    """Train a byte-level BPE; the result depends on the texts alone.

    Raises DataError when the texts hold too few repeated pairs for `vocabulary_size` tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = tokenizer.get_vocab_size()
    if trained < vocabulary_size:
        raise DataError(
            f"the training text supports a vocabulary of {trained}, not {vocabulary_size}: "
            f"set data.vocabulary_size to {trained} or less, or give more text"
        )
    return tokenizer


def token_bytes(tokenizer_json: str) -> np.ndarray:
    """Return how many bytes of text each token id stands for, int32 [vocabulary]; 0 for special tokens."""
    vocabulary = json.loads(tokenizer_json)["model"]["vocab"]
    lengths = np.zeros(len(vocabulary), np.int32)
    for token, index in vocabulary.items():
        # The byte-level alphabet writes each byte as one character.
        lengths[index] = 0 if token in SPECIAL_TOKENS else len(token)
    return lengths


def merges_digest(tokenizer_json: str) -> str:
    """Return the SHA-256 of what decides the ids: pattern, vocabulary and merges, whatever else the file records."""
    tokenizer = json.loads(tokenizer_json)
    decisive = [PATTERN, tokenizer["model"]["vocab"], tokenizer["model"]["merges"]]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
