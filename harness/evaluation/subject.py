"""The model that is evaluated, with all that its scores depend on: weights, tokenizer, first token."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.data.existing_tokenizer import find_bos
from harness.data.tokenizer import token_bytes
from harness.distributed.process_group import ALONE, Ranks
from harness.evaluation.weights import is_run, load_weights, tokenizer_file
from harness.run.folder import RunFolder
from harness.training.session import device_named, prepare_process
from model.config_validation import ConfigError
from model.transformer import LoopedTransformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model ready to be scored; `token_bytes` has the bytes of text behind each id."""

    model: LoopedTransformer
    tokenizer: Tokenizer
    bos: int
    token_bytes: np.ndarray
    digest: str  # of weights, shape and tokenizer

    @property
    def own_depth(self) -> int:
        """Return T = µ, at which a model is scored unless depths are asked for."""
        return self.model.config.own_depth


def load_subject(path: Path, cache: Path, *, device: str = "auto", ranks: Ranks = ALONE) -> Subject:
    """Load a run folder, an export or a published checkpoint, on the device of this process.

    Raises ConfigError for a folder that is none of them and for a tokenizer that is not the model's.
    """
    from tokenizers import Tokenizer

    model, file = load_weights(path), tokenizer_file(path, cache)
    text = file.read_text(encoding="utf-8")
    bos = RunFolder(path).dataset(cache).bos if is_run(path) else find_bos(text, None)
    tokenizer = Tokenizer.from_str(text)
    if tokenizer.get_vocab_size() > model.config.vocabulary_size:
        raise ConfigError(
            f"{file} has {tokenizer.get_vocab_size()} tokens, the model only "
            f"{model.config.vocabulary_size}: this is not its tokenizer"
        )
    place = device_named(device, ranks)
    prepare_process(place)
    return Subject(
        model=model.to(place),
        tokenizer=tokenizer,
        bos=bos,
        token_bytes=token_bytes(text),
        digest=_digest(model, text),
    )


def _digest(model: LoopedTransformer, tokenizer_json: str) -> str:
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for name, value in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    digest.update(tokenizer_json.encode())
    return digest.hexdigest()[:16]
