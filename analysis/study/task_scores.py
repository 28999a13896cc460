"""Loss to task of a study: the score of a suite over the loss, and the largest budget predicted in two steps.

As in the OLMo ladder (arXiv 2412.04403), a law of the smaller runs predicts the losses of the largest budget,
and the sigmoid turns them into scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.config import FitConfig
from analysis.format import plural
from analysis.laws.fit import fit_law
from analysis.laws.task_score import TaskLaw, fit_task_score
from analysis.tables.schema import TableError

SUITES = {"core": "Core", "core_extended": "Core-Extended"}
LOSS_LAW = "iso_depth"


def task_laws(
    runs: pd.DataFrame, config: FitConfig, training: Sequence[pd.DataFrame] = ()
) -> tuple[TaskLaw, ...]:
    """Fit the score of every suite that runs were evaluated on.

    Parameters
    ----------
    runs : a runs table.
    training : points of the iso-depth law with run_id and budget_flops; with them, losses are predicted too.
    """
    laws = []
    for suite, name in SUITES.items():
        scored = runs[runs[suite].notna()]
        if scored.empty:
            continue
        tasks = scored[f"{suite}_tasks"].fillna(0)
        alike = scored[tasks == tasks.max()]
        points = pd.DataFrame(
            {
                "run_id": alike["run_id"].astype(str),
                "budget_flops": alike["target_flops"].astype(float),
                "loss": alike["val_loss_nats"].astype(float),
                "score": alike[suite].astype(float),
            }
        )
        if config.resampling == "block" and config.block in alike:
            block = alike[config.block].astype(str)
            points["block"] = block.where(block != "", points["run_id"])
        fewer = len(scored) - len(alike)
        notes = (f"{plural(fewer, 'run')} left out: scored on fewer tasks",) if fewer else ()
        laws.append(fit_task_score(name, _with_predicted(points, training, config), config, notes))
    return tuple(laws)


def _with_predicted(
    points: pd.DataFrame, training: Sequence[pd.DataFrame], config: FitConfig
) -> pd.DataFrame:
    """Return points with the losses of the largest budget as the law of the smaller ones predicts them."""
    largest = points["budget_flops"].max()
    if not training or not np.isfinite(largest):
        return points
    every = pd.concat(training, ignore_index=True)
    rest = every[every["budget_flops"] < largest]
    out = every[every["run_id"].isin(points["run_id"][points["budget_flops"] == largest])]
    try:
        fit = fit_law(LOSS_LAW, rest, rest["loss"].to_numpy(float), delta=config.huber_delta)
    except TableError:
        return points
    if out.empty or not fit.certificate.holds:
        return points
    predicted = pd.Series(fit.predict(out), index=out["run_id"].astype(str))
    predicted = predicted[~predicted.index.duplicated()]
    return points.assign(loss_predicted=points["run_id"].map(predicted), loss_law=f"the {LOSS_LAW} law")
