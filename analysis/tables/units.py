"""Units of a foreign table: what its loss is measured in, and columns in millions or in PF-days."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from analysis.format import number
from analysis.tables.schema import TableError

# By unit: how it is printed, and its words in the name of a column.
LOSS_UNITS = {
    "nats": ("nats", r"nats?"),
    "bits_per_byte": ("bits/byte", r"bpb|bits[ _/]*(per[ _]*)?byte"),
    "perplexity": ("nats", r"ppl|perplexity"),
    "bits": ("nats", r"bits?"),
}
UNKNOWN_UNIT = "loss units"
NEAR = 2.0  # 6 N D and C agree up to this factor where the units are right: accountings differ by less
# Multiples in which tables give a quantity, by the words of its column, and the range of plausible values.
SCALES: dict[str, dict[float, str]] = {
    "compute": {
        8.64e19: r"pf[ _-]*(lop[s/]*)?[ _-]*days?|petaflops?[ _/s-]*days?",
        1e18: r"e(xa)?flops?",
        1e21: r"z(etta)?flops?",
    },
    "params": {1e3: r"k|thousands?", 1e6: r"m|mm|millions?", 1e9: r"b|bn|billions?"},
    "tokens": {1e6: r"m|mm|millions?", 1e9: r"b|bn|billions?", 1e12: r"t|trillions?"},
}
NAMES = {
    8.64e19: "PF-days",
    1e18: "EFLOPs",
    1e21: "ZFLOPs",
    1e3: "thousands",
    1e6: "millions",
    1e9: "billions",
    1e12: "trillions",
}
PLAUSIBLE = {"compute": (1e9, 1e29), "params": (1e3, 1e14), "tokens": (1e4, 1e16)}


def loss_unit(column: str, unit: str | None) -> str | None:
    """Return the unit of the loss, a key of LOSS_UNITS: that stated or named by the column, else None."""
    if unit is not None and unit not in LOSS_UNITS:
        raise TableError(f"unit={unit} is unknown: choose from {', '.join(LOSS_UNITS)}")
    return unit or next((name for name, (_, words) in LOSS_UNITS.items() if _says(column, words)), None)


def in_printed_unit(losses: pd.Series, unit: str | None) -> tuple[pd.Series, str, tuple[str, ...]]:
    """Return losses in the unit that is printed, its name, and a note where they were converted.

    Bits per byte stay: nats per token would need the tokens per byte.
    """
    if unit == "bits":
        return losses * np.log(2), "nats", ("losses in bits were multiplied by ln 2: nats",)
    if unit == "perplexity":
        logs = np.log(losses.where(losses > 1))
        return logs, "nats", ("of perplexities the logarithm was taken: nats",)
    return losses, LOSS_UNITS[unit][0] if unit else UNKNOWN_UNIT, ()


def named_scale(role: str, column: str, values: pd.Series) -> float:
    """Return the multiple that a column's name states (params_M, PF-days), 1 where it states none.

    The name alone does not count: "m" stands for millions only where the values are too small otherwise.
    """
    low = float(np.nanmedian(values)) if values.notna().any() else np.nan
    for scale, words in SCALES.get(role, {}).items():
        if words and _says(column, words) and low < PLAUSIBLE[role][0] * 100:
            return scale
    return 1.0


def in_plain_units(numbers: dict[str, pd.Series]) -> tuple[dict[str, pd.Series], tuple[str, ...]]:
    """Return the columns with compute = 6 params x tokens in plain units, and what was converted."""
    known = {"compute": numbers.get("compute", numbers.get("flops"))}
    known |= {name: numbers.get(name) for name in ("params", "tokens")}
    sizes = {name: values for name, values in known.items() if values is not None}
    if len(sizes) < 3:
        return numbers, ()
    scales, note = _contradiction(sizes)
    for name, scale in scales.items():
        column = name if name in numbers else "flops"
        numbers = numbers | {column: numbers[column] * scale}
    return numbers, (note,) if note else ()


def implied(points: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Return points with what C = 6 N D gives of compute, params, tokens, flops and tokens_per_param."""
    known = {str(name): points[name] for name in points}
    if "x" in known:
        known.setdefault(axis, known["x"].astype(float))
    if "flops" in known:
        known.setdefault("compute", known["flops"])
    related: dict[str, Any] = {
        name: known[name].astype(float) for name in ("compute", "params", "tokens") if name in known
    }
    if set(related) == {"params", "tokens"}:
        related["compute"] = 6 * related["params"] * related["tokens"]
    elif len(related) == 2:
        missing, other = ("tokens", "params") if "params" in related else ("params", "tokens")
        related[missing] = related["compute"] / 6 / related[other]
    if "compute" in related:
        known.setdefault("flops", related["compute"])
    if "params" in related and "tokens" in related:
        known.setdefault("tokens_per_param", related["tokens"] / related["params"])
    return pd.DataFrame({**known, **related})


def _contradiction(columns: Mapping[str, pd.Series]) -> tuple[dict[str, float], str | None]:
    """Return the multiples that make compute = 6 params x tokens, and what contradicts.

    Parameters
    ----------
    columns : compute, params and tokens of a table that has all three.

    Returns
    -------
    The multiples by column, empty where the units agree or several choices explain the factor; and a note,
    None where 6 N D is within 20 % of the compute.
    """
    medians = {name: float(np.nanmedian(columns[name])) for name in SCALES}
    each = 6 * columns["params"] * columns["tokens"] / columns["compute"]
    each = each[np.isfinite(each) & (each > 0)]
    if each.empty or each.between(1 / 1.2, 1.2).all():
        return {}, None
    ratio = float(each.median())
    if not 1 / NEAR**2 < ratio < NEAR**2:
        conversions = _conversions(medians, ratio)
        if len(conversions) == 1:
            said = " and ".join(f"{name} in {_named(scale)}" for name, scale in conversions[0].items())
            return conversions[0], f"{said}: 6 N D was {number(ratio)} times the compute; converted"
        return {}, f"6 N D is {number(ratio)} times the compute: which column is in another unit? {HINT}"
    low, high = (number(float(end)) for end in (each.min(), each.max()))
    share = low if low == high else f"{low} to {high}"
    return {}, f"6 N D is {share} times the compute: D* follows the table's tokens, not C / 6 N*"


HINT = "write it as columns.params='N * 1e6', columns.compute='pf_days * 8.64e19'"


def implausible(points: pd.DataFrame) -> tuple[str, ...]:
    """Return a note where compute, params or tokens have no plausible size, as N in millions has not."""
    for name, (low, high) in PLAUSIBLE.items():
        middle = float(points[name].median())
        if not low <= middle <= high:
            text = f"{name} near {number(middle)} is no plausible number: is a column in another unit?"
            return (f"{text} {HINT}",)
    return ()


def _conversions(medians: Mapping[str, float], ratio: float) -> list[dict[str, float]]:
    """Return the fewest conversions that bring 6 N D to the compute and every column to a plausible size."""
    conversions: list[dict[str, float]] = []
    for scales in product(*([1.0, *SCALES[name]] for name in SCALES)):
        chosen = dict(zip(SCALES, scales, strict=True))
        left = ratio * chosen["params"] * chosen["tokens"] / chosen["compute"]
        sizes = {name: medians[name] * chosen[name] for name in SCALES}
        plausible = all(low <= sizes[name] <= high for name, (low, high) in PLAUSIBLE.items())
        if 1 / NEAR < left < NEAR and plausible and 1e-2 < sizes["tokens"] / sizes["params"] < 1e5:
            conversions.append({name: scale for name, scale in chosen.items() if scale != 1})
    fewest = min(map(len, conversions), default=0)
    return [one for one in conversions if len(one) == fewest]


def _named(scale: float) -> str:
    return NAMES.get(scale, f"units of {number(scale)}")


def _says(column: str, words: str) -> bool:
    return re.search(rf"(?<![a-z])({words})(?![a-z])", str(column).lower()) is not None
