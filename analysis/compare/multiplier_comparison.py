"""The result of comparing models with a ladder of plain transformers: equal sizes, multipliers and shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from analysis.compare.arm_differences import Estimate
from analysis.compare.ladder import COUNTINGS, LADDERS, LadderChoice, LadderLaw
from analysis.compare.rows import aligned
from analysis.config import FitConfig, ParameterCount
from analysis.format import fixed, number, percent, plural, span
from analysis.serialize import HIDDEN, Result, estimates_frame
from analysis.stats.bootstrap import NoiseLevel
from analysis.stats.noise import NoiseFloor
from analysis.tables.selection import LeftOut

Equal = Literal["tokens", "FLOPs"]


@dataclass(frozen=True, kw_only=True)
class EqualSize:
    """The plain transformer of equal quality at equal tokens or FLOPs, under one way of counting."""

    measure: str
    counting: ParameterCount
    equal: Equal
    params: float  # of the model
    size: Estimate  # parameters of the transformer
    multiplier: Estimate  # k = its parameters over the model's
    flops_ratio: Estimate  # training FLOPs of the model over the transformer's
    noise: NoiseLevel | None = None
    law: LadderLaw | None = field(default=None, repr=False, compare=False, metadata=HIDDEN)


@dataclass(frozen=True, kw_only=True)
class GapShare:
    """How much of the gap from the ladder's size next to the model to the next larger one it closes."""

    measure: str
    smaller: str
    larger: str
    share: Estimate


@dataclass(frozen=True, kw_only=True)
class ModelWorth:
    """One model beside one ladder; its loss is the mean over its runs."""

    label: str
    kind: str
    ladder: LadderChoice
    sizes: tuple[str, ...]  # of the ladder, by name
    mean_recurrence: float
    tokens: float
    flops: float
    runs: int
    values: dict[str, float]  # by measure
    bits_per_byte: float | None  # None where the table has none
    rows: tuple[EqualSize, ...]
    gaps: tuple[GapShare, ...]

    def row(self, measure: str, counting: ParameterCount, equal: Equal = "tokens") -> EqualSize:
        """Return one row."""
        return next(r for r in self.rows if (r.measure, r.counting, r.equal) == (measure, counting, equal))

    def title(self) -> str:
        """Return what the model is, on how many tokens and FLOPs it was trained, its loss and the ladder."""
        bits = "" if self.bits_per_byte is None else f" ({self.bits_per_byte:.4f} bits per byte)"
        return (
            f"{self.label}: {number(self.tokens)} tokens, {number(self.flops)} FLOPs, "
            f"{plural(self.runs, 'run')}, loss {self.values['loss']:.4f} nats{bits}; beside "
            f"{len(self.sizes)} {LADDERS[self.ladder]}"
        )

    def headline(self) -> str:
        """Return the multiplier of the loss, or why there is none, in one sentence."""
        row = self.row("loss", "all")
        k, paid = row.multiplier, row.flops_ratio
        if k.value is None or paid.value is None:
            return f"{self.label} at {number(self.tokens)} tokens: no transformer of equal loss, {k.refusal}"
        return (
            f"{self.label} at {number(self.tokens)} tokens has the loss of a transformer of {k.value:.2f} "
            f"{span(k.low, k.high)} times its parameters (all counted), for {paid.value:.2f} times the "
            "training FLOPs of that one"
        )

    def table(self) -> list[list[str]]:
        """Return the rows as text, the headings first."""
        cells = [["", "parameters counted", "of the model", "of its equal", "k", "FLOPs over its", ""]]
        for row in self.rows:
            head = [f"{row.measure} at equal {row.equal}", COUNTINGS[row.counting], number(row.params)]
            if row.size.value is None:
                cells.append([*head, "–", "–", "–", f"refused: {row.size.refusal}"])
                continue
            paid = _shown(row.flops_ratio, ".2f") if row.equal == "tokens" else ""
            cells.append([*head, _shown(row.size), _shown(row.multiplier, ".2f"), paid, ""])
        return cells

    def gap_lines(self) -> list[str]:
        """Return a line for every measure: the share of the gap between two sizes of the ladder."""
        return [
            f"Share of the gap from {gap.smaller} to {gap.larger} in {gap.measure}: {share_text(gap.share)}"
            for gap in self.gaps
        ]

    def summary(self) -> str:
        """Return the table and the shares as text."""
        return "\n".join(
            [
                self.title(),
                *(f"  {line}" for line in aligned(self.table())),
                *(f"  {line}" for line in self.gap_lines()),
            ]
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class MultiplierComparison(Result):
    """Every looped and fixed-depth model beside the ladders of plain transformers."""

    config: FitConfig
    runs_digest: str
    noise: NoiseFloor
    models: tuple[ModelWorth, ...]
    left_out: tuple[LeftOut, ...]
    table: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)
    again: Callable[[FitConfig], MultiplierComparison] = field(
        repr=False, compare=False, metadata=HIDDEN
    )  # the comparison of the same runs with other settings

    def at_level(self, level: float) -> MultiplierComparison:
        """Return the comparison with its intervals at another level of confidence."""
        return self.again(replace(self.config, confidence=level))

    def headline(self) -> str:
        """Return the multipliers in one line."""
        shown = [model for model in self.models if model.kind == "looped"] or list(self.models)
        return "; ".join(model.headline() for model in shown)

    def summary(self) -> str:
        """Return the comparison as plain text."""
        lines = [
            "The plain transformer of equal quality, and k = its parameters over the model's "
            f"({percent(self.config.confidence)} intervals, one by one). Bits per byte are the loss times a "
            "constant of the data: what is said of the loss holds of them",
            self.noise.summary(),
            *(f"  left out: {item.run_id}, {item.reason}" for item in self.left_out),
        ]
        return "\n".join([*lines, *(f"\n{model.summary()}" for model in self.models), "", self.headline()])

    def to_frame(self) -> pd.DataFrame:
        """Return one row per model, ladder, measure, counting and number: value, low, high and refusal."""
        keys = ("model", "tokens", "ladder", "equal", "measure", "counting", "number")
        return estimates_frame(keys, self._rows())

    def _rows(self) -> Iterator[tuple[object, ...]]:
        for model in self.models:
            head = model.label, model.tokens, model.ladder
            for row in model.rows:
                key = *head, row.equal, row.measure, row.counting
                named = {"parameters": row.size, "k": row.multiplier, "FLOPs ratio": row.flops_ratio}
                for name, found in named.items():
                    yield *key, name, *_numbers(found)
            for gap in model.gaps:
                name = f"share of the gap, {gap.smaller} to {gap.larger}"
                yield *head, "tokens", gap.measure, "", name, *_numbers(gap.share)


def share_text(share: Estimate) -> str:
    """Return a share of a gap as a percentage with its interval, or the refusal."""
    if share.value is None:
        return f"refused: {share.refusal}"
    low, high = (fixed(None if end is None else 100 * end, 1) for end in (share.low, share.high))
    return f"{percent(share.value, 1)} [{low}, {high}]"


def _shown(found: Estimate, form: str = ".3g") -> str:
    low, high = ("open" if end is None else _form(end, form) for end in (found.low, found.high))
    return f"{_form(found.value or 0.0, form)} [{low}, {high}]"


def _form(value: float, form: str) -> str:
    return number(value) if form == ".3g" else format(value, form)


def _numbers(found: Estimate) -> tuple[float, float, float, str]:
    if found.value is None:
        return np.nan, np.nan, np.nan, str(found.refusal)
    low = -np.inf if found.low is None else found.low
    return found.value, low, np.inf if found.high is None else found.high, ""
