"""A tokenizer.json that somebody has trained: checked, and asked for its <|bos|>."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.data.config import DataConfig, DataError
from harness.data.tokenizer import PATTERN, merges_digest

# The token that begins a document, as known tokenizers call it: ours, Llama 3, Llama and others, GPT-2.
BOS_NAMES = ("<|bos|>", "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|startoftext|>", "<|endoftext|>")


def read_tokenizer(config: DataConfig) -> str:
    """Return the text of `config.tokenizer`.

    Raises DataError when it is no tokenizer.json of the tokenizers library, or none whose tokens are bytes
    of the text, which bits per byte and lossless shards need.
    """
    from tokenizers import Tokenizer

    path = Path(str(config.tokenizer)).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        Tokenizer.from_str(text)
    except OSError as error:
        raise DataError(
            f"data.tokenizer {path} cannot be read ({error.strerror}): name a tokenizer.json"
        ) from None
    except Exception as error:  # the library raises nothing more special
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"data.tokenizer {path} is not a tokenizer.json ({reason})") from None
    tokenizer = json.loads(text)
    if not _mentions(tokenizer["pre_tokenizer"], "ByteLevel") or not isinstance(
        tokenizer["model"]["vocab"], dict
    ):
        raise DataError(
            f"data.tokenizer {path} is not byte-level: use one like that of GPT-2, Llama 3 or Qwen"
        )
    return text


def vocabulary_size(tokenizer_json: str) -> int:
    """Return one more than the largest id, added tokens included."""
    tokenizer = json.loads(tokenizer_json)
    return 1 + max(
        [*tokenizer["model"]["vocab"].values(), *(added["id"] for added in tokenizer["added_tokens"])]
    )


def find_bos(tokenizer_json: str, name: str | None) -> int:
    """Return the id of the special token that begins documents, `name` or the first known one.

    Raises DataError when there is none.
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


def splits_as_ours(tokenizer_json: str) -> bool:
    """Say whether a tokenizer cuts text into words as those trained here do, and changes nothing before."""
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


def tokenizer_digest(tokenizer_json: str, bos: int) -> str:
    """Return the SHA-256 of what decides the ids: one trained here is the same when it comes from a file."""
    if splits_as_ours(tokenizer_json) and bos == 0:
        return merges_digest(tokenizer_json)
    tokenizer = json.loads(tokenizer_json)
    decisive = [tokenizer[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")]
    return hashlib.sha256(json.dumps([bos, *decisive], sort_keys=True).encode()).hexdigest()


def _mentions(step: Any, kind: str) -> bool:
    """Say whether a step of a tokenizer, or one of the steps inside it, is of a kind."""
    if not isinstance(step, dict):
        return False
    return step.get("type") == kind or any(_mentions(inner, kind) for inner in step.get("pretokenizers", []))
