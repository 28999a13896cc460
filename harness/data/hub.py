"""Rows of a data set of the Hugging Face hub, streamed through the `datasets` library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from harness.data.config import DataConfig, DataError

State = dict[str, Any]


class HubStream:
    """Stream the rows of a data set by name; a folder of data files on this machine is a name too.

    `state` is where an earlier stream stood. Raises DataError when the library is missing or it does not know
    the name, subset, split or revision, ConnectionError when the hub cannot be reached.
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
        """Yield the rows; raises ConnectionError when the stream breaks."""
        try:
            yield from self._stream
        except Exception as error:  # of the network, of its client, of a file system: many classes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConnectionError(
                f"{self._name} broke off ({reason}): run the same command again to continue"
            ) from error

    def state(self) -> State:
        """Return JSON data that says where the stream stands: after the last row taken."""
        state: State = self._stream.state_dict()
        return state
