"""Files of results: written only where they say something else than before, beyond the last digits.

The last digits of a fit depend on the processor, as BLAS and numpy sum in another order on each. A result
that is kept under version control stays as it is when it is computed again elsewhere.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from pathlib import Path
from typing import Any

RELATIVE = 5e-5  # of a number: a minimum that is flat is found to four or five digits
NUMBER = re.compile(r"([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")
ZERO = 1e-6  # of a gradient or a rate: numbers below are alike, as what is left of them is rounding
WIDTH = 0.05  # of an interval from resamples: its ends are not known better
FEW = 3  # digits from which a number in prose may be rounded the other way


def write_result(path: Path, text: str) -> bool:
    """Write a JSON, CSV or text file atomically unless it says the same already; return True if written."""
    if path.is_file():
        same = same_json if path.suffix == ".json" else same_text
        if same(path.read_text(encoding="utf-8"), text):
            return False
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return True


def same_json(old: str, new: str) -> bool:
    """Return True if two JSON texts agree but for the last digits of numbers."""
    try:
        return old == new or _same(json.loads(old), json.loads(new))
    except ValueError:  # the old file is damaged
        return False


def same_text(old: str, new: str) -> bool:
    """Return True if two texts agree but for the last digits of numbers of three and more digits."""
    parts = NUMBER.split(old), NUMBER.split(new)
    return len(parts[0]) == len(parts[1]) and all(
        one == other or (place % 2 == 1 and _alike(one, other))
        for place, (one, other) in enumerate(zip(*parts, strict=True))
    )


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        # Resamples of a law with parameters that are not identified end anywhere along its flat directions.
        loose = {"intervals"} if old.get("not_identified") else set()
        return list(old) == list(new) and all(_same(old[key], new[key]) for key in old if key not in loose)
    if isinstance(old, list) and isinstance(new, list):
        if len(old) == len(new) == 2 and all(isinstance(end, float) for end in (*old, *new)):
            slack = WIDTH * abs(new[1] - new[0])
            if all(abs(one - other) <= slack for one, other in zip(old, new, strict=True)):
                return True
        return len(old) == len(new) and all(itertools.starmap(_same, zip(old, new, strict=True)))
    if isinstance(old, str) and isinstance(new, str):
        return same_text(old, new)
    if isinstance(old, float) and isinstance(new, float):
        return _close(old, new, 0.0)
    return type(old) is type(new) and bool(old == new)


def _alike(old: str, new: str) -> bool:
    """Return True if two numbers in a text differ by no more than the last digit shown."""
    one, other = float(old), float(new)
    digits = max(len(re.sub(r"e.*|\D", "", text).lstrip("0")) for text in (old, new))
    if digits < FEW or not all(re.search(r"[.e]", text) for text in (old, new)):
        return max(abs(one), abs(other)) < ZERO
    return _close(one, other, 1.001 * 10.0 ** (1 - digits))


def _close(old: float, new: float, last: float) -> bool:
    """Return True if two numbers are near: by one unit of the `last` digit of a mantissa, or about zero."""
    size = max(abs(old), abs(new))
    if not math.isfinite(size):  # digits of a run's id may look like a huge number
        return False
    if size < ZERO:
        return True
    return abs(old - new) <= max(RELATIVE * size, last * 10.0 ** math.floor(math.log10(size)))
