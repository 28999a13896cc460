"""Results as plain data: the same bytes for the same result."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DIGITS = 10  # significant digits kept; past them the order of a sum shows


def plain(value: Any) -> Any:
    """Return dataclasses, mappings and sequences as JSON values; NaN and infinities become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [item for item in dataclasses.fields(value) if item.metadata.get("json", True)]
        return {item.name: plain(getattr(value, item.name)) for item in shown}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | np.bool_):
        return bool(value) if isinstance(value, np.bool_) else value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Sequence | np.ndarray):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no plain form")


def to_json(value: Any) -> str:
    """Return indented JSON."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
