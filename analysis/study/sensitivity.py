"""Sensitivity of the exponents to the choices of the analysis.

Columns are the estimators. Rows are the cost and its Huber delta, outliers, the parameters that N counts and,
for the surface alone, the accounting of FLOPs: runs of equal FLOPs under one accounting are unequal under the
other, and the other estimators need budgets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from analysis.config import FitConfig, ParameterCount
from analysis.format import fixed, plural
from analysis.isoflop.curves import SYMBOLS
from analysis.isoflop.geometry import Geometry, released_gap
from analysis.isoflop.group import GroupFit
from analysis.isoflop.surface_estimator import fit_parametric
from analysis.laws.objective import PUBLISHED_DELTA

RESAMPLES = 100  # the table shows point estimates; only their acceptance needs resamples
OUTLIERS = 0.05  # share of the runs, those with the largest residuals, that one variant leaves out
SQUARED = 10.0
# (config, run ids to leave out) -> the groups fitted again
Refit = Callable[[FitConfig, tuple[str, ...]], Sequence[GroupFit]]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The exponents of one group under one choice, by estimator; None where the law is refused."""

    group: str
    choice: str
    exponents: dict[str, dict[str, float | None]]  # quantity -> estimator -> exponent

    def summary(self) -> str:
        """Return the exponents of every estimator, one line per quantity."""
        lines = []
        for quantity, values in self.exponents.items():
            cells = ", ".join(f"{name} {fixed(value, 3) if value else '–'}" for name, value in values.items())
            lines.append(f"  {self.group}, {self.choice}, {SYMBOLS[quantity]}: {cells}")
        return "\n".join(lines)


def sensitivity(
    groups: Sequence[GroupFit], refit: Refit, config: FitConfig, *, counts: bool = True
) -> tuple[Variant, ...]:
    """Refit every group under other costs, parameter counts and accountings, and without its outliers.

    Parameters
    ----------
    refit : fits the groups again under another config and without some run ids.
    counts : also vary what N counts and the accounting; a table of points has neither.
    """
    base = replace(config, bootstrap=RESAMPLES, profiles=False, validation=False, resampling="noise")
    reported = config.huber_delta or PUBLISHED_DELTA
    cost = f"Huber {reported:g}"
    counted = f", N {_spelled(config.parameter_count)}" if counts else ""
    choices: list[tuple[str, FitConfig]] = [(f"as reported ({cost}{counted})", base)]
    choices += [
        (
            f"cost: {'squared error' if delta == SQUARED else f'Huber {delta:g}'}",
            replace(base, huber_delta=delta),
        )
        for delta in (1e-4, 1e-3, 1e-2, SQUARED)
        if delta != reported
    ]
    choices += [
        (f"N counts {_spelled(count)}", replace(base, parameter_count=count))
        for count in get_args(ParameterCount)
        if counts and count != config.parameter_count
    ]
    variants = [_variant(group, choice) for choice, other in choices for group in refit(other, ())]
    for group in groups:
        variants += _without_outliers(group, refit, base)
        variants += _other_accounting(group, base) if counts else []
    order = {group.label: place for place, group in enumerate(groups)}
    return tuple(sorted(variants, key=lambda variant: order[variant.group]))


def variants_summary(variants: Sequence[Variant]) -> str:
    """Return the exponents under every choice as plain text."""
    heading = "Exponents under other choices (– where the law is refused)"
    lines = []
    for group, members in itertools.groupby(variants, key=lambda variant: variant.group):
        own = tuple(members)
        if any(
            value for variant in own for values in variant.exponents.values() for value in values.values()
        ):
            lines += [variant.summary() for variant in own]
        else:
            lines.append(f"  {group}: no law under any of {len(own)} choices, for the reasons above")
    return "\n".join([heading, *lines])


def _spelled(count: str) -> str:
    return count.replace("_", " ").replace("non ", "non-").replace("flops", "FLOPs")


def _variant(group: GroupFit, choice: str) -> Variant:
    exponents: dict[str, dict[str, float | None]] = {
        quantity: {estimator.name: estimator.laws[quantity].exponent for estimator in group.estimators}
        for quantity in group.quantities
    }
    return Variant(group=group.label, choice=choice, exponents=exponents)


def _without_outliers(group: GroupFit, refit: Refit, config: FitConfig) -> list[Variant]:
    """Refit without the runs farthest from the shared-shape fit (at least one)."""
    curve = group.estimator().curve
    if curve is None:
        return []
    residual = np.zeros(len(group.cells.rows))
    for k, optimum in enumerate(group.estimator().optima[group.quantities[0]]):
        at = group.cells.budget == k
        if optimum.fitted:
            fitted = curve(group.quantities[0], k, group.cells.values[at])
            residual[at] = np.abs(group.cells.loss_nats[at] - fitted)
    count = max(1, round(OUTLIERS * len(residual)))
    worst: Any = group.table["run_id"].iloc[group.cells.rows[np.argsort(-residual, kind="stable")[:count]]]
    name = f"without the {plural(count, 'run')} farthest from the fit"
    again = refit(config, tuple(str(run_id) for run_id in worst))
    return [_variant(refitted, name) for refitted in again if refitted.label == group.label]


def _other_accounting(group: GroupFit, config: FitConfig) -> list[Variant]:
    """Return the optima of the same surface under the other accounting's FLOPs."""
    other = {"paper": "released", "released": "paper"}.get(group.accounting)
    if other is None:
        return []
    inputs = replace(group.inputs, config=config, shape=recounted(group, group.inputs.shape))
    laws = fit_parametric(inputs).laws
    exponents: dict[str, dict[str, float | None]] = {
        quantity: {
            estimator.name: laws[quantity].exponent if estimator.name == "surface" else None
            for estimator in group.estimators
        }
        for quantity in group.quantities
    }
    return [
        Variant(group=group.label, choice=f"FLOPs counted as {other} (surface alone)", exponents=exponents)
    ]


def recounted(group: GroupFit, shape: Geometry) -> Geometry:
    """Return the FLOPs per token of the other accounting."""
    sign = 1.0 if group.accounting == "paper" else -1.0
    return replace(shape, flops_fixed=shape.flops_fixed + sign * released_gap(group.table))
