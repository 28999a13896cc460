"""Rows of a data set of the Hugging Face hub, streamed, and the positions at which a stream can resume."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.data.dataset import DataConfig, DataError

State = dict[str, Any]


class HubStream:
    """Stream the rows of a data set of the hub, or of a local folder of data files.

    Parameters
    ----------
    state : of an earlier stream, to continue after its last row.

    Raises
    ------
    DataError : the library is missing or does not know the name, subset, split or revision.
    ConnectionError : the hub cannot be reached.
    """

    def __init__(self, config: DataConfig, state: State | None = None) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            import datasets
        except ModuleNotFoundError:
            raise DataError(
                'data.source=huggingface needs the datasets library: pip install -e ".[huggingface]"'
            ) from None
        self._name = str(config.repository)
        try:
            self._stream = datasets.load_dataset(
                self._name,
                config.subset,
                split=config.repository_split,
                revision=config.revision,
                streaming=True,
            )
        except (ValueError, FileNotFoundError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{self._name} cannot be read ({reason}): check data.repository, subset, repository_split "
                "and revision"
            ) from error
        if state is not None:
            self._stream.load_state_dict(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows. Raises ConnectionError if the stream breaks."""
        try:
            yield from self._stream
        except Exception as error:  # of the network, of its client, of a file system: many classes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConnectionError(
                f"{self._name}: the stream broke ({reason}): run the same command again to continue"
            ) from error

    def state(self) -> State:
        """Return the state after the last row taken, as JSON data."""
        state: State = self._stream.state_dict()
        return state


@dataclass(frozen=True, kw_only=True)
class StreamPosition:
    """Number of documents and rows read, documents left out, and the state of the stream after them."""

    documents: int = 0
    rows: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    state: dict[str, Any] | None = None


class StreamPositions:
    """Positions recorded by a reader, for a writer that lags behind it."""

    def __init__(self, start: dict[str, Any] | None = None) -> None:
        self.start = StreamPosition(**(start or {}))
        self._positions: deque[StreamPosition] = deque([self.start])

    def add(self, *, documents: int, rows: int, left_out: Counter[str], state: dict[str, Any] | None) -> None:
        """Record the position after the document that was just read."""
        self._positions.append(
            StreamPosition(documents=documents, rows=rows, left_out=dict(left_out), state=state)
        )

    def before(self, documents: int) -> dict[str, Any]:
        """Return, as JSON data, the last position at or before `documents`, and drop earlier ones."""
        while len(self._positions) > 1 and self._positions[1].documents <= documents:
            self._positions.popleft()
        return asdict(self._positions[0])
