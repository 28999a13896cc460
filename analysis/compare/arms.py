"""Arms of a study against one of them: injections, learning rates or sweeps, compared at equal FLOPs.

Cells are paired: recurrences and budgets that both arms trained enter the difference in nats. The compute
multiplier and the exponents are those of each arm's own isoFLOP curves, phi that of its iso-depth law.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.compare.arm_comparison import ArmBudget, ArmComparison, ArmGroup, ArmPair
from analysis.compare.arm_differences import (
    Estimate,
    exponent_difference,
    log_multiplier,
    mean_difference,
    multiplier,
    optimum_difference,
    paired_cells,
    phi_difference,
)
from analysis.config import FitConfig
from analysis.isoflop.curves import Quantity
from analysis.isoflop.group import GroupFit, fit_groups
from analysis.isoflop.shared_shape import fit_shared
from analysis.stats.bootstrap import REPLICATES, NoiseLevel
from analysis.stats.noise import NoiseFloor, noise_floor
from analysis.study.cross_run_laws import training_points
from analysis.tables.arms import Value, axes, axis_values, name_of, without_axis
from analysis.tables.schema import TableError
from analysis.tables.selection import digest, groups, select


def compare_arms(
    runs: pd.DataFrame, axis: str, config: FitConfig | None = None, reference: str | None = None
) -> ArmComparison:
    """Compare the arms of an axis with one of them.

    Parameters
    ----------
    runs : runs table (schema.RUNS).
    axis : a column of it, `sweep` among them, or a setting of the recipe.
    reference : value of the axis; by default that of most runs.

    Raises
    ------
    TableError : the axis is unknown or has one value, the reference is none of its values, or an arm of
        `sweep` has several recipes.
    """
    config = config or FitConfig()
    selection = select(runs, config.max_epochs)
    used = selection.runs
    values = axis_values(used, axis)
    counts = values.value_counts()
    arms: list[Value] = sorted(counts.index)
    if len(arms) < 2:
        raise TableError(f"arms={axis}: all runs have {name_of(axis, arms[0])}; two arms are needed")
    base = max(arms, key=lambda arm: int(counts[arm]))
    if reference is not None:
        named = [arm for arm in arms if name_of("", arm) == f"={reference}"]
        if not named:
            listed = ", ".join(name_of("", arm)[1:] for arm in arms)
            raise TableError(f"reference={reference}: {axis} has the values {listed}")
        base = named[0]
    _one_recipe_per_arm(used, axis, values)
    neutral, floor = without_axis(used, axis), noise_floor(used)
    tables = {arm: neutral[(values == arm).to_numpy()].reset_index(drop=True) for arm in arms}
    fits = {arm: _fits(name_of(axis, arm), table, floor, config) for arm, table in tables.items()}
    pairs = [
        ArmPair(
            arm=name_of(axis, arm),
            reference=name_of(axis, base),
            groups=tuple(_groups(tables[arm], tables[base], fits[arm], fits[base], floor, config)),
            phi=_phi(fits[arm], fits[base], config),
        )
        for arm in arms
        if arm != base
    ]
    if not any(pair.groups for pair in pairs):
        raise TableError(
            f"arms={axis}: no two arms share a scale, an accounting and all other settings of the recipe"
        )
    return ArmComparison(
        config=config,
        runs_digest=digest(runs),
        axis=axis,
        noise=floor,
        pairs=tuple(pairs),
        left_out=selection.left_out,
        table=used,
    )


def compare_every_axis(
    runs: pd.DataFrame, config: FitConfig | None = None
) -> tuple[tuple[ArmComparison, ...], tuple[str, ...]]:
    """Compare the arms of every axis along which cells were trained more than once.

    Returns
    -------
    The comparisons, and one line for each axis whose arms share nothing.
    """
    config = config or FitConfig()
    compared, refused = [], []
    for axis in axes(select(runs, config.max_epochs).runs):
        try:
            compared.append(compare_arms(runs, axis, config))
        except TableError as error:
            refused.append(str(error))
    return tuple(compared), tuple(refused)


def _one_recipe_per_arm(runs: pd.DataFrame, axis: str, values: pd.Series) -> None:
    """Refuse arms of `sweep` that train one cell with several recipes."""
    if axis != "sweep":
        return
    for arm, frame in runs.groupby(values.to_numpy()):
        for label, cells in frame.groupby(["scale", "accounting"]):
            recipes = len(groups(cells))
            if recipes > 1:
                raise TableError(
                    f"arms=sweep: {arm} has {recipes} recipes of {label[0]}; take that axis as arms, "
                    "or keep one recipe with where="
                )


def _fits(name: str, table: pd.DataFrame, floor: NoiseFloor, config: FitConfig) -> dict[str, GroupFit]:
    """Return an arm's isoFLOP curves by group; arms have streams of noise of their own."""
    own = replace(config, seed=config.seed + zlib.crc32(name.encode()), profiles=False)
    return {fit.label: fit for fit in fit_groups(table, floor, own, (fit_shared,))[0]}


def _groups(
    arm: pd.DataFrame,
    base: pd.DataFrame,
    arm_fits: dict[str, GroupFit],
    base_fits: dict[str, GroupFit],
    floor: NoiseFloor,
    config: FitConfig,
) -> list[ArmGroup]:
    """Return the differences of every group that both arms have."""
    found = []
    ours, theirs = dict(groups(arm)), dict(groups(base))
    for label in (label for label in ours if label in theirs):
        both = paired_cells(ours[label], theirs[label])
        fits = [one[label] for one in (arm_fits, base_fits) if label in one]
        level = _level(fits, floor)
        accounting = str(ours[label]["accounting"].iloc[0])
        if len(fits) == 2:
            budgets, multiplier, exponents = _curves(fits[0], fits[1], both, level, config)
        else:
            reason = Estimate(refusal="an arm has no isoFLOP curve")
            budgets, multiplier, exponents = (), reason, {}
        found.append(
            ArmGroup(
                label=label,
                accounting=accounting,
                noise=level,
                cells=len(both),
                nats=mean_difference(both, level, config),
                multiplier=multiplier,
                exponents=exponents,
                budgets=budgets,
            )
        )
    return found


def _curves(
    arm: GroupFit, base: GroupFit, both: pd.DataFrame, level: NoiseLevel | None, config: FitConfig
) -> tuple[tuple[ArmBudget, ...], Estimate, dict[Quantity, Estimate]]:
    """Return the budgets, the compute multiplier and the differences of exponents of one group."""
    variable = arm.quantities[0]
    ours, theirs = (
        {o.budget_flops: o for o in fit.estimator().optima[variable] if o.loss_nats is not None}
        for fit in (arm, base)
    )
    logs, rows = [], []
    for flops in sorted({*ours, *theirs, *both["target_flops"]}):
        cells = both[both["target_flops"] == flops]
        drawn = log_multiplier(ours, theirs, flops)
        if not isinstance(drawn, str):
            logs.append(drawn)
        rows.append(
            ArmBudget(
                budget_flops=float(flops),
                cells=len(cells),
                nats=mean_difference(cells, level, config),
                optimum_nats=optimum_difference(ours.get(flops), theirs.get(flops), config),
                multiplier=multiplier([] if isinstance(drawn, str) else [drawn], str(drawn), config),
            )
        )
    reason = "no optimum of the arm has a loss that the reference reaches within its budgets"
    exponents = {q: exponent_difference(arm, base, q, config) for q in arm.quantities}
    return tuple(rows), multiplier(logs, reason, config), exponents


def _level(fits: Sequence[GroupFit], floor: NoiseFloor) -> NoiseLevel | None:
    """Return the noise of a run: that of seeds, where curves scatter more theirs, without seeds pooled."""
    levels = [level for fit in fits if (level := fit.estimator().noise) is not None]
    if floor.sd_nats is not None:
        freedom = floor.degrees_of_freedom
        seeds = NoiseLevel(sd_nats=floor.sd_nats, degrees_of_freedom=freedom, source=REPLICATES)
        return max([seeds, *levels], key=lambda level: level.sd_nats)
    if not levels:
        return None
    freedom = sum(level.degrees_of_freedom for level in levels)
    squares = sum(level.degrees_of_freedom * level.sd_nats**2 for level in levels)
    return replace(levels[0], sd_nats=float(np.sqrt(squares / freedom)), degrees_of_freedom=freedom)


def _phi(arm: dict[str, GroupFit], base: dict[str, GroupFit], config: FitConfig) -> dict[str, Estimate]:
    """Return the difference of phi of the iso-depth law per accounting, over all groups of both arms."""
    shared = [label for label in arm if label in base]
    found = {}
    for accounting in sorted({arm[label].accounting for label in shared}):
        mine = [label for label in shared if arm[label].accounting == accounting]
        ours, theirs = (
            pd.concat([training_points(fits[label], config).assign(group=label) for label in mine])
            for fits in (arm, base)
        )
        found[accounting] = phi_difference(ours, theirs, config)
    return found
