"""Results kept for objects that never change, such as the sections that thousands of runs share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
KEPT = 4096


def once_per_object(compute: Callable[[Any], T]) -> Callable[[Any], T]:
    """Compute once for every object; for frozen ones whose fields, as lists, leave them without a hash."""
    kept: dict[int, tuple[T, Any]] = {}

    @functools.wraps(compute)
    def remembered(value: Any) -> T:
        if id(value) not in kept:
            if len(kept) >= KEPT:
                kept.clear()
            kept[id(value)] = compute(value), value  # which keeps the object, and with it its id
        return kept[id(value)][0]

    return remembered
