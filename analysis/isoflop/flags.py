"""Flags of a group of isoFLOP laws: what may invalidate them, or what their intervals take into account."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from analysis.config import FitConfig
from analysis.format import number, percent, plural
from analysis.isoflop.curves import QUANTITY_NAMES, Curves
from analysis.isoflop.estimator import LACK_OF_FIT_FLAG, EstimatorFit, Inputs
from analysis.stats.noise import NoiseFloor

SAME_EXPONENT = 5e-4  # difference that the printed digits do not show


def group_flags(table: pd.DataFrame, inputs: Inputs, fits: tuple[EstimatorFit, ...]) -> tuple[str, ...]:
    """Return the flags of a group's runs and of its fits, one sentence each."""
    return (
        *_trends(fits),
        *_misfits(fits, inputs.floor),
        *_disagreements(fits, inputs.config),
        *_truncated(inputs.cells),
        *_shared_trunks(table, inputs.config),
    )


def _misfits(estimators: tuple[EstimatorFit, ...], floor: NoiseFloor) -> tuple[str, ...]:
    """Return a flag per estimator around which runs scatter by more than replicate seeds do."""
    flags = []
    for name, noise in ((fit.name, fit.noise) for fit in estimators):
        if noise is None or noise.lack_of_fit is None or noise.lack_of_fit > LACK_OF_FIT_FLAG:
            continue
        around, seeds = number(noise.misfit_sd_nats, 2), number(floor.sd_nats, 2)
        flags.append(
            f"{name}: runs scatter around the fit by {around} nats, replicate seeds by {seeds} (lack of fit, "
            f"p = {noise.lack_of_fit:.2g}): a wrong form, or noise that differs between cells; intervals "
            f"take that of the {'fit' if noise.widened else 'seeds'}"
        )
    return tuple(flags)


def _trends(estimators: tuple[EstimatorFit, ...]) -> tuple[str, ...]:
    """Return a flag if intervals take noise that changes with the budget."""
    levels = (fit.noise.trend for fit in estimators if fit.noise)
    return tuple(dict.fromkeys(trend.summary() for trend in levels if not trend.is_constant))


def _disagreements(estimators: tuple[EstimatorFit, ...], config: FitConfig) -> tuple[str, ...]:
    """Return a flag per pair of estimators whose exponents differ by more than their joint scatter."""
    flags = []
    for quantity in estimators[0].laws:
        for one, other in combinations(estimators, 2):
            first, second = one.laws[quantity], other.laws[quantity]
            if first.exponent is None or second.exponent is None:
                continue
            gap = first.exponent - second.exponent
            scatter = np.abs(first.draws[:, 1] - second.draws[:, 1] - gap)
            bound = float(np.nanquantile(scatter, config.confidence))
            if abs(gap) > max(bound, SAME_EXPONENT):
                flags.append(
                    f"{one.name} and {other.name} disagree on the exponent of {QUANTITY_NAMES[quantity]}: "
                    f"{first.exponent:.3f} and {second.exponent:.3f}, joint scatter {bound:.3f}"
                )
    return tuple(flags)


def _truncated(cells: Curves) -> tuple[str, ...]:
    """Return a flag per budget whose curve lacks recurrences at one end that other budgets have."""
    if cells.variable != "mean_recurrence":
        return ()  # sizes are chosen budget by budget
    low, high = cells.values.min(), cells.values.max()
    flags = []
    for k, flops in enumerate(cells.budgets_flops):
        first, last = cells.swept(cells.variable, k)
        if first > low or last < high:
            flags.append(
                f"the curve at {number(flops)} FLOPs spans µ = {first:g} to {last:g} of {low:g} to {high:g}: "
                "a curve cut on one side biases its parabola"
            )
    return tuple(flags)


def _shared_trunks(table: pd.DataFrame, config: FitConfig) -> tuple[str, ...]:
    """Return a flag if runs share trunks and thereby noise, with how the intervals treat it."""
    if "trunk_id" not in table or config.resampling == "block":
        return ()
    branched = table[table["trunk_id"].astype(str) != ""]
    budgets = branched.groupby("trunk_id")["target_flops"].nunique()
    trunks = budgets.index[budgets > 1]
    if not len(trunks):
        return ()
    runs = int(branched["trunk_id"].isin(trunks).sum())
    count = plural(len(trunks), "trunk")
    text = (
        f"{plural(runs, 'run')} branch from {count} over several budgets and share the noise of those "
        "steps: intervals "
    )
    if config.resampling == "noise" and config.shared_noise == 1:
        return (f"{text}take all noise of a trunk's runs as common, the widest reading (shared_noise=1)",)
    if config.resampling == "noise" and config.shared_noise:
        return (f"{text}take {percent(config.shared_noise)} of its variance as common (shared_noise)",)
    return (f"{text}take the runs for independent and are too narrow where that noise is large",)
