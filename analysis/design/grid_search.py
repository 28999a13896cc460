"""Which cells to run: whole grids for an allowance, or the next few of a study.

Candidates are budgets by recurrences. A budget counts from four recurrences on, so new budgets are opened
whole, in many combinations; then single runs are added, the best one first, and exchanged at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from analysis.config import Array, Progress
from analysis.design.fisher_information import Counts, FisherInformation
from analysis.isoflop.geometry import MIN_SWEPT

AROUND = 1.0  # e-foldings on either side of the expected optima that a new budget's recurrences span
# A run is chosen by gain / cost^power: 1 where the allowance binds, 0 where the number of runs does.
THRIFT = (0.0, 0.5, 1.0)
GAIN = 1e-6
OPENED_AT_ONCE = 3  # new budgets that a suggestion opens
PROMISING = 30  # openings that are filled


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a choice may cost: FLOPs of a run and of a new budget's control [budgets], and how many runs."""

    run_flops: Array
    control_flops: Array
    allowance_flops: float
    runs: int
    per_cell: int | Counts = 1  # seeds of one cell, or of each, those already run among them


def opened(information: FisherInformation, budget: int, seeds: int = 1) -> Counts:
    """Return the runs [recurrences] that open a budget: four around its optima under all laws."""
    optima = information.optima[:, budget]
    known = optima[np.isfinite(optima)]
    logs = np.log(information.recurrences)
    low, high = (known.min(), known.max()) if len(known) else (logs[0], logs[-1])
    low, high = np.clip([low - AROUND, high + AROUND], logs[0], logs[-1])
    row = np.zeros(len(logs), int)
    for target in np.linspace(low, high, MIN_SWEPT):
        free = np.flatnonzero(row == 0)
        row[free[np.argmin(np.abs(logs[free] - target))]] = seeds
    return row


def filled(
    information: FisherInformation,
    counts: Counts,
    limits: Limits,
    spent: float,
    runs: int,
    thrift: float,
    goal: float | None = None,
) -> Counts:
    """Add runs to `counts` one by one, as long as they narrow the interval and the limits allow.

    With a `goal` it ends at that log width, and widths are those without the penalty for minima off the grid.
    """
    counts, penalised = counts.copy(), goal is None
    width = score(information.widths(counts, penalised=penalised))
    while runs < limits.runs and (goal is None or width > goal):
        after = score(information.widths_with_one_more(counts, penalised=penalised))
        affordable = (spent + limits.run_flops)[:, None] <= limits.allowance_flops
        after = np.where(affordable & (counts < limits.per_cell), after, np.inf)
        gain = (width - after) / limits.run_flops[:, None] ** thrift
        place = np.unravel_index(int(np.argmax(gain)), gain.shape)
        if not np.isfinite(after[place]) or width - after[place] < GAIN:
            return counts
        counts[place] += 1
        width, spent, runs = float(after[place]), spent + float(limits.run_flops[place[0]]), runs + 1
    return counts


def exchanged(information: FisherInformation, start: Counts, counts: Counts, limits: Limits) -> Counts:
    """Replace single added runs by better ones until none is better."""
    counts = counts.copy()
    width = score(information.widths(counts))
    for _ in range(3):
        before = width
        for place in np.argwhere(counts > start):
            trial = counts.copy()
            trial[tuple(place)] -= 1
            spent = cost(trial, start, limits)
            after = score(information.widths_with_one_more(trial))
            affordable = (spent + limits.run_flops)[:, None] <= limits.allowance_flops
            after = np.where(affordable & (trial < limits.per_cell), after, np.inf)
            best = np.unravel_index(int(np.argmin(after)), after.shape)
            if after[best] < width - GAIN:
                trial[best] += 1
                counts, width = trial, float(after[best])
        if before - width < GAIN:
            break
    return counts


def cost(counts: Counts, start: Counts, limits: Limits) -> float:
    """Return the FLOPs of what `counts` has beyond `start`, controls of new budgets included."""
    new = (counts.sum(1) > 0) & (start.sum(1) == 0)
    return float((counts - start).sum(1) @ limits.run_flops + new @ limits.control_flops)


def score(widths: Array) -> Any:
    """Return the mean over laws [laws, ...] of log widths, and a little of the worst."""
    return 0.8 * widths.mean(0) + 0.2 * widths.max(0)


def next_runs(
    information: FisherInformation, start: Counts, limits: Limits, progress: Progress | None = None
) -> Counts:
    """Return `start` and the runs to add to it: at most `limits.runs`, within the allowance."""
    closed = [k for k in range(len(start)) if (start[k] > 0).sum() < MIN_SWEPT]
    many = min(limits.runs // MIN_SWEPT, OPENED_AT_ONCE)
    options = [list(chosen) for size in range(many + 1) for chosen in combinations(closed, size)]
    trials: list[tuple[float, Counts]] = []
    for done, option in enumerate(options):
        if progress:
            progress("choices of budgets", done / len(options))
        counts = start.copy()
        for k in option:
            counts[k] = np.maximum(counts[k], opened(information, k))
        runs, spent = int((counts - start).sum()), cost(counts, start, limits)
        if runs > limits.runs or spent > limits.allowance_flops:
            continue
        for thrift in THRIFT if runs < limits.runs else THRIFT[:1]:
            trial = filled(information, counts, limits, spent, runs, thrift)
            trials.append((float(score(information.widths(trial))), trial))
    if progress:
        progress("choices of budgets", 1.0)
    if not trials:
        return start
    best = min(trials, key=lambda item: item[0])[1]
    return exchanged(information, start, best, limits)


def best_grids(
    information: FisherInformation, limits: Limits, keep: int, progress: Progress | None = None
) -> list[Counts]:
    """Return up to `keep` grids within the limits, the one of the least expected interval first."""
    ladder = range(len(information.budgets_flops))
    start = np.zeros((len(ladder), len(information.recurrences)), int)
    options = sorted(
        _openings(information, limits, start), key=lambda item: _promise(information, item, limits)
    )
    options, trials = options[:PROMISING], []
    for done, counts in enumerate(options):
        if progress:
            progress("choices of budgets", done / len(options))
        spent, runs = cost(counts, start, limits), int(counts.sum())
        seeds = int(counts.max())
        own = Limits(**{**vars(limits), "per_cell": seeds})
        for thrift in THRIFT[1:]:
            trial = filled(information, counts, own, spent, runs, thrift)
            trials.append((float(score(information.widths(trial))), trial))
    if progress and options:
        progress("choices of budgets", 1.0)
    trials.sort(key=lambda item: item[0])
    distinct: list[Counts] = []
    for _, counts in trials:
        if not any(np.array_equal(counts, other) for other in distinct):
            distinct.append(counts)
    return distinct[:keep]


def _promise(information: FisherInformation, counts: Counts, limits: Limits) -> float:
    """Return the log width that a grid would have, were its runs repeated as often as can be paid."""
    times = limits.allowance_flops / cost(counts, np.zeros_like(counts), limits)
    times = min(times, limits.runs / counts.sum())
    return float(score(information.widths(4 * counts))) - 0.5 * float(np.log(times * counts.max()))


def _openings(information: FisherInformation, limits: Limits, start: Counts) -> Iterator[Counts]:
    """Yield every affordable set of at least four budgets, opened with one seed a cell, two, and so on."""
    for size in range(4, len(start) + 1):
        for chosen in combinations(range(len(start)), size):
            for seeds in range(1, limits.per_cell + 1):
                counts = start.copy()
                for k in chosen:
                    counts[k] = opened(information, k, seeds)
                if cost(counts, start, limits) <= limits.allowance_flops and counts.sum() <= limits.runs:
                    yield counts
