"""Where a reading of documents stood, so that an interrupted one goes on there."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Bookmark:
    """Say that `documents` have been read out of `rows` rows; `state` is that of a stream after them."""

    documents: int = 0
    rows: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    state: dict[str, Any] | None = None


class Bookmarks:
    """Keep the bookmarks that a reader leaves, of which a writer that lags behind takes the right one."""

    def __init__(self, start: dict[str, Any] | None = None) -> None:
        self.start = Bookmark(**(start or {}))
        self._left: deque[Bookmark] = deque([self.start])

    def leave(
        self, *, documents: int, rows: int, left_out: Counter[str], state: dict[str, Any] | None
    ) -> None:
        """Leave a bookmark behind the document that was just read."""
        self._left.append(Bookmark(documents=documents, rows=rows, left_out=dict(left_out), state=state))

    def before(self, documents: int) -> dict[str, Any]:
        """Return, as JSON data, the last bookmark that is not past `documents`; earlier ones are dropped."""
        while len(self._left) > 1 and self._left[1].documents <= documents:
            self._left.popleft()
        return asdict(self._left[0])
