"""Tokenizers: byte-level BPE trained with the split pattern of GPT-4, or an existing tokenizer.json."""

import hashlib
import heapq
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.data.dataset import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Of training per byte of the sample, and at least; measured with 7 and 28 MB and vocabularies of 4,096 and
# 32,768, with which it grows by a tenth; extrapolated to larger samples.
_CPU_S_PER_BYTE = 0.43e-6
_MEMORY_PER_BYTE, _LEAST_MEMORY = 3.0, 250_000_000
LONG_S = 60.0  # from here on the cost of training is said before it begins

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")
BOS = 0
# The token that begins a document, as tokenizers call it: ours, Llama 3, Llama and others, GPT-2.
BOS_NAMES = ("<|bos|>", "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|startoftext|>", "<|endoftext|>")

# GPT-4's pattern (cl100k_base): a word keeps its leading space, numbers go in groups of up to three digits.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


class Sample:
    """Windows of the texts with the smallest hashes, `limit_bytes` in all.

    Choosing by hash spreads the sample evenly over the texts, independently of their number and order. Each
    window has at most `window_characters` and starts anywhere, because many files begin with a licence.
    """

    def __init__(self, limit_bytes: int, window_characters: int) -> None:
        self._limit_bytes = limit_bytes
        self._window_characters = window_characters
        self._kept: list[tuple[int, int, str]] = []  # a heap: the largest hash is the first to go
        self._bytes = 0
        self._added = 0
        self._smallest_refused: float = math.inf

    def add(self, text: str) -> None:
        """Add a window of `text` if its hash is small enough."""
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
    def size_bytes(self) -> int:
        """Return the size of all windows in UTF-8."""
        return self._bytes

    @property
    def full(self) -> bool:
        """Return True if a text was refused."""
        return self._smallest_refused < math.inf

    def texts(self) -> list[str]:
        """Return the windows in the order in which their texts came."""
        return [window for _, _, window in sorted(self._kept, key=lambda item: item[1])]


def training_stage(sample_bytes: int) -> str:
    """Return the name of the stage in which a tokenizer is trained, with its cost where that is large."""
    cpu_s = _CPU_S_PER_BYTE * sample_bytes
    if cpu_s < LONG_S:
        return "training the tokenizer"
    memory = _LEAST_MEMORY + _MEMORY_PER_BYTE * sample_bytes
    return (
        f"training the tokenizer on {sample_bytes / 1e9:.2g} GB: about {cpu_s / 60:.0f} CPU minutes, "
        f"{memory / 1e9:.1f} GB of memory"
    )


def train_tokenizer(
    texts: Sequence[str], vocabulary_size: int, progress: Callable[[float], None] = lambda done: None
) -> "Tokenizer":
    """Return a byte-level BPE trained on `texts`; `progress` is called with the fraction that is read.

    Raises DataError if the texts have too few repeated pairs for `vocabulary_size` tokens.
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

    def read() -> Iterator[str]:
        for number, text in enumerate(texts):
            if number % 1000 == 0:
                progress(number / len(texts))
            yield text

    tokenizer.train_from_iterator(read(), trainer)
    trained = tokenizer.get_vocab_size()
    if trained < vocabulary_size:
        raise DataError(
            f"the training text supports a vocabulary of {trained}, not {vocabulary_size}: "
            f"set data.vocabulary_size to {trained} or less, or give more text"
        )
    return tokenizer


def vocabulary_size(tokenizer_json: str) -> int:
    """Return one more than the largest id, added tokens included."""
    tokenizer = json.loads(tokenizer_json)
    return 1 + max(
        [*tokenizer["model"]["vocab"].values(), *(added["id"] for added in tokenizer["added_tokens"])]
    )


def find_bos(tokenizer_json: str, name: str | None) -> int:
    """Return the id of the special token that begins documents, `name` or the first known one.

    Raises DataError if there is none.
    """
    special = {
        added["content"]: int(added["id"])
        for added in json.loads(tokenizer_json)["added_tokens"]
        if added["special"]
    }
    for candidate in [name] if name is not None else BOS_NAMES:
        if candidate in special:
            return special[candidate]
    listed = ", ".join(sorted(special)[:12]) or "none"
    raise DataError(
        f"data.bos_token={name or 'null'} is no special token of the tokenizer (it has {listed}): name one"
    )


def adding_bos(tokenizer_json: str, bos: int) -> str:
    """Return a tokenizer.json that puts the token `bos` before each text, as documents begin in training."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_str(tokenizer_json)
    token = tokenizer.id_to_token(bos)
    template = {"single": f"{token} $A", "pair": f"{token} $A {token}:1 $B:1"}
    tokenizer.post_processor = TemplateProcessing(**template, special_tokens=[(token, bos)])
    text: str = tokenizer.to_str(pretty=True)
    return text


def splits_like_ours(tokenizer_json: str) -> bool:
    """Return True if a tokenizer splits text into words as those trained here do, without a normaliser."""
    tokenizer = json.loads(tokenizer_json)
    steps = (tokenizer["pre_tokenizer"] or {}).get("pretokenizers", [])
    kinds = [step["type"] for step in steps]
    return (
        tokenizer["normalizer"] is None
        and kinds == ["Split", "ByteLevel"]
        and steps[0]["pattern"] == {"Regex": PATTERN}
        and not steps[1]["add_prefix_space"]
        and not steps[1]["use_regex"]
        and all(added["special"] for added in tokenizer["added_tokens"])
    )


def merges_digest(tokenizer_json: str) -> str:
    """Return the SHA-256 of pattern, vocabulary and merges of a tokenizer trained here."""
    tokenizer = json.loads(tokenizer_json)
    decisive = [PATTERN, tokenizer["model"]["vocab"], tokenizer["model"]["merges"]]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def tokenizer_digest(tokenizer_json: str, bos: int) -> str:
    """Return the SHA-256 of everything that decides the ids.

    A tokenizer trained here has the same digest when it is read from a file.
    """
    if splits_like_ours(tokenizer_json) and bos == 0:
        return merges_digest(tokenizer_json)
    tokenizer = json.loads(tokenizer_json)
    decisive = [tokenizer[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")]
    return hashlib.sha256(json.dumps([bos, *decisive], sort_keys=True).encode()).hexdigest()
