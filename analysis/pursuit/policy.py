"""Which cells a pursuit trains next: those that bring the asked interval to its width for the fewest FLOPs.

A round completes the study in thought: the cheapest runs that reach the wanted width, or with too small an
allowance the ones that come closest, by the linearised fit under the law of the finished runs and resamples
of it. It then trains the cheaper half of that plan and looks again, as the law that the plan rests on is
known better by then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analysis.config import Array, FitConfig, Mask
from analysis.design import simulate
from analysis.design.fisher_information import Counts, FisherInformation, fisher_information
from analysis.design.grid_search import Limits, cost, filled, opened, score
from analysis.design.laws_of_runs import laws_of_runs
from analysis.format import number
from analysis.isoflop.geometry import MIN_SWEPT
from analysis.laws.variable_projection import BOX
from analysis.pursuit.question import Answer, Question, answer, inputs_of

LEVELS = 7  # budgets to choose from, a factor of two apart
LARGEST = 10.0  # runs of the largest budget that the whole allowance pays for
PILOT_BUDGETS = 3  # small ones, not the least where many are offered
PILOT_RECURRENCES = 5  # of each pilot budget, evenly over the logs of those offered
PILOT_REPLICATES = 4  # further seeds of two cells of the least pilot budget
RESAMPLED_LAWS = 2  # beside the fitted one, that a choice has to serve
OPENED, TRIED = 2, 3  # budgets that a plan opens at most; openings whose runs are chosen one by one
SHARE = 0.5  # of a plan that is trained before the next look
WHOLE = 0.08  # of the allowance: a plan that costs less is trained at once
INSIDE = 1.4  # factor between an expected optimum and the ends of the recurrences for a budget to count
MIN_SPAN = 8.0  # factor between the least and the largest budget of an answer
ROUNDED = 0.98  # budgets have three digits
AIM = 0.97  # of the wanted width, for what the linearised interval leaves out
RATIO = (0.6, 1.5)  # between which the interval of the fit is believed to exceed the linearised one
LEAST_STEP = 0.95  # of the width, in a round after a look that was not narrow enough

CLOSE = 1.5  # times the wanted width: below it to first order, the interval of the fit is taken
VAST = 1e3  # a width that means none
FAILED_SEEDS = 2  # of a cell after which it is not tried again
NOTHING_LEFT = "no run that the allowance still pays narrows the interval"
TOO_FEW = (
    "by the law of the runs no choice of cells brackets three optima: offer others with "
    "assume.budgets_flops=[...] and assume.recurrences=[...], or raise the allowance"
)

Cell = tuple[int, float, int]  # mean recurrence, budget in FLOPs, seed


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a pursuit may do: its question, the wanted width, the allowance and the cells to choose from."""

    question: Question
    target_width: float
    allowance_flops: float
    recurrences: tuple[int, ...]
    budgets_flops: tuple[float, ...]
    max_seeds: int = 6
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a round knows and what it trains next; without cells the pursuit is over."""

    cells: tuple[Cell, ...]
    reason: str
    answered: bool = False
    answer: Answer | None = None
    linear_width: float | None = None  # of the interval to first order, by which rounds are planned
    noise_nats: float | None = None
    law: dict[str, float] | None = None  # the fitted surface
    optima: dict[str, float] | None = None  # expected best recurrence by budget
    planned_flops: float | None = None  # to the wanted width, or of the rest of the allowance
    expected_width: float | None = None  # then
    flops: float = 0.0  # of the cells


def ladder(allowance_flops: float, smallest_flops: float = 0.0) -> tuple[float, ...]:
    """Return the budgets of a pursuit: factors of two below a tenth of the allowance."""
    top = allowance_flops / LARGEST
    budgets = [top / 2.0**k for k in reversed(range(LEVELS))]
    return tuple(float(f"{flops:.3g}") for flops in budgets if flops >= smallest_flops)


def pilot(policy: Policy) -> Decision:
    """Return the first round: three small budgets across all recurrences, with replicates for the noise."""
    offered = np.log(policy.recurrences)
    wanted = np.linspace(offered[0], offered[-1], PILOT_RECURRENCES)
    chosen = sorted({policy.recurrences[int(np.argmin(np.abs(offered - each)))] for each in wanted})
    first = max(len(policy.budgets_flops) - PILOT_BUDGETS, 0) // 4
    budgets = policy.budgets_flops[first : first + PILOT_BUDGETS]
    cells = [(mu, flops, policy.seed) for flops in budgets for mu in chosen]
    seeds = range(policy.seed + 1, policy.seed + 1 + PILOT_REPLICATES)
    cells += [(mu, budgets[0], seed) for mu in chosen[1:3] for seed in seeds]
    flops = sum(cell[1] for cell in cells)
    reason = (
        f"pilot: {len(chosen)} recurrences at {len(budgets)} budgets for a first law, and "
        f"{2 * PILOT_REPLICATES} replicates for the noise"
    )
    if flops > policy.allowance_flops:
        return Decision(cells=(), reason=f"the allowance does not pay the pilot of {number(flops)} FLOPs")
    return Decision(cells=tuple(cells), reason=reason, flops=flops)


def decide(
    policy: Policy,
    runs: pd.DataFrame,
    spent_flops: float,
    taken: Collection[Cell] = (),
    *,
    always_answer: bool = False,
) -> Decision:
    """Return the next round of a pursuit, given its finished `runs`.

    Parameters
    ----------
    runs : one group of the runs table, with losses.
    spent_flops : of all that was launched, whether it ended well or not.
    taken : cells that were launched and have no run; they are not chosen again.
    always_answer : fit the interval even where it is far from the wanted width, which changes no choice.
    """
    grid = simulate.grid(runs, FitConfig().parameter_count)
    losses = runs["val_loss_nats"].to_numpy(float)
    laws, residual = laws_of_runs(grid, losses, RESAMPLED_LAWS, policy.seed)
    inputs = inputs_of(grid, losses, policy.seed)
    noise = residual if inputs.floor.sd_nats is None else inputs.floor.sd_nats
    budgets = np.array(sorted({*policy.budgets_flops, *grid.cells.budgets_flops}))
    recurrences = np.array(sorted({*policy.recurrences, *grid.cells.values.astype(int)}), float)
    target, quantity = policy.question.target_flops, policy.question.quantity
    exponents = np.clip([laws[0].alpha, laws[0].beta], *BOX)  # those of the shape that fits its losses best
    information = fisher_information(
        laws, grid.shape, budgets, recurrences, noise, target, quantity, exponents
    )
    eligible = _well_inside(information.optima[0], recurrences)
    information = replace(information, eligible=eligible)
    start = np.zeros((len(budgets), len(recurrences)), int)
    places = np.searchsorted(budgets, grid.cells.budgets_flops[grid.cells.budget])
    np.add.at(start, (places, np.searchsorted(recurrences, grid.cells.values)), 1)
    linear = float(np.exp(score(information.widths(start, penalised=False))))
    known: dict[str, Any] = {
        "noise_nats": noise,
        "linear_width": linear if linear < VAST else None,
        "law": {name: value for name, value in vars(laws[0]).items() if isinstance(value, float)},
    }
    now = None
    if linear <= CLOSE * policy.target_width:
        now = known["answer"] = answer(policy.question, inputs, budgets[eligible])
        refused = ((start > 0).sum(1) >= MIN_SWEPT) & ~np.isin(budgets, now.budgets_flops)
        information = replace(information, eligible=eligible & ~refused)
        wide = _span(now.budgets_flops) >= _wanted_span(information)
        if now.width is not None and now.width <= policy.target_width and wide:
            return Decision(cells=(), reason="the interval is as narrow as wanted", answered=True, **known)
    if always_answer and now is None:
        known["answer"] = answer(policy.question, inputs, budgets[eligible])
    left = policy.allowance_flops - spent_flops
    limits = Limits(
        run_flops=budgets,
        control_flops=0 * budgets,
        allowance_flops=left,
        runs=10_000,
        per_cell=_most_seeds(policy, start, budgets, recurrences, taken),
    )
    plan = cheapest(information, start, limits, _goal(policy, linear, now))
    added = cost(plan, start, limits)
    width = float(np.exp(score(information.widths(plan, penalised=False))))
    known |= {
        "optima": dict(zip(map(number, budgets), np.exp(np.clip(information.optima[0], -5, 5)), strict=True)),
        "planned_flops": added,
        "expected_width": width if width < VAST else None,
    }
    if not added or width > VAST:
        known.setdefault("answer", answer(policy.question, inputs, budgets[eligible]))
        return Decision(cells=(), reason=TOO_FEW if width > VAST else NOTHING_LEFT, **known)
    first = _first_part(plan, start, budgets, added, policy)
    cells = tuple(_cells(first, start, budgets, recurrences, runs, taken, policy.seed))
    return Decision(
        cells=cells,
        reason=_reason(cells, added, width, plan, start, budgets),
        flops=sum(cell[1] for cell in cells),
        **known,
    )


def _well_inside(log_optima: Array, recurrences: Array) -> Mask:
    """Return True for the budgets whose optimum by the law of all runs is far from the ends."""
    low, high = np.log(recurrences.min() * INSIDE), np.log(recurrences.max() / INSIDE)
    return (log_optima > low) & (log_optima < high)


def _span(budgets_flops: Collection[float]) -> float:
    """Return the factor between the least and the largest of some budgets."""
    return max(budgets_flops) / min(budgets_flops) if len(budgets_flops) else 1.0


def _wanted_span(information: FisherInformation) -> float:
    """Return the least span of an answer: a narrow range is cheap, and a wide one may not be offered."""
    return ROUNDED * min(MIN_SPAN, _span(information.budgets_flops[information.eligible].tolist()))


def _goal(policy: Policy, linear: float, now: Answer | None) -> float:
    """Return the log width that a plan should reach, in terms of the linearised interval.

    It lies below today's if the fit refuses an interval, or gives a wider one than that to first order.
    """
    goal = AIM * policy.target_width
    if now is not None:
        excess = RATIO[1] if now.width is None else float(np.clip(now.width / linear, *RATIO))
        goal = min(goal / excess, linear * LEAST_STEP)
    return float(np.log(goal))


def cheapest(information: FisherInformation, start: Counts, limits: Limits, goal: float) -> Counts:
    """Return `start` and the cheapest runs after which the log width is `goal`, or else the narrowest."""
    trials, options = [], list(_openings(information, start, limits))
    wanted = _wanted_span(information)
    wide = [counts for counts in options if _reach(information, counts) >= wanted] or options
    for counts in sorted(wide, key=lambda item: _promise(information, item, start, limits))[:TRIED]:
        spent, runs = cost(counts, start, limits), int((counts - start).sum())
        trial = filled(information, counts, limits, spent, runs, 1.0, goal)
        width = float(score(information.widths(trial, penalised=False)))
        trials.append((max(width, goal), cost(trial, start, limits), trial))
    return min(trials, key=lambda item: item[:2])[2] if trials else start


def _openings(information: FisherInformation, start: Counts, limits: Limits) -> Iterator[Counts]:
    """Yield `start` with up to `OPENED` more budgets opened, as far as the allowance goes."""
    closed = [k for k in range(len(start)) if (start[k] > 0).sum() < MIN_SWEPT]
    for size in range(OPENED + 1):
        for chosen in combinations(closed, size):
            counts = start.copy()
            for k in chosen:
                counts[k] = np.clip(opened(information, k), counts[k], np.asarray(limits.per_cell)[k])
            if cost(counts, start, limits) <= limits.allowance_flops:
                yield counts


def _reach(information: FisherInformation, counts: Counts) -> float:
    """Return the span of the budgets that `counts` opens and whose optimum is expected inside."""
    used = information.eligible & ((counts > 0).sum(1) >= MIN_SWEPT)
    return _span(information.budgets_flops[used].tolist())


def _promise(information: FisherInformation, counts: Counts, start: Counts, limits: Limits) -> float:
    """Return the log width if all runs of an opening were repeated for the rest of the allowance."""
    whole = float(counts.sum(1) @ limits.run_flops)
    left = limits.allowance_flops - cost(counts, start, limits)
    return float(score(information.widths(counts, penalised=False))) - 0.5 * float(np.log1p(left / whole))


def _first_part(plan: Counts, start: Counts, budgets: Array, added: float, policy: Policy) -> Counts:
    """Return `start` and the cheaper part of a plan's new runs, or all of them if they cost little."""
    if added <= WHOLE * policy.allowance_flops:
        return plan
    part, spent = start.copy(), 0.0
    for k in np.flatnonzero((plan > start).any(1)):
        own = float((plan[k] - start[k]).sum() * budgets[k])
        if spent and spent + own > max(SHARE * added, WHOLE * policy.allowance_flops):
            break
        part[k], spent = plan[k], spent + own
    return part


def _most_seeds(
    policy: Policy, start: Counts, budgets: Array, recurrences: Array, taken: Collection[Cell]
) -> Counts:
    """Return how many seeds each cell may have; one that has failed with several gets no more."""
    most = np.maximum(start, policy.max_seeds)
    for mu, flops in {cell[:2] for cell in taken}:
        place = np.searchsorted(budgets, flops), np.searchsorted(recurrences, mu)
        if sum(cell[:2] == (mu, flops) for cell in taken) >= FAILED_SEEDS:
            most[place] = start[place]
    return most


def _cells(
    counts: Counts,
    start: Counts,
    budgets: Array,
    recurrences: Array,
    runs: pd.DataFrame,
    taken: Collection[Cell],
    first: int,
) -> Iterator[Cell]:
    columns = (runs[name] for name in ("mean_recurrence", "target_flops", "seed"))
    used = {*zip(*columns, strict=True)} | set(taken)
    for k, m in np.argwhere(counts > start):
        mu, flops = int(recurrences[m]), float(budgets[k])
        free = (seed for seed in range(first, first + 1000) if (mu, flops, seed) not in used)
        for _ in range(counts[k, m] - start[k, m]):
            yield mu, flops, next(free)


def _reason(
    cells: tuple[Cell, ...], added: float, width: float, plan: Counts, start: Counts, budgets: Array
) -> str:
    new = [number(budgets[k]) for k in np.flatnonzero((plan.sum(1) > 0) & (start.sum(1) == 0))]
    opening = f", opening {' and '.join(new)} FLOPs" if new else ""
    share = sum(cell[1] for cell in cells) / added
    return (
        f"{number(added)} more FLOPs are expected to bring the interval to {width:.3g}{opening}; "
        f"{len(cells)} runs, {share:.0%} of them, before the next look"
    )
