"""The grid of a new sweep: recurrences and budgets that can give a law, within an allowance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq

from analysis.config import FitConfig
from analysis.design.ground_truth import fitted
from analysis.isoflop.geometry import MIN_BUDGETS, MIN_SWEPT, geometry
from model.config_validation import ConfigError
from model.flops import flops_per_token, parameter_counts
from sweeps.config.compose import compose_study
from sweeps.config.study import StudyConfig
from sweeps.planning.design import allowance_flops
from sweeps.planning.new_sweep import Reference, flow
from sweeps.planning.plan import Plan, plan

LADDER = 5  # budgets at most, a factor of two apart
REPLICATES = [1, 2]  # further seeds of two cells
EVERYWHERE = (0.0, math.inf)
INSIDE = 1.4  # factor between an optimum and the ends of its curve at which most seeds accept it
SEARCHED = (1e8, 1e26)  # FLOPs


def noise_cells(recurrences: list[int], budgets: list[float]) -> dict[str, dict[str, Any]]:
    """Return further seeds of a middle recurrence at the lowest and at the middle budget."""
    middle = recurrences[(len(recurrences) - 1) // 2]
    lengths = {"noise_middle": budgets[(len(budgets) - 1) // 2], "noise_low": budgets[0]}
    names = {length: name for name, length in lengths.items()}  # one where the budgets are one or two
    return {
        name: {"mean_recurrences": [middle], "lengths": [length], "seeds": REPLICATES}
        for length, name in sorted(names.items())
    }


def allowance_in_flops(study: StudyConfig, allowance: float | str, reference: Reference) -> float:
    """Return an allowance in FLOPs; device-hours, as 20h, are converted at the speed of the study's runs.

    Raises ConfigError where the speed is unknown, with the command that times a shipped sweep of that scale.
    """
    (scale,) = study.runs
    shipped = [f"sweep={reference.name}", f"model={scale}", *study.overrides[1:]]
    study = dataclasses.replace(_shortest(study), allowance=allowance, overrides=shipped)
    return allowance_flops(study, plan(study).frame, math.nan)


def fitted_grid(
    allowance_flops: float,
    recurrences: list[int],
    study: StudyConfig,
    window: tuple[float, float] = EVERYWHERE,
    *,
    vary: bool = True,
) -> tuple[list[int], list[float]]:
    """Return recurrences and budgets of the largest grid within an allowance that drops no cell as too short.

    Budgets are left out from the largest and, if `vary`, recurrences from the deepest, never so many that the
    rest can give no law.

    Parameters
    ----------
    window : least and largest budget at which a law has its optimum inside the recurrences; kept if possible.

    Raises
    ------
    ConfigError : every such grid costs more.
    """
    if not allowance_flops > 0:
        raise ConfigError(f"allowance={allowance_flops:g}: give FLOPs or device-hours above 0")
    grids = [recurrences]
    while vary and sum(mu % 2 == 0 for mu in grids[-1][:-1]) >= MIN_SWEPT:
        grids.append(grids[-1][:-1])
    for low, high in (window, EVERYWHERE):
        for grid in grids:
            for count in range(LADDER, MIN_BUDGETS - 1, -1):
                paid = min(allowance_flops, _units(grid, count) * high / 2 ** (count - 1))
                budgets = ladder(paid, grid, count)
                if budgets[0] >= max(low, _shortest_flops(study, grid)):
                    return grid, budgets
    grid = grids[-1]
    least = _two_digits(_shortest_flops(study, grid), math.ceil)
    raise ConfigError(
        f"allowance={allowance_flops:.3g} FLOPs: the least grid that can give a law, µ = "
        f"{','.join(map(str, grid))} at {MIN_BUDGETS} budgets from {flow(least)}, takes "
        f"{flow(least * _units(grid, MIN_BUDGETS))}; give that, or a smaller scale"
    )


def ladder(allowance_flops: float, recurrences: list[int], count: int = LADDER) -> list[float]:
    """Return `count` budgets whose grid, control and further seeds cost at most `allowance_flops`.

    The least has two significant digits; each of the others is twice the one before.
    """
    return _doubled(_two_digits(allowance_flops / _units(recurrences, count), math.floor), count)


def known_window(study: StudyConfig, reference: Reference) -> tuple[float, float]:
    """Return the budgets between which the reference's law has its optimum well inside the recurrences.

    `EVERYWHERE` if it is of another scale, its results are not there or the recurrences lie close together.
    """
    (scale,), swept = study.runs, study.sweep.mean_recurrences
    if scale != reference.scale or reference.study is None or max(swept) <= INSIDE**2 * min(swept):
        return EVERYWHERE
    runs, count = plan(_shortest(study)).accepted, FitConfig().parameter_count
    law = fitted(reference.study / "laws.json", runs, count)
    shape = geometry(runs[runs["kind"] == "looped"], count)

    def budget(optimum: float) -> float:
        return float(np.exp(brentq(lambda c: law.optimum(shape, np.exp(c)) - optimum, *np.log(SEARCHED))))

    return budget(min(swept) * INSIDE), budget(max(swept) / INSIDE)


def outside_window(study: StudyConfig, window: tuple[float, float]) -> list[str]:
    """Return a line on the budgets at which a known law has its optimum outside the grid, and the remedy."""
    (low, high), budgets, swept = window, study.sweep.budgets_flops, study.sweep.mean_recurrences
    outside = [flops for flops in budgets if not low <= flops <= high]
    if not outside:
        return []
    first, last = _two_digits(low, math.ceil), _two_digits(high, math.floor)
    return [
        f"{len(outside)} of {len(budgets)} budgets have their optimum at an edge of µ = {min(swept)} to "
        f"{max(swept)} or beyond: the law of the shipped sweep has it inside from {flow(first)} to "
        f"{flow(last)} FLOPs; an allowance of {flow(first * _units(swept, MIN_BUDGETS))} pays for three such "
        "budgets: delete the file and write it again with that"
    ]


def alike_budgets(study: StudyConfig, reference: Reference) -> list[float]:
    """Return budgets that give this scale as many tokens per parameter as the reference's give its own.

    They are raised as a whole if the least would be too short.
    """
    (run,), (shipped,) = study.runs.values(), compose_study([f"sweep={reference.name}"]).runs.values()
    tokens = parameter_counts(run.model).total / parameter_counts(shipped.model).total
    middle = (4, 2)
    flops = flops_per_token(run.model, run.accounting).at(*middle)
    ratio = tokens * flops / flops_per_token(shipped.model, shipped.accounting).at(*middle)
    least = max(ratio * reference.budgets_flops[0], _shortest_flops(study, study.sweep.mean_recurrences))
    return _doubled(_two_digits(least, math.ceil), LADDER)


def too_short(study: StudyConfig, planned: Plan) -> list[str]:
    """Return a line on the cells that `sweep.min_steps` drops and on what the whole grid would take."""
    frame, sweep = planned.frame, study.sweep
    short = int(((frame["verdict"] == "DROP") & (frame["steps"] < sweep.min_steps)).sum())
    if not short:
        return []
    deepest = max(sweep.mean_recurrences)
    least = _two_digits(_shortest_flops(study, sweep.mean_recurrences), math.ceil)
    return [
        f"{short} of {len(frame)} cells are dropped as too short: {sweep.min_steps} steps (sweep.min_steps) "
        f"at µ = {deepest} take {flow(least)} FLOPs. Start the budgets there (an allowance of "
        f"{flow(least * _units(sweep.mean_recurrences, LADDER))} does), or leave the largest µ out"
    ]


def unused(study: StudyConfig, planned: Plan, allowance: float | str, reference: Reference) -> list[str]:
    """Return a line on the part of the allowance for which the grid has no use."""
    total, flops = planned.totals()["nominal_flops"], allowance_in_flops(study, allowance, reference)
    if total > flops / 2:
        return []
    return [
        f"the grid takes {total / flops:.2g} of the allowance: at larger budgets the optima of this scale "
        f"lie beyond µ = {max(study.sweep.mean_recurrences)}; a larger scale or deeper mean_recurrences "
        "can use more"
    ]


def other_budgets(study: StudyConfig, reference: Reference) -> list[str]:
    """Return a line on the budgets of the shipped sweep of the same scale where the study has others."""
    (scale,), shipped = study.runs, reference.budgets_flops
    if scale != reference.scale or set(shipped) == set(study.sweep.budgets_flops):
        return []
    return [
        f"the shipped sweep {reference.name} of this scale has budgets_flops={','.join(map(flow, shipped))}"
    ]


def _doubled(least: float, count: int) -> list[float]:
    return [float(f"{least * 2**k:.6g}") for k in range(count)]


def _units(recurrences: Sequence[float], count: int) -> float:
    """Return the cost of `count` budgets with control and further seeds in units of the least budget."""
    factors = [2.0**k for k in range(count)]
    repeated = (factors[0] + factors[(count - 1) // 2]) * len(REPLICATES)
    return sum(factors) * (len(recurrences) + 1) + repeated


def _two_digits(value: float, rounding: Callable[[float], int]) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return rounding(value / unit + (1e-9 if rounding is math.floor else -1e-9)) * unit


def _shortest(study: StudyConfig) -> StudyConfig:
    """Return the study at the one budget whose runs are just long enough."""
    flops = 2 * _shortest_flops(study, study.sweep.mean_recurrences)
    return dataclasses.replace(study, sweep=dataclasses.replace(study.sweep, budgets_flops=[flops], cells={}))


def _shortest_flops(study: StudyConfig, recurrences: Sequence[int]) -> float:
    """Return the FLOPs of `sweep.min_steps` steps at the largest recurrence."""
    (run,), deepest = study.runs.values(), max(recurrences)
    per_token = flops_per_token(run.model, run.accounting).at(deepest, math.ceil(deepest / 2))
    return float(per_token * run.batch_tokens * study.sweep.min_steps)
