"""Values made ahead of their use by a thread, and how long their user waited for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
POLL_S = 0.2


class Prefetch(Generic[T]):
    """Make `make(key)` for each of `keys` in turn, up to `ahead` of them before they are asked for.

    A context manager: the thread ends with the block. What `make` raises is raised where its value is taken.
    """

    def __init__(self, make: Callable[[int], T], keys: Iterable[int], *, ahead: int = 2) -> None:
        self.waited_s = 0.0
        self._made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=ahead)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(make, keys), daemon=True)

    def take(self) -> T:
        """Return the next value, waiting for it if need be; raises IndexError past the last key."""
        began = time.monotonic()
        value, error = self._made.get()
        self.waited_s += time.monotonic() - began
        if error is not None:
            self._over.set()
            raise error
        return value  # type: ignore[return-value]  # None only where there is an error, or T allows it

    def _work(self, make: Callable[[int], T], keys: Iterable[int]) -> None:
        try:
            for key in keys:
                self._put(make(key), None)
                if self._over.is_set():
                    return
            raise IndexError("no key is left")
        except BaseException as error:
            self._put(None, error)

    def _put(self, value: T | None, error: BaseException | None) -> None:
        while not self._over.is_set():
            try:
                self._made.put((value, error), timeout=POLL_S)
                return
            except queue.Full:
                continue  # look again whether it is over

    def __enter__(self) -> Prefetch[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
