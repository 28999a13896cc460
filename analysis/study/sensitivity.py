"""How much the exponents move with choices that a reader might have made otherwise.

The estimators are the columns; the rows are the cost and its Huber delta, outliers, what N counts and, for
the surface alone, how FLOPs are counted (equal FLOPs under one accounting are unequal under the other, so
that no estimator which works budget by budget can change it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from analysis.config import FitConfig, ParameterCount
from analysis.isoflop.geometry import Geometry, released_gap
from analysis.isoflop.group import GroupFit
from analysis.isoflop.surface_estimator import fit_parametric

RESAMPLES = 100  # the table shows point estimates, whose acceptance alone asks for resamples
OUTLIERS = 0.05  # share of the runs with the largest residuals that one variant leaves out
SQUARED = 10.0
# (config, run ids to leave out) -> the groups fitted again
Refit = Callable[[FitConfig, tuple[str, ...]], Sequence[GroupFit]]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The exponents of one group under one choice, by estimator; None where the law is refused."""

    group: str
    choice: str
    exponents: dict[str, dict[str, float | None]]  # quantity -> estimator -> exponent


def sensitivity(
    groups: Sequence[GroupFit], refit: Refit, config: FitConfig, *, counts: bool = True
) -> tuple[Variant, ...]:
    """Refit every group under other costs, parameter counts and accountings, and without its outliers."""
    base = replace(config, bootstrap=RESAMPLES, profiles=False, validation=False, resampling="noise")
    cost = f"Huber {config.huber_delta:g}"
    told = f", N {_words(config.parameter_count)}" if counts else ""
    choices: list[tuple[str, FitConfig]] = [(f"as reported ({cost}{told})", base)]
    choices += [
        (
            f"cost: {'squared error' if delta == SQUARED else f'Huber {delta:g}'}",
            replace(base, huber_delta=delta),
        )
        for delta in (1e-4, 1e-3, 1e-2, SQUARED)
        if delta != config.huber_delta
    ]
    choices += [
        (f"N counts {_words(count)}", replace(base, parameter_count=count))
        for count in get_args(ParameterCount)
        if counts and count != config.parameter_count
    ]
    found = [_variant(group, choice) for choice, other in choices for group in refit(other, ())]
    for group in groups:
        found += _without_outliers(group, refit, base)
        found += _other_accounting(group, base) if counts else []
    order = {group.label: place for place, group in enumerate(groups)}
    return tuple(sorted(found, key=lambda variant: order[variant.group]))


def _words(count: str) -> str:
    return count.replace("_", " ").replace("non ", "non-").replace("flops", "FLOPs")


def _variant(group: GroupFit, choice: str) -> Variant:
    exponents: dict[str, dict[str, float | None]] = {
        quantity: {estimator.name: estimator.laws[quantity].exponent for estimator in group.estimators}
        for quantity in group.quantities
    }
    return Variant(group=group.label, choice=choice, exponents=exponents)


def _without_outliers(group: GroupFit, refit: Refit, config: FitConfig) -> list[Variant]:
    """Leave out the runs farthest from the shared-shape fit (at least one) and fit again."""
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
    name = f"without the {count} run{'s' * (count > 1)} farthest from the fit"
    again = refit(config, tuple(str(run_id) for run_id in worst))
    return [_variant(found, name) for found in again if found.label == group.label]


def _other_accounting(group: GroupFit, config: FitConfig) -> list[Variant]:
    """Read the optima of the same surface under the other accounting's FLOPs (surface alone)."""
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
