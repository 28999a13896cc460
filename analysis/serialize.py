"""Results as JSON: the same bytes for the same result."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python

DIGITS = 6  # significant digits kept of what is no whole number; the eighth depends on the processor
HIDDEN: dict[str, Any] = {"json": False}  # metadata of dataclass fields that are left out of the JSON


def to_jsonable(value: Any) -> Any:
    """Return dataclasses, mappings, sequences and arrays as JSON values; NaN and infinities become None.

    Raises PydanticSerializationError (a ValueError) for an object that has no JSON form.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [item for item in dataclasses.fields(value) if item.metadata.get("json", True)]
        return {item.name: to_jsonable(getattr(value, item.name)) for item in shown}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [to_jsonable(item) for item in value]
    if isinstance(value, float):
        return rounded(value) if math.isfinite(value) else None
    return to_jsonable_python(value)


def rounded(value: float) -> float:
    """Return a number with `DIGITS` significant digits; a whole number, which counts something, as it is."""
    return value if value.is_integer() else float(f"{value:.{DIGITS}g}")


def to_json(value: Any) -> str:
    """Return indented JSON."""
    return json.dumps(to_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False)
