"""Formatting of numbers for sentences and tables."""

from __future__ import annotations

import re


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits (4e18, not 4e+18), an open end as 'open'."""
    if value is None:
        return "open"
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].strip('+')}{m[2]}", f"{value:.{digits}g}")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is one."""
    return f"{count} {noun}{'s' * (count != 1)}"


def span(low: float | None, high: float | None, digits: int = 3) -> str:
    """Return an interval in brackets."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def error(value: float) -> str:
    """Return an error with two significant digits, below a millionth as 0."""
    return number(value if abs(value) >= 1e-6 else 0.0, 2)


def fixed(value: float | None, places: int) -> str:
    """Return a number with `places` decimals, an open end as 'open'."""
    return "open" if value is None else f"{value:.{places}f}"


def percent(share: float, places: int = 0) -> str:
    """Return a share as a percentage, with a space before the sign as units have."""
    return f"{100 * share:.{places}f} %"
