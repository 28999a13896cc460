"""The grid of a new sweep: recurrences and budgets that can give a law, within an allowance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.isoflop.geometry import MIN_BUDGETS, MIN_SWEPT
from model.config_validation import ConfigError
from model.flops import flops_per_token, parameter_counts
from sweeps.config.compose import compose_study
from sweeps.config.study import StudyConfig
from sweeps.planning.known_window import Window, everywhere, outside
from sweeps.planning.new_sweep import Reference, flow
from sweeps.planning.plan import Plan, plan

LADDER = 5  # budgets at most
STEPS = (2.0, 1.6)  # factors between budgets; the second where a law is known and the first costs too much
REPLICATES = [1, 2]  # further seeds of two cells

Grid = tuple[list[int], list[float]]  # recurrences and budgets


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What a whole sweep may cost, in the unit of its user: FLOPs, or device-hours at a known speed."""

    flops: float
    flops_per_hour: float | None = None  # None: it was given in FLOPs

    def value(self, flops: float) -> str:
        """Return an amount as the key `allowance` takes it, rounded up."""
        if self.flops_per_hour is None:
            return flow(_digits(flops, math.ceil, 3))
        return f"{_digits(flops / self.flops_per_hour, math.ceil):g}h"

    def words(self, flops: float) -> str:
        """Return an amount in words, hours with the FLOPs in brackets."""
        written = f"{flow(_digits(flops, math.ceil, 3))} FLOPs"
        return f"{self.value(flops)} ({written})" if self.flops_per_hour else written


def noise_cells(recurrences: list[int], budgets: list[float]) -> dict[str, dict[str, Any]]:
    """Return further seeds of a middle recurrence at the lowest and at the middle budget."""
    middle = recurrences[(len(recurrences) - 1) // 2]
    lengths = {"noise_middle": budgets[(len(budgets) - 1) // 2], "noise_low": budgets[0]}
    names = {length: name for name, length in lengths.items()}  # one where the budgets are one or two
    return {
        name: {"mean_recurrences": [middle], "lengths": [length], "seeds": REPLICATES}
        for length, name in sorted(names.items())
    }


def priced_allowance(study: StudyConfig, allowance: float | str, reference: Reference) -> Allowance:
    """Return an allowance; device-hours, as 20h, are converted at the speed of the study's runs.

    Raises ConfigError where the speed is unknown, with the command that times a shipped sweep of that scale.
    """
    from sweeps.planning.design import (
        allowance_flops,
    )  # here: a plan that needs the grid alone needs no scipy

    (scale,) = study.runs
    shipped = [f"sweep={reference.name}", f"model={scale}", *study.overrides[1:]]
    study = dataclasses.replace(shortest(study), allowance=allowance, overrides=shipped)
    flops = allowance_flops(study, plan(study).frame, math.nan)
    if not flops > 0:
        shown = allowance if isinstance(allowance, str) else f"{allowance:g}"
        raise ConfigError(f"allowance={shown}: give FLOPs or device-hours above 0")
    in_hours = isinstance(allowance, str)
    hours = float(str(allowance).removesuffix("h")) if in_hours else math.nan
    return Allowance(flops=flops, flops_per_hour=flops / hours if in_hours else None)


def excess(study: StudyConfig, allowance: float | str) -> float:
    """Return the device-hours of a study's plan in units of an allowance in hours; 1 for one in FLOPs."""
    if not isinstance(allowance, str):
        return 1.0
    return plan(study).totals()["hours"] / float(allowance.removesuffix("h"))


def fitted_grid(
    allowance: Allowance,
    recurrences: list[int],
    study: StudyConfig,
    window: Window = everywhere,
    *,
    vary: bool = True,
) -> Grid:
    """Return recurrences and budgets of the largest grid within an allowance that drops no cell as too short.

    Budgets are left out from the largest and, if `vary`, recurrences from the deepest, never so many that the
    rest can give no law. A grid with all its optima inside the recurrences goes before all others, then one
    with as many as possible. Where the law puts them inside at no budget that is long enough, it is not used.

    Raises
    ------
    ConfigError : every such grid costs more.
    """

    def rank(grid: Grid) -> tuple[bool, int]:
        beyond = outside(*grid, window)
        return beyond == 0, len(grid[1]) - beyond if beyond else 0

    steps = STEPS[:1] if window is everywhere else STEPS
    for limits in (window, everywhere):
        candidates = list(_grids(allowance.flops, recurrences, study, limits, vary, steps))
        if candidates:
            return max(candidates, key=rank)  # the first of equals
    swept = _swept(recurrences, vary)[-1]
    shortest_flops = _digits(_shortest_flops(study, swept), math.ceil)
    budgets = _rising(shortest_flops, MIN_BUDGETS, steps[-1])
    swept, budgets = inside_grid(study, recurrences, window, vary=vary) or (swept, budgets)
    given, needed = allowance.words(allowance.flops), cost((swept, budgets))
    raise ConfigError(
        f"allowance={given}: the least grid that can give a law, µ = {','.join(map(str, swept))} at "
        f"{MIN_BUDGETS} budgets from {flow(budgets[0])} FLOPs, takes {allowance.words(needed)}; give "
        f"allowance={allowance.value(needed)}, or a smaller scale"
    )


def _grids(
    flops: float,
    recurrences: list[int],
    study: StudyConfig,
    window: Window,
    vary: bool,
    steps: Sequence[float],
) -> Iterator[Grid]:
    """Yield the grids that an allowance pays for, the preferred ones first."""
    for step in steps:
        for swept in _swept(recurrences, vary):
            shortest_flops, highest = _shortest_flops(study, swept), window(swept)[1]
            if highest < shortest_flops:
                continue
            for count in range(LADDER, MIN_BUDGETS - 1, -1):
                paid = min(flops, _units(swept, count, step) * highest / step ** (count - 1))
                budgets = ladder(paid, swept, count, step)
                if budgets[0] >= shortest_flops:
                    yield swept, budgets


def _swept(recurrences: list[int], vary: bool) -> list[list[int]]:
    """Return the recurrences, and if `vary` also without the deepest ones, while they can give a law."""
    found = [recurrences]
    while vary and sum(mu % 2 == 0 for mu in found[-1][:-1]) >= MIN_SWEPT:
        found.append(found[-1][:-1])
    return found


def ladder(
    allowance_flops: float, recurrences: list[int], count: int = LADDER, step: float = 2.0
) -> list[float]:
    """Return `count` budgets whose grid, control and further seeds cost at most `allowance_flops`.

    The least has two significant digits; each of the others is `step` times the one before.
    """
    return _rising(_digits(allowance_flops / _units(recurrences, count, step), math.floor), count, step)


def inside_grid(study: StudyConfig, recurrences: list[int], window: Window, *, vary: bool) -> Grid | None:
    """Return the cheapest grid with all its optima inside, None if there is none."""
    found = []
    for step in STEPS:
        for swept in _swept(recurrences, vary):
            low, high = window(swept)
            if math.isinf(low):
                continue
            least = _digits(max(low, _shortest_flops(study, swept)), math.ceil)
            budgets = _rising(least, MIN_BUDGETS, step)
            if budgets[-1] <= high:
                found.append((_units(swept, MIN_BUDGETS, step) * least, (swept, budgets)))
    return min(found)[1] if found else None


def cost(grid: Grid) -> float:
    """Return the FLOPs of a grid with control and further seeds."""
    recurrences, budgets = grid
    repeated = sum(cells["lengths"][0] for cells in noise_cells(recurrences, budgets).values())
    return sum(budgets) * (len(recurrences) + 1) + repeated * len(REPLICATES)


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
    return _rising(_digits(least, math.ceil), LADDER)


def least_budget(study: StudyConfig) -> float:
    """Return the least budget whose runs are long enough at every recurrence, in FLOPs."""
    return _digits(_shortest_flops(study, study.sweep.mean_recurrences), math.ceil)


def too_short(study: StudyConfig, planned: Plan) -> tuple[str, list[float]] | None:
    """Return a sentence on the cells that `sweep.min_steps` drops, if any, and budgets that drop none."""
    frame, sweep = planned.frame, study.sweep
    short = int(((frame["verdict"] == "DROP") & (frame["steps"] < sweep.min_steps)).sum())
    if not short:
        return None
    deepest, least = max(sweep.mean_recurrences), least_budget(study)
    return (
        f"{short} of {len(frame)} cells are dropped as too short: {sweep.min_steps} steps (sweep.min_steps) "
        f"at µ = {deepest} take {flow(least)} FLOPs. Leave the largest µ out, or start the budgets there",
        _rising(least, len(sweep.budgets_flops)),
    )


def unused(study: StudyConfig, planned: Plan, allowance: Allowance) -> list[str]:
    """Return a line on the part of the allowance for which the grid has no use."""
    total, flops = planned.totals()["nominal_flops"], allowance.flops
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


def _rising(least: float, count: int, step: float = 2.0) -> list[float]:
    return [float(f"{least * step**k:.6g}") for k in range(count)]


def _units(recurrences: Sequence[float], count: int, step: float = 2.0) -> float:
    """Return the cost of `count` budgets with control and further seeds in units of the least budget."""
    factors = [step**k for k in range(count)]
    repeated = (factors[0] + factors[(count - 1) // 2]) * len(REPLICATES)
    return sum(factors) * (len(recurrences) + 1) + repeated


def _digits(value: float, rounding: Callable[[float], int], digits: int = 2) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    rounded = rounding(value / unit + (1e-9 if rounding is math.floor else -1e-9)) * unit
    return float(f"{rounded:.{digits}g}")


def shortest(study: StudyConfig) -> StudyConfig:
    """Return the study at the one budget whose runs are just long enough."""
    flops = 2 * _shortest_flops(study, study.sweep.mean_recurrences)
    return dataclasses.replace(study, sweep=dataclasses.replace(study.sweep, budgets_flops=[flops], cells={}))


def _shortest_flops(study: StudyConfig, recurrences: Sequence[int]) -> float:
    """Return the FLOPs of `sweep.min_steps` steps at the largest recurrence."""
    (run,), deepest = study.runs.values(), max(recurrences)
    per_token = flops_per_token(run.model, run.accounting).at(deepest, math.ceil(deepest / 2))
    return float(per_token * run.batch_tokens * study.sweep.min_steps)
