"""Whole pursuits under a law: what they spend, how they end, and whether the interval holds the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.config import Array, FitConfig
from analysis.design import simulate
from analysis.design.ground_truth import GroundTruth
from analysis.design.simulate import Noise
from analysis.isoflop.geometry import MIN_BUDGETS
from analysis.pursuit.policy import Cell, Decision, Policy, decide, pilot
from analysis.pursuit.question import Question

MAX_ROUNDS = 30


@dataclass(frozen=True, kw_only=True)
class SimulatedPursuit:
    """One pursuit to its end: its rounds, the last of which has no cells, and the truth of its question."""

    rounds: tuple[Decision, ...]
    spent_flops: float
    runs: pd.DataFrame = field(repr=False, compare=False)
    true: float | None  # over the budgets that the answer uses, None without an answer

    @property
    def covered(self) -> bool | None:
        """Return True if the truth lies in the interval, None without an interval."""
        final = self.rounds[-1].answer
        if final is None or final.low is None or final.high is None or self.true is None:
            return None
        return final.low <= self.true <= final.high


def simulate_pursuit(
    policy: Policy, candidates: pd.DataFrame, law: GroundTruth, noise: Noise, seed: int
) -> SimulatedPursuit:
    """Pursue a question under a law.

    Parameters
    ----------
    candidates : planned runs, one for every recurrence and budget of the policy, of seed 0.
    seed : of the noise; a cell and seed has the same noise whenever it is trained.
    """
    generator = np.random.default_rng(seed)
    runs, decision = candidates.iloc[:0], pilot(policy)
    rounds, spent = [decision], 0.0
    while rounds[-1].cells and len(rounds) <= MAX_ROUNDS:
        chosen = trained(candidates, rounds[-1].cells)
        errors = noise.draw(chosen, 1, int(generator.integers(2**31)))[0]
        columns = (chosen[name].to_numpy(float) for name in ("mean_recurrence", "tokens"))
        losses = law.loss(*columns) + errors
        runs = pd.concat([runs, chosen.assign(val_loss_nats=losses)], ignore_index=True)
        spent += float(chosen["nominal_flops"].sum())
        rounds.append(decide(policy, runs, spent))
    final = rounds[-1].answer
    budgets = np.array(final.budgets_flops if final else ())
    return SimulatedPursuit(
        rounds=tuple(rounds),
        spent_flops=spent,
        runs=runs,
        true=true_value(policy.question, runs, law, budgets) if len(runs) else None,
    )


def trained(candidates: pd.DataFrame, cells: Sequence[Cell]) -> pd.DataFrame:
    """Return the planned runs of some cells, each with its seed."""
    columns = (candidates[name] for name in ("mean_recurrence", "target_flops"))
    place = {(int(mu), float(flops)): row for row, (mu, flops) in enumerate(zip(*columns, strict=True))}
    rows = [place[mu, flops] for mu, flops, _ in cells]
    return candidates.iloc[rows].assign(seed=[seed for _, _, seed in cells])


def true_value(
    question: Question, runs: pd.DataFrame, law: GroundTruth, budgets_flops: Array
) -> float | None:
    """Return the number that an answer estimates.

    An exponent is the slope of the true optima over the answer's budgets; they lie on no exact power law. An
    optimum is that of the law at the target.
    """
    shape = simulate.grid(runs, FitConfig().parameter_count).shape

    def optima(flops: Array) -> Array:
        depth = np.array([law.optimum(shape, float(each)) for each in flops])
        return depth if question.quantity == "mean_recurrence" else shape.tokens(depth, flops)

    if question.target_flops is not None:
        return float(optima(np.array([question.target_flops]))[0])
    if len(budgets_flops) < MIN_BUDGETS:
        return None
    return float(np.polyfit(np.log(budgets_flops), np.log(optima(budgets_flops)), 1)[0])
