"""The difference of Core points, looped minus fixed, paired over the items that both answered.

It has two errors: the choice of the suite's items, and the training seeds. Items are the same for every run,
so only the differences of their answers count. The training noise is pooled over all cells with several
seeds, as for the loss.
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

    With one training seed per side the interval is over items alone, and there is no verdict.
    """

    suite: str
    tasks: int
    points: float
    low: float
    high: float
    items_se: float
    seeds_se: float | None
    verdict: Verdict

    def summary(self) -> str:
        """Return the difference in points with its interval."""
        return f"{self.points:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True, kw_only=True)
class SuiteScores:
    """The answers of every run to a suite, and the noise of the score between seeds."""

    suite: str
    correct: pd.DataFrame  # [items, runs]: index (task, item), columns run ids
    weight: Array  # of each item in the score [items], in points
    noise: NoiseFloor
    paired_noise: NoiseFloor

    def difference(
        self, looped: Sequence[str], fixed: Sequence[str], paired: bool, config: FitConfig
    ) -> ScoreDifference | None:
        """Return looped less fixed, each a list of run ids; None if one of them was not evaluated."""
        if not {*looped, *fixed} <= set(self.correct.columns):
            return None
        gap = self.correct[list(looped)].mean(axis=1) - self.correct[list(fixed)].mean(axis=1)
        points = float(self.weight @ gap.to_numpy())
        items_se = float(np.sqrt(_item_variance(gap, self.weight)))
        floor = self.paired_noise if paired else self.noise
        tail = (1 + config.confidence) / 2
        if floor.sd_nats is None:
            seeds_se, half = None, float(ndtri(tail)) * items_se
        else:
            seeds_se = floor.sd_nats * float(np.sqrt(1 / len(looped) + 1 / len(fixed)))
            total = items_se**2 + seeds_se**2
            # Satterthwaite: the variance over items is well known, that over seeds is not.
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
            tasks=self.correct.index.get_level_values("task").nunique(),
            points=points,
            low=points - half,
            high=points + half,
            items_se=items_se,
            seeds_se=seeds_se,
            verdict=verdict,
        )


def suite_scores(runs: pd.DataFrame, items: pd.DataFrame | None) -> tuple[SuiteScores, ...]:
    """Return the scores of `runs` on every suite of the items table (schema.ITEMS).

    Items that not all evaluated runs answered are left out.

    Raises
    ------
    TableError : runs answered different data.

    Notes
    -----
    A suite's score is the mean over its tasks of (accuracy - baseline) / (1 - baseline), in points.
    """
    if items is None:
        return ()
    versions = items.groupby(["suite", "task"])["data_digest"].nunique()
    if (versions > 1).any():
        suite, task = versions[versions > 1].index[0]
        raise TableError(f"runs were evaluated on different data of {task} ({suite}): evaluate them again")
    scores = []
    for suite, frame in items[items["run_id"].isin(runs["run_id"])].groupby("suite", sort=True):
        correct = frame.pivot(index=["task", "item"], columns="run_id", values="correct").dropna()
        baseline = frame.groupby("task")["baseline"].first()
        tasks = correct.index.get_level_values("task")
        size = tasks.value_counts()
        scale = 100 / len(size) / (1 - baseline.loc[size.index]) / size
        weight = scale.loc[tasks].to_numpy(float)
        scored = runs[runs["run_id"].isin(correct.columns)]
        table = scored.assign(**{LOSS: weight @ correct[scored["run_id"]].to_numpy(float)})
        scores.append(
            SuiteScores(
                suite=str(suite),
                correct=correct,
                weight=weight,
                noise=noise_floor(table),
                paired_noise=paired_floor(table),
            )
        )
    return tuple(scores)


def missing_answers(
    runs: pd.DataFrame, items: pd.DataFrame | None, scored: Sequence[SuiteScores]
) -> list[str]:
    """Return notes on the runs that were not evaluated, and on the items that not all runs answered."""
    notes = []
    for suite in scored:
        missing = sorted(set(runs["run_id"]) - set(suite.correct.columns))
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            notes.append(f"{suite.suite}: not evaluated: {', '.join(missing[:3])}{more}")
        assert items is not None
        own = items[(items["suite"] == suite.suite) & items["run_id"].isin(runs["run_id"])]
        asked = len(own[["task", "item"]].drop_duplicates())
        if asked > len(suite.correct):
            notes.append(
                f"{suite.suite}: {asked - len(suite.correct)} of {asked} items not answered by all runs"
            )
    return notes


def _item_variance(gap: pd.Series, weight: Array) -> float:
    """Return the variance of the weighted sum over another sample of every task's items."""
    tasks = gap.groupby(level="task")
    weights = pd.Series(weight, index=gap.index).groupby(level="task").first()
    return float((tasks.var(ddof=1).fillna(0.0) * tasks.size() * weights**2).sum())
