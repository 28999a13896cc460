"""The result of comparing arms: each arm less the reference, as text, as JSON and as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from analysis import serialize
from analysis.compare.arm_differences import Estimate
from analysis.config import FitConfig
from analysis.format import number, percent
from analysis.isoflop.curves import SYMBOLS, Quantity
from analysis.stats.bootstrap import NoiseLevel
from analysis.stats.noise import NoiseFloor
from analysis.tables.selection import LeftOut


@dataclass(frozen=True, kw_only=True)
class ArmBudget:
    """One budget: nats over the cells that both arms have, and at the optimum of each."""

    budget_flops: float
    cells: int
    nats: Estimate
    optimum_nats: Estimate
    multiplier: Estimate


@dataclass(frozen=True, kw_only=True)
class ArmGroup:
    """One arm less the reference at one scale under one accounting."""

    label: str
    accounting: str
    noise: NoiseLevel | None
    cells: int
    nats: Estimate  # mean over all cells that both have
    multiplier: Estimate  # geometric mean over budgets; above one, the arm needs fewer FLOPs
    exponents: dict[Quantity, Estimate]  # differences, by quantity
    budgets: tuple[ArmBudget, ...]

    def summary(self) -> str:
        """Return the differences as text."""
        source = f", noise {self.noise.sd_nats:.4f} nats from {self.noise.source}" if self.noise else ""
        lines = [
            f"  {self.label}: {self.cells} cells in both{source}",
            f"    nats at equal FLOPs: {self.nats.summary()}",
            f"    compute multiplier: {self.multiplier.summary('.3f')}",
            *(
                f"    exponent of {SYMBOLS[quantity]}: {estimate.summary('+.3f')}"
                for quantity, estimate in self.exponents.items()
            ),
        ]
        for row in self.budgets:
            lines.append(
                f"    {number(row.budget_flops)} FLOPs: {row.nats.summary()} nats over {row.cells} cells; at "
                f"the optima {row.optimum_nats.summary()}; multiplier {row.multiplier.summary('.3f')}"
            )
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ArmPair:
    """One arm against the reference."""

    arm: str
    reference: str
    groups: tuple[ArmGroup, ...]
    phi: dict[str, Estimate]  # difference of the worth of a loop, by accounting

    def summary(self) -> str:
        """Return the pair's differences as text."""
        lines = [f"{self.arm} less {self.reference}", *(group.summary() for group in self.groups)]
        lines += [
            f"  phi, {accounting} FLOPs: {found.summary('+.3f')}" for accounting, found in self.phi.items()
        ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True, repr=False)
class ArmComparison(serialize.Printed):
    """Every arm of an axis against the reference."""

    config: FitConfig
    runs_digest: str
    axis: str
    noise: NoiseFloor
    pairs: tuple[ArmPair, ...]
    left_out: tuple[LeftOut, ...]
    table: pd.DataFrame = field(repr=False, compare=False, metadata=serialize.HIDDEN)

    def summary(self) -> str:
        """Return the comparison as plain text."""
        level = percent(self.config.confidence)
        lines = [
            f"Arms of {self.axis}, each less the reference at equal FLOPs ({level} intervals, one by one). "
            "Below zero nats and above a multiplier of one, the arm is better",
            self.noise.summary(),
        ]
        return "\n".join([*lines, *(f"\n{pair.summary()}" for pair in self.pairs)])

    def differences(self) -> pd.DataFrame:
        """Return one row per arm and group: its differences with their intervals, or refusals, as text."""
        return pd.DataFrame(
            [
                {
                    "arm": pair.arm,
                    "group": group.label,
                    "cells in both": str(group.cells),
                    "nats at equal FLOPs": group.nats.summary(),
                    "compute multiplier": group.multiplier.summary(".3f"),
                    **{
                        f"exponent of {SYMBOLS[quantity]}": estimate.summary("+.3f")
                        for quantity, estimate in group.exponents.items()
                    },
                    "phi": pair.phi[group.accounting].summary("+.3f")
                    if group.accounting in pair.phi
                    else Estimate(refusal="an arm has no isoFLOP curve").summary(),
                }
                for pair in self.pairs
                for group in pair.groups
            ]
        ).fillna("")

    def by_budget(self) -> pd.DataFrame:
        """Return one row per arm, group and budget, as text."""
        return pd.DataFrame(
            [
                {
                    "arm": pair.arm,
                    "group": group.label,
                    "budget (FLOPs)": number(row.budget_flops),
                    "cells in both": str(row.cells),
                    "nats at equal FLOPs": row.nats.summary(),
                    "nats at the optima": row.optimum_nats.summary(),
                    "compute multiplier": row.multiplier.summary(".3f"),
                }
                for pair in self.pairs
                for group in pair.groups
                for row in group.budgets
            ]
        )

    def to_json(self) -> str:
        """Return the comparison as JSON text, the same bytes for the same table and seed."""
        return serialize.to_json(self)
