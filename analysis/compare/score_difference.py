"""A difference of Core points, looped minus fixed, paired over the items that both answered.

Two errors make it up: which items a suite happens to hold, and which training seeds were run. Items are the
same for every run, so that only what an item's answers differ by counts; the training noise is pooled over
all cells with several seeds, as that of the loss is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from analysis.config import Array, FitConfig
from analysis.stats.noise import NoiseFloor, noise_floor, paired_floor
from analysis.tables.schema import TableError

Verdict = Literal["looped higher", "fixed higher", "not resolved", "items only, training noise unknown"]
LOSS = "val_loss_nats"


@dataclass(frozen=True, kw_only=True)
class ScoreDifference:
    """Looped minus fixed in points of a suite: above zero, looping wins.

    With one training seed a side the interval is over items alone, and there is no verdict.
    """

    suite: str
    tasks: int
    points: float
    low: float
    high: float
    items_se: float
    seeds_se: float | None
    verdict: Verdict

    def sentence(self) -> str:
        """Return the difference with its interval in one phrase."""
        ends = f"[{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.suite} ({self.tasks} tasks) {self.points:+.2f} points {ends}: {self.verdict}"


@dataclass(frozen=True, kw_only=True)
class SuiteScores:
    """What every run got on a suite: right [items, runs], and the noise of the score between seeds."""

    suite: str
    right: pd.DataFrame  # index (task, item), columns run ids
    weight: Array  # of each item in the score [items], in points
    noise: NoiseFloor
    paired_noise: NoiseFloor

    def difference(
        self, looped: Sequence[str], fixed: Sequence[str], paired: bool, config: FitConfig
    ) -> ScoreDifference | None:
        """Return looped less fixed; None where a run was not evaluated."""
        if not {*looped, *fixed} <= set(self.right.columns):
            return None
        gap = self.right[list(looped)].mean(axis=1) - self.right[list(fixed)].mean(axis=1)
        points = float(self.weight @ gap.to_numpy())
        items_se = float(np.sqrt(_item_variance(gap, self.weight)))
        floor = self.paired_noise if paired else self.noise
        tail = (1 + config.confidence) / 2
        if floor.sd_nats is None:
            seeds_se, half = None, float(ndtri(tail)) * items_se
        else:
            seeds_se = floor.sd_nats * float(np.sqrt(1 / len(looped) + 1 / len(fixed)))
            total = items_se**2 + seeds_se**2
            # Satterthwaite: the items' share of the variance is known well, that of the seeds from few.
            freedom = floor.degrees_of_freedom * (total / seeds_se**2) ** 2 if seeds_se else np.inf
            half = float(stdtrit(freedom, tail)) * float(np.sqrt(total)) if total else 0.0
        verdict: Verdict = "not resolved"
        if floor.sd_nats is None:
            verdict = "items only, training noise unknown"
        elif points - half > 0:
            verdict = "looped higher"
        elif points + half < 0:
            verdict = "fixed higher"
        return ScoreDifference(
            suite=self.suite,
            tasks=self.right.index.get_level_values("task").nunique(),
            points=points,
            low=points - half,
            high=points + half,
            items_se=items_se,
            seeds_se=seeds_se,
            verdict=verdict,
        )


def suites(runs: pd.DataFrame, items: pd.DataFrame | None) -> tuple[SuiteScores, ...]:
    """Return the scores of `runs` on every suite of the items table (schema.ITEMS).

    A suite's score is the mean over its tasks of (accuracy - baseline) / (1 - baseline), in points. Items
    that not all evaluated runs answered are left out. Raises TableError where runs answered different data.
    """
    if items is None:
        return ()
    versions = items.groupby(["suite", "task"])["data_digest"].nunique()
    if (versions > 1).any():
        suite, task = versions[versions > 1].index[0]
        raise TableError(f"runs were evaluated on different data of {task} ({suite}): evaluate them again")
    found = []
    for suite, frame in items[items["run_id"].isin(runs["run_id"])].groupby("suite", sort=True):
        right = frame.pivot(index=["task", "item"], columns="run_id", values="correct").dropna()
        baseline = frame.groupby("task")["baseline"].first()
        tasks = right.index.get_level_values("task")
        size = tasks.value_counts()
        scale = 100 / len(size) / (1 - baseline.loc[size.index]) / size
        weight = scale.loc[tasks].to_numpy(float)
        scored = runs[runs["run_id"].isin(right.columns)]
        table = scored.assign(**{LOSS: weight @ right[scored["run_id"]].to_numpy(float)})
        found.append(
            SuiteScores(
                suite=str(suite),
                right=right,
                weight=weight,
                noise=noise_floor(table),
                paired_noise=paired_floor(table),
            )
        )
    return tuple(found)


def left_out_of_suites(
    runs: pd.DataFrame, items: pd.DataFrame | None, scored: Sequence[SuiteScores]
) -> list[str]:
    """Say which looped and fixed runs a suite has no answers of, and how many items not all runs answered."""
    notes = []
    for suite in scored:
        missing = sorted(set(runs["run_id"]) - set(suite.right.columns))
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            notes.append(f"{suite.suite}: not evaluated: {', '.join(missing[:3])}{more}")
        assert items is not None
        own = items[(items["suite"] == suite.suite) & items["run_id"].isin(runs["run_id"])]
        asked = len(own[["task", "item"]].drop_duplicates())
        if asked > len(suite.right):
            notes.append(
                f"{suite.suite}: {asked - len(suite.right)} of {asked} items not answered by all runs"
            )
    return notes


def _item_variance(gap: pd.Series, weight: Array) -> float:
    """Return the variance of the weighted sum over a fresh draw of every task's items."""
    tasks = gap.groupby(level="task")
    weights = pd.Series(weight, index=gap.index).groupby(level="task").first()
    return float((tasks.var(ddof=1).fillna(0.0) * tasks.size() * weights**2).sum())
