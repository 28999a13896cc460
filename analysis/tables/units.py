"""Units of a foreign table: what its loss is measured in, and columns in millions or in PF-days."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
OWN_UNIT = "units of "  # its column: of what is no loss, such as the sizes of a power law
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
LEAST_RATIO, LARGEST_RATIO = 1e-2, 1e5  # of tokens to parameters, within which they are plausible together
USUAL_RATIO = 20.0  # Hoffmann et al. 2022
MOST_READINGS = 3  # named in a message


def loss_unit(column: str, unit: str | None) -> str | None:
    """Return the unit of the loss, a key of LOSS_UNITS: that stated or named by the column, else None."""
    if unit is not None and unit not in LOSS_UNITS:
        raise TableError(f"unit={unit} is unknown: choose from {', '.join(LOSS_UNITS)}")
    return unit or next((name for name, (_, words) in LOSS_UNITS.items() if _says(column, words)), None)


def in_printed_unit(
    losses: pd.Series, unit: str | None, column: str
) -> tuple[pd.Series, str, tuple[str, ...]]:
    """Return losses in the unit that is printed, its name, and a note where they were converted.

    A column that names neither a unit nor a loss keeps its own.
    Bits per byte stay: nats per token would need the tokens per byte.
    """
    if unit == "bits":
        return losses * np.log(2), "nats", ("losses in bits were multiplied by ln 2: nats",)
    if unit == "perplexity":
        logs = np.log(losses.where(losses > 1))
        return logs, "nats", ("of perplexities the logarithm was taken: nats",)
    if unit:
        return losses, LOSS_UNITS[unit][0], ()
    return losses, UNKNOWN_UNIT if "loss" in column.lower() else OWN_UNIT + column, ()


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
        readings = _conversions(medians, ratio)
        if len(readings) == 1:
            said = " and ".join(map(_reading, readings[0].items()))
            return readings[0], f"{said}: 6 N D was {number(ratio)} times the compute; converted"
        return {}, f"6 N D is {number(ratio)} times the compute: which column is in another unit? {HINT}"
    low, high = (number(float(end)) for end in (each.min(), each.max()))
    share = low if low == high else f"{low} to {high}"
    return {}, f"6 N D is {share} times the compute: D* follows the table's tokens, not C / 6 N*"


HINT = "write it as columns.params='N * 1e6', columns.compute='pf_days * 8.64e19'"


def in_plausible_units(points: pd.DataFrame, stated: Sequence[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return points whose compute, params and tokens are plausible, and what was converted with the factor.

    Of two stated sizes the third follows, so one in another unit makes it wrong: N in millions leaves a
    million times the tokens. A size is converted where one reading alone is plausible.

    Parameters
    ----------
    points : compute, params and tokens.
    stated : those of the three that the table has; the third follows from them.

    Raises
    ------
    TableError : a size is not plausible, and several readings are, or none.
    """
    medians = {name: float(points[name].median()) for name in SCALES}
    if _plausible(medians):
        return points, ()
    odd = [name for name in stated if not _within(name, medians[name])]
    seen = _seen({name: medians[name] for name in odd})
    if not odd:
        ratio = number(medians["tokens"] / medians["params"])
        return points, (f"tokens are {ratio} times the parameters: is a column in another unit? {HINT}",)
    if len(stated) == 3:
        return points, (f"{seen}: is a column in another unit? {HINT}",)
    readings = _conversions({name: medians[name] for name in stated})
    if len(readings) != 1:
        several = "; ".join(" and ".join(map(_reading, one.items())) for one in readings[:MOST_READINGS])
        first = (readings or [{}])[0].items()
        written = " ".join(f"columns.{name}='NAME * {number(scale)}'" for name, scale in first)
        hint = f"possible is {several}; for the first, {written}" if readings else f"another unit? {HINT}"
        raise TableError(f"{seen}: {hint}")
    said = "; ".join(
        f"{name} near {number(medians[name])} was read as {_named(scale)}: multiplied by {number(scale)}"
        for name, scale in readings[0].items()
    )
    scaled = points[list(stated)] * pd.Series({**dict.fromkeys(stated, 1.0), **readings[0]})
    return points.assign(**_completed({name: scaled[name] for name in stated})), (said,)


def implausible(points: pd.DataFrame, columns: Sequence[str]) -> tuple[str, ...]:
    """Return a note where a law of sizes is fitted to some that are not plausible."""
    medians = {name: float(points[name].median()) for name in SCALES if name in columns}
    odd = {name: value for name, value in medians.items() if not _within(name, value)}
    return (f"{_seen(odd)}: the law is in the table's own units. {HINT}",) if odd else ()


def _within(name: str, value: float) -> bool:
    low, high = PLAUSIBLE[name]
    return low <= value <= high


def _seen(odd: Mapping[str, float]) -> str:
    listed = " and ".join(f"{name} near {number(value)}" for name, value in odd.items())
    return f"{listed} {'is' if len(odd) == 1 else 'are'} not plausible"


def _plausible(sizes: Mapping[str, float]) -> bool:
    """Return True if compute, params and tokens are those of a language model that somebody trained."""
    within = all(_within(name, sizes[name]) for name in PLAUSIBLE)
    return within and LEAST_RATIO < sizes["tokens"] / sizes["params"] < LARGEST_RATIO


def _completed(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return compute, params and tokens where two or three of them are given."""
    full = dict(sizes)
    if "compute" not in full:
        full["compute"] = 6 * full["params"] * full["tokens"]
    for missing, other in (("tokens", "params"), ("params", "tokens")):
        if missing not in full:
            full[missing] = full["compute"] / 6 / full[other]
    return full


def _conversions(medians: Mapping[str, float], ratio: float | None = None) -> list[dict[str, float]]:
    """Return the fewest conversions of two or three sizes that make all three plausible, the likeliest first.

    Parameters
    ----------
    ratio : 6 N D over C, typical of the table, which the conversions must bring near one.
    """
    readings: list[tuple[float, dict[str, float]]] = []
    for scales in product(*([1.0, *SCALES[name]] for name in medians)):
        chosen = dict(zip(medians, scales, strict=True))
        sizes = _completed({name: value * chosen[name] for name, value in medians.items()})
        left = 1.0 if ratio is None else ratio * chosen["params"] * chosen["tokens"] / chosen["compute"]
        if 1 / NEAR < left < NEAR and _plausible(sizes):
            distance = abs(np.log(sizes["tokens"] / sizes["params"] / USUAL_RATIO))
            readings.append((distance, {name: scale for name, scale in chosen.items() if scale != 1}))
    fewest = min((len(one) for _, one in readings), default=0)
    return [one for _, one in sorted(readings, key=lambda pair: pair[0]) if len(one) == fewest]


def _reading(item: tuple[str, float]) -> str:
    return f"{item[0]} in {_named(item[1])}"


def _named(scale: float) -> str:
    return NAMES.get(scale, f"units of {number(scale)}")


def _says(column: str, words: str) -> bool:
    return re.search(rf"(?<![a-z])({words})(?![a-z])", str(column).lower()) is not None
