"""How much the exponents move with choices that a reader might have made otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from analysis.config import FitConfig, ParameterCount
from analysis.group import GroupFit, fit_groups
from analysis.noise import NoiseFloor
from analysis.study import StudyFit

RESAMPLES = 100  # the table shows point estimates, whose acceptance alone asks for resamples
OUTLIERS = 0.05  # share of the runs with the largest residuals that one variant leaves out
SQUARED = 10.0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The exponents of one group under one choice, by estimator; None where the law is refused."""

    group: str
    choice: str
    exponents: dict[str, dict[str, float | None]]  # quantity -> estimator -> exponent


def sensitivity(study: StudyFit) -> tuple[Variant, ...]:
    """Refit every group under other costs, parameter counts and without its outliers."""
    base = replace(study.config, bootstrap=RESAMPLES, profiles=False)
    cost = f"Huber {study.config.huber_delta:g}"
    choices: list[tuple[str, FitConfig]] = [(f"as reported ({cost}, N {study.config.parameter_count})", base)]
    choices += [
        (
            f"cost: {'squared error' if delta == SQUARED else f'Huber {delta:g}'}",
            replace(base, huber_delta=delta),
        )
        for delta in (1e-4, 1e-3, 1e-2, SQUARED)
        if delta != study.config.huber_delta
    ]
    choices += [
        (f"N counts {count}", replace(base, parameter_count=count))
        for count in get_args(ParameterCount)
        if count != study.config.parameter_count
    ]
    found = []
    for choice, config in choices:
        for group in fit_groups(study.runs, study.noise, config)[0]:
            found.append(_variant(group, choice))
    for group in study.groups:
        found += _without_outliers(study, group, base, study.noise)
    order = {group.label: place for place, group in enumerate(study.groups)}
    return tuple(sorted(found, key=lambda variant: order[variant.group]))


def _variant(group: GroupFit, choice: str) -> Variant:
    exponents: dict[str, dict[str, float | None]] = {
        quantity: {estimator.name: estimator.laws[quantity].exponent for estimator in group.estimators}
        for quantity in group.quantities
    }
    return Variant(group=group.label, choice=choice, exponents=exponents)


def _without_outliers(
    study: StudyFit, group: GroupFit, config: FitConfig, floor: NoiseFloor
) -> list[Variant]:
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
    kept = study.runs[~study.runs["run_id"].isin(worst)].reset_index(drop=True)
    name = f"without the {count} run{'s' * (count > 1)} farthest from the fit"
    return [
        _variant(found, name) for found in fit_groups(kept, floor, config)[0] if found.label == group.label
    ]
