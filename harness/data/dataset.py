"""A data set: its configuration (the `data` group), and its files once it is prepared."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt, MinLen

from model.config_validation import ConfigError
from model.outside_files import check_regular

FORMAT_VERSION = 1
FILES = ("train.bin", "validation.bin", "tokenizer.json", "index.json")
BYTE_TOKENS = 256
INDEX_TYPES: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "digest": str,
    "vocabulary_size": int,
    "bos": int,
    "unigram_nats": (int, float),
}

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
Progress = Callable[[str, float], None]  # called with a stage and the share of it that is done

# Keys that belong to some sources alone; refused for another one.
SOURCE_KEYS = {
    ("installed_python", "installed_prose"): ("packages",),
    ("installed_python",): ("validation_packages",),
    ("text",): ("path",),
    ("huggingface",): ("repository", "subset", "revision", "max_documents"),
}


class DataError(ValueError):
    """Data that cannot be used; the message is one line that says what to change."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Describe the documents of a data set and the tokenizer trained on them.

    Raises ValueError where the fields of a source are missing or contradict each other.
    """

    name: Annotated[str, MinLen(1)]
    source: Literal["installed_python", "installed_prose", "text", "huggingface"]

    # installed_python, installed_prose: import names of installed packages; "stdlib" is the standard library.
    packages: list[str] = field(default_factory=list)
    validation_packages: list[str] = field(default_factory=list)

    # text: a file or a folder of .txt, .jsonl and .parquet files, the first two also as .gz and .zst.
    path: str | None = None

    # huggingface: a data set of the hub (or a folder of data files), streamed until one of the limits is met.
    repository: str | None = None
    subset: str | None = None
    repository_split: Annotated[str, MinLen(1)] = "train"
    revision: str | None = None
    max_tokens: Annotated[int, Gt(0)] | None = None
    max_documents: Annotated[int, Gt(0)] | None = None

    # text and huggingface: the column that holds a document; with installed_prose: the share held out.
    text_field: Annotated[str, MinLen(1)] = "text"
    validation_fraction: Annotated[float, Ge(0), Lt(1)] = 0.02
    max_document_bytes: Annotated[int, Ge(16)] = 16_000_000  # a longer text is cut into several documents

    # An existing byte-level tokenizer.json; None: one of `vocabulary_size` tokens is trained.
    tokenizer: str | None = None
    bos_token: str | None = None  # of that tokenizer; None: the one that it is known by
    vocabulary_size: Annotated[int, Gt(BYTE_TOKENS + 3)] = 4096
    tokenizer_sample_bytes: Annotated[int, Gt(0)] = 10_000_000
    tokenizer_document_characters: Annotated[int, Gt(0)] = 10_000

    # Training tokens to plan with while the data is not prepared yet.
    unique_tokens: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        self._check_others_unset()
        if self.bos_token is not None and self.tokenizer is None:
            raise ValueError(
                f"data.bos_token={self.bos_token} belongs to an existing tokenizer: set data.tokenizer too"
            )
        match self.source:
            case "installed_python":
                self._check_packages()
            case "installed_prose":
                self._check_packages(["packages"])
            case "text" if not self.path:
                raise ValueError("path is not set: path=..., a file or folder of .txt, .jsonl or .parquet")
            case "huggingface" if not self.repository:
                raise ValueError("data.repository is not set: name a data set of the Hugging Face hub")
            case "huggingface" if self.max_tokens is None and self.max_documents is None:
                raise ValueError("a streamed data set has no end: set data.max_tokens or data.max_documents")

    def _check_others_unset(self) -> None:
        for sources, keys in SOURCE_KEYS.items():
            for key in keys if self.source not in sources else ():
                value = getattr(self, key)
                if value not in (None, []):
                    raise ValueError(
                        f"data.{key}={value} is a key of data.source={sources[0]}, not of {self.source}: "
                        "drop it or change the source"
                    )

    def _check_packages(self, keys: Sequence[str] = ("packages", "validation_packages")) -> None:
        for key in keys:
            if not getattr(self, key):
                raise ValueError(f"data.{key} is empty: list import names of installed packages")
        both = sorted(set(self.packages) & set(self.validation_packages))
        if both:
            raise ValueError(
                f"data.packages and data.validation_packages share {', '.join(both)}: keep one of each"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A prepared data set; the token streams are memory-mapped and read-only.

    `token_bytes` int32 [vocabulary_size] has the bytes of text behind each id, 0 for special tokens.
    `unigram_nats` is the entropy of the validation tokens under their own frequencies, the lowest loss of a
    model that ignores the context.
    """

    name: str
    digest: str
    vocabulary_size: int
    bos: int
    train: np.memmap
    validation: np.memmap
    token_bytes: np.ndarray
    unigram_nats: float
    folder: Path
    left_out: dict[str, int] = field(default_factory=dict)  # documents and files, by reason

    @property
    def unique_tokens(self) -> int:
        """Return the number of training tokens."""
        return len(self.train)


def open_dataset(folder: Path, *, checksums: bool = False) -> Dataset:
    """Return the prepared data set in `folder`, named by its digest, after checking the sizes of its files.

    With `checksums` their content is checked too. Raises DataError if a file is missing or damaged.
    """
    try:
        for name in FILES:
            check_regular(folder / name)
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        tokenizer = (folder / "tokenizer.json").read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is not a prepared data set: it has no {Path(error.filename).name}"
        ) from None
    except ConfigError as error:
        raise _damaged(folder, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"index.json is not JSON ({error})") from None
    try:
        if index["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{folder} has format {index['format_version']}, not {FORMAT_VERSION}: "
                "delete the folder to prepare it again"
            )
        for name, kind in INDEX_TYPES.items():
            if isinstance(index[name], bool) or not isinstance(index[name], kind):
                raise TypeError(f"{name}={index[name]!r}")
        if index["digest"] != folder.name:
            raise _damaged(folder, f"index.json has the digest {index['digest']!r}")
        dtype = np.dtype(index["dtype"]).newbyteorder("<")
        if hashlib.sha256(tokenizer).hexdigest() != index.get("tokenizer_sha256"):
            raise _damaged(folder, "the checksum of tokenizer.json is wrong")
        return Dataset(
            name=index["name"],
            digest=index["digest"],
            vocabulary_size=index["vocabulary_size"],
            bos=index["bos"],
            train=_open_shard(folder, "train", dtype, index, checksums),
            validation=_open_shard(folder, "validation", dtype, index, checksums),
            token_bytes=token_bytes(tokenizer.decode()),
            unigram_nats=index["unigram_nats"],
            folder=folder,
            left_out=index.get("left_out", {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"index.json is not that of a data set ({error!r})") from None


def _open_shard(
    folder: Path, split: str, dtype: np.dtype, index: dict[str, Any], checksums: bool
) -> np.memmap:
    path = folder / f"{split}.bin"
    described = index["splits"][split]
    size = path.stat().st_size if path.exists() else 0
    expected = described["tokens"] * dtype.itemsize
    if size != expected:
        raise _damaged(folder, f"{path.name} has {size} bytes, not {expected}")
    if checksums:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != described["sha256"]:
                raise _damaged(folder, f"the checksum of {path.name} is wrong")
    return np.memmap(path, dtype, "r")


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(f"the data set in {folder} is damaged, {reason}: delete the folder to prepare it again")


def token_bytes(tokenizer_json: str) -> np.ndarray:
    """Return the bytes of text behind each token id, int32 [vocabulary]; 0 for special tokens."""
    tokenizer = json.loads(tokenizer_json)
    # The byte-level alphabet writes each byte as one character; added tokens are written as they are.
    sizes = {index: len(token) for token, index in tokenizer["model"]["vocab"].items()}
    for added in tokenizer["added_tokens"]:
        sizes[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    lengths = np.zeros(max(sizes) + 1, np.int32)
    lengths[list(sizes)] = list(sizes.values())
    return lengths
