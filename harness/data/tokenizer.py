"""Byte-level BPE with the split pattern of GPT-4: train, encode, and the bytes behind each token."""

import hashlib
import heapq
import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from harness.data.config import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")
BOS = 0

# GPT-4's pattern (cl100k_base): a word keeps its leading space, numbers go in groups of up to three digits.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


class Sample:
    """Keep windows of the texts with the smallest hashes, `limit_bytes` in all.

    Choosing by hash spreads the sample evenly over the texts, whatever their number and order. A window of at
    most `window_characters` starts anywhere in its text, as files tend to open with the same licence.
    """

    def __init__(self, limit_bytes: int, window_characters: int) -> None:
        self._limit_bytes = limit_bytes
        self._window_characters = window_characters
        self._kept: list[tuple[int, int, str]] = []  # a heap: the largest hash is the first to go
        self._bytes = 0
        self._added = 0
        self._smallest_refused: float = math.inf

    def add(self, text: str) -> None:
        """Take `text` in if its hash is small enough."""
        rank = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        if rank >= self._smallest_refused:
            return
        start = rank % max(1, len(text) - self._window_characters + 1)
        window = text[start : start + self._window_characters]
        heapq.heappush(self._kept, (-rank, self._added, window))
        self._added += 1
        self._bytes += len(window.encode())
        while self._bytes > self._limit_bytes and len(self._kept) > 1:
            negative_rank, _, window = heapq.heappop(self._kept)
            self._smallest_refused = -negative_rank
            self._bytes -= len(window.encode())

    @property
    def full(self) -> bool:
        """Tell whether a text was refused."""
        return self._smallest_refused < math.inf

    def texts(self) -> list[str]:
        """Return the windows in the order in which their texts came."""
        return [window for _, _, window in sorted(self._kept, key=lambda item: item[1])]


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
    tokenizer = json.loads(tokenizer_json)
    # The byte-level alphabet writes each byte as one character; added tokens are written as they are.
    sizes = {index: len(token) for token, index in tokenizer["model"]["vocab"].items()}
    for added in tokenizer["added_tokens"]:
        sizes[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    lengths = np.zeros(max(sizes) + 1, np.int32)
    lengths[list(sizes)] = list(sizes.values())
    return lengths


def merges_digest(tokenizer_json: str) -> str:
    """Return the SHA-256 of what decides the ids: pattern, vocabulary and merges."""
    tokenizer = json.loads(tokenizer_json)
    decisive = [PATTERN, tokenizer["model"]["vocab"], tokenizer["model"]["merges"]]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
