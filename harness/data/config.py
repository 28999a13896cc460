"""Configuration of a data set: the `data` group."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt, MinLen

BYTE_TOKENS = 256

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
Progress = Callable[[str, float], None]  # called with a stage and the share of it that is done

# Keys that belong to one source alone; refused for another one.
SOURCE_KEYS = {
    "installed_python": ("packages", "validation_packages"),
    "text": ("path",),
    "huggingface": ("repository", "subset", "revision", "max_documents"),
}


class DataError(ValueError):
    """Data that cannot be used; the message is one line that says what to change."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Describe the documents of a data set and the tokenizer trained on them.

    Raises ValueError where the fields of a source are missing or contradict each other.
    """

    name: Annotated[str, MinLen(1)]
    source: Literal["installed_python", "text", "huggingface"]

    # installed_python: import names of installed packages; "stdlib" is the standard library.
    packages: list[str] = field(default_factory=list)
    validation_packages: list[str] = field(default_factory=list)

    # text: a file or a folder of .txt, .jsonl, .jsonl.gz and .parquet files.
    path: str | None = None

    # huggingface: a data set of the hub (or a folder of data files), streamed until one of the limits is met.
    repository: str | None = None
    subset: str | None = None
    repository_split: Annotated[str, MinLen(1)] = "train"
    revision: str | None = None
    max_tokens: Annotated[int, Gt(0)] | None = None
    max_documents: Annotated[int, Gt(0)] | None = None

    # text and huggingface: the column that holds a document, and the share of documents held out.
    text_field: Annotated[str, MinLen(1)] = "text"
    validation_fraction: Annotated[float, Ge(0), Lt(1)] = 0.02

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
            case "text" if not self.path:
                raise ValueError("data.path is not set: name a file or a folder of .txt, .jsonl or .parquet")
            case "huggingface" if not self.repository:
                raise ValueError("data.repository is not set: name a data set of the Hugging Face hub")
            case "huggingface" if self.max_tokens is None and self.max_documents is None:
                raise ValueError("a streamed data set has no end: set data.max_tokens or data.max_documents")

    def _check_others_unset(self) -> None:
        for source, keys in SOURCE_KEYS.items():
            for key in keys if source != self.source else ():
                value = getattr(self, key)
                if value not in (None, []):
                    raise ValueError(
                        f"data.{key}={value} is a key of data.source={source}, not of {self.source}: "
                        "drop it or change the source"
                    )

    def _check_packages(self) -> None:
        for key in ("packages", "validation_packages"):
            if not getattr(self, key):
                raise ValueError(f"data.{key} is empty: list import names of installed packages")
        both = sorted(set(self.packages) & set(self.validation_packages))
        if both:
            raise ValueError(
                f"data.packages and data.validation_packages share {', '.join(both)}: keep one of each"
            )
