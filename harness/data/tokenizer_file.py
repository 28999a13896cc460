"""An existing tokenizer.json: read, checked and freed of settings that would lose text."""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.dataset import DataConfig, DataError
from model.config_validation import ConfigError
from model.outside_files import read_json_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LARGEST_ID = 1 << 24  # of a token; arrays have this length


def read_tokenizer(config: DataConfig) -> str:
    """Return the text of `config.tokenizer`, with truncation, padding and dropout off.

    Raises DataError unless it is a tokenizer.json of the tokenizers library whose tokens are the bytes of any
    text, as bits per byte and lossless shards need.
    """
    path = Path(str(config.tokenizer)).expanduser()
    try:
        text = read_tokenizer_file(path)
    except OSError as error:
        raise DataError(
            f"data.tokenizer {path} cannot be read ({error.strerror}): name a tokenizer.json"
        ) from None
    except ValueError as error:
        raise DataError(f"data.tokenizer {error}") from None
    _check_lossless(open_tokenizer(text, path), path)
    return text


def read_tokenizer_file(path: Path) -> str:
    """Return the text of a byte-level tokenizer.json, with truncation, padding and dropout off.

    Raises
    ------
    DataError : it is damaged, no tokenizer of the library, or not byte-level.
    OSError : it cannot be read.
    """
    try:
        tokenizer = read_json_object(path)
    except ConfigError as error:
        raise DataError(f"{path} is not a tokenizer.json ({error})") from None
    for problem in _problems(tokenizer):
        raise DataError(f"{path} is not a tokenizer.json ({problem})")
    text = path.read_text(encoding="utf-8")
    dropout = tokenizer["model"].get("dropout")
    if tokenizer.get("truncation") or tokenizer.get("padding") or dropout:  # settings of another use
        off = {"truncation": None, "padding": None, "model": tokenizer["model"] | {"dropout": None}}
        text = json.dumps(tokenizer | off, ensure_ascii=False)
    open_tokenizer(text, path)
    if not _mentions(tokenizer.get("pre_tokenizer"), "ByteLevel"):
        raise DataError(f"{path} is not byte-level: use one like that of GPT-2, Llama 3 or Qwen")
    return text


def open_tokenizer(text: str, path: Path) -> "Tokenizer":
    """Return the tokenizer of the text of `path`. Raises DataError if the library cannot read it."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except BaseException as error:  # the library raises Exception itself, and panics of Rust that are none
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{path} is not a tokenizer.json ({reason})") from None


def _problems(tokenizer: dict[str, Any]) -> Iterator[str]:
    """Yield what keeps a JSON object from being a tokenizer, in the parts that are read here."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        yield "its model is not byte-level BPE; use one like that of GPT-2, Llama 3 or Qwen"
    if not isinstance(vocabulary, dict) or not vocabulary:
        yield "it has no model with a vocab of tokens"
        return
    added = tokenizer.get("added_tokens")
    if not isinstance(added, list):
        yield "it has no list of added_tokens"
        return
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            yield "an added token has no content"
            return
        if type(token.get("special")) is not bool:
            yield f"the added token {token['content']!r} does not say whether it is special"
    ids = [*vocabulary.items(), *((token["content"], token.get("id")) for token in added)]
    for token, index in ids:
        if type(index) is not int or not 0 <= index < LARGEST_ID:
            yield f"the token {token!r} has the id {index!r}, not one from 0 to {LARGEST_ID - 1}"


def _check_lossless(tokenizer: "Tokenizer", path: Path) -> None:
    """Raise DataError where a text with all that a tokenizer may drop does not come back from its tokens.

    It has every byte of UTF-8, blanks, and what this tokenizer treats by itself: the tokens that were added
    to it, which may swallow the blanks around them, and the strings that its steps replace or remove.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    points = [*range(1, 0x800), *range(0x800, 0xD800, 0x400), *range(0xE000, 0x110000, 0x4000)]
    own = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    own += _patterns(json.loads(tokenizer.to_str()))
    parts = ["".join(map(chr, points)), "Two  blanks,\t\ttabs\r\n\n\nand lines", *own, "end"]
    text = unicodedata.normalize("NFC", f"\n{'  '.join(parts)}\n")  # which a tokenizer may do to any text
    tokenizer.encode_special_tokens = True
    decoded = tokenizer.decode(
        tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False
    )
    if decoded.removeprefix(" ") == text.removeprefix(" "):
        return
    at = next(
        (i for i, (one, other) in enumerate(zip(text, decoded, strict=False)) if one != other), len(decoded)
    )
    raise DataError(
        f"data.tokenizer {path} loses text: {text[at : at + 4]!r} becomes {decoded[at : at + 4]!r}; "
        "use one that keeps every byte, like that of GPT-2, Llama 3 or Qwen"
    )


def _patterns(steps: Any) -> Iterator[str]:
    """Yield the literal strings that the steps of a tokenizer look for, before its model."""
    if isinstance(steps, list):
        for step in steps:
            yield from _patterns(step)
    elif isinstance(steps, dict):
        pattern = steps.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            yield pattern["String"]
        for name in ("normalizer", "normalizers", "pre_tokenizer", "pretokenizers"):
            yield from _patterns(steps.get(name))


def _mentions(step: Any, kind: str) -> bool:
    """Return True if a step of a tokenizer, or a step inside it, is of type `kind`."""
    if not isinstance(step, dict):
        return False
    inside = step.get("pretokenizers", [])
    return step.get("type") == kind or any(_mentions(one, kind) for one in inside)
