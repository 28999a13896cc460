"""`plan suggest=N`: the runs to do next in the middle of a study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.config import FitConfig, Progress
from analysis.design import simulate
from analysis.design.fisher_information import Counts, FisherInformation, fisher_information
from analysis.design.grid_search import Limits, cost, next_runs
from analysis.design.laws_of_runs import laws_of_runs
from analysis.format import number, plural
from analysis.serialize import Printed
from analysis.stats.noise import noise_floor
from analysis.tables.readers import read_tables
from analysis.tables.selection import select
from sweeps.config.study import StudyConfig
from sweeps.planning.design import (
    allowance_flops,
    assumed_laws,
    budget_ladder,
    check_reachable,
    design_config,
    narrowed_target,
    one_group,
    planned_runs,
)
from sweeps.state.ledger import is_open, read_ledger

if TYPE_CHECKING:
    import pandas as pd

LAWS_OF_RUNS = 4  # resampled laws beside the fitted one that a suggestion has to serve
BEYOND = 4.0  # times the largest budget: how far new budgets go


@dataclass(frozen=True, kw_only=True, repr=False)
class Suggestion(Printed):
    """The runs to do next, and how far they are expected to narrow the interval."""

    cells: tuple[tuple[int, float, int], ...]  # mean recurrence, budget in FLOPs, seed
    flops: float
    allowance_flops: float
    law: str
    runs: int
    under_way: int = 0  # launched and not collected yet; both widths count them
    width_before: float | None  # of the 95 % interval, to first order; None: no interval yet
    width_after: float | None

    def summary(self) -> str:
        """Return the suggestion as text."""
        before, after = (
            "none" if width is None else f"{width:.3f}" for width in (self.width_before, self.width_after)
        )
        return "\n".join(
            [
                f"{plural(len(self.cells), 'run')} to do next, {number(self.flops)} of at most "
                f"{number(self.allowance_flops)} FLOPs, "
                f"from {plural(self.runs, 'finished run')} ({self.law})"
                + (f", beside {self.under_way} under way" if self.under_way else ""),
                *(f"  µ = {mu} at {number(flops)} FLOPs, seed {seed}" for mu, flops, seed in self.cells),
                f"  expected width of the 95 % interval, to first order: {before} before, {after} after",
            ]
        )


def suggest(study: StudyConfig, progress: Progress = lambda stage, done: None) -> Suggestion:
    """Return the runs that narrow the interval most, given the finished runs of the sweep; writes nothing.

    Raises
    ------
    TableError : the sweep was not collected.

    Notes
    -----
    The law is that of `assume.law`, or else the surface fitted to the finished runs, with resamples of it.
    Launched runs that are not in the tables yet count as done. No run of the ledger is suggested again.
    """
    frame, folder = planned_runs(study), Path(study.root) / str(study.sweep.name)
    table = read_tables(folder)[0]
    runs = one_group(select(table, study.sweep.max_epochs).runs)
    return suggest_runs(study, frame, runs, progress, launched_runs(folder, table, runs))


def launched_runs(folder: Path, table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the looped runs of the sweep's ledger that are comparable with `runs` and not among them.

    Columns: mean_recurrence, target_flops, seed, and `expected`. That is False for a run that the collected
    `table` has and cannot use, and for one that has failed for good.
    """
    import pandas as pd

    used, collected = set(runs["run_id"]), set(table.loc[table["status"] == "done", "run_id"])
    common = {"kind": "looped"} | {name: runs[name].iloc[0] for name in ("scale", "accounting")}
    rows = []
    ledgers = [read_ledger(folder)] if (folder / "sweep.json").exists() else []
    for ledger in ledgers:
        for run in ledger.runs(folder):
            record = run.record()
            if run.run_id in used or any(record[name] != value for name, value in common.items()):
                continue
            status = run.status()
            expected = status.state == "done" or is_open(status, ledger.retry)
            row = {name: record[name] for name in ("mean_recurrence", "target_flops", "seed")}
            rows.append(row | {"expected": expected and run.run_id not in collected})
    return pd.DataFrame(rows, columns=["mean_recurrence", "target_flops", "seed", "expected"])


def suggest_runs(
    study: StudyConfig,
    frame: pd.DataFrame,
    runs: pd.DataFrame,
    progress: Progress = lambda stage, done: None,
    others: pd.DataFrame | None = None,
) -> Suggestion:
    """Return the suggestion for finished `runs` of the sweep that `frame` plans; `others` are launched."""
    assert study.suggest is not None
    others = runs.iloc[:0].assign(expected=False) if others is None else others
    coming = others[others["expected"].astype(bool)]
    grid = simulate.grid(runs, FitConfig().parameter_count)
    config = design_config(study, grid)
    losses = runs["val_loss_nats"].to_numpy(float)
    floor, assume = noise_floor(runs), study.assume
    truths, sd = laws_of_runs(grid, losses, LAWS_OF_RUNS, config.seed)
    sd = sd if floor.sd_nats is None else floor.sd_nats
    if assume.law is not None:
        truths = assumed_laws(study, grid)
    known = grid.cells.budgets_flops
    choices = assume.budgets_flops or budget_ladder(known, BEYOND)
    budgets = np.array(sorted({*known, *coming["target_flops"].astype(float), *choices}))
    swept = (*grid.cells.values.tolist(), *coming["mean_recurrence"], *assume.recurrences)
    recurrences = np.array(sorted(set(map(float, swept))))
    knowledge = fisher_information(
        truths, grid.shape, budgets, recurrences, sd, narrowed_target(study, config)
    )
    check_reachable(knowledge)
    start = np.zeros((len(budgets), len(recurrences)), int)
    counted = [*zip(known[grid.cells.budget], grid.cells.values, strict=True)]
    counted += zip(coming["target_flops"], coming["mean_recurrence"], strict=True)
    for flops, value in counted:
        start[np.searchsorted(budgets, flops), np.searchsorted(recurrences, value)] += 1
    spend = allowance_flops(study, frame, study.suggest * float(known.max()))
    limits = Limits(
        run_flops=budgets,
        control_flops=0 * budgets,
        allowance_flops=spend,
        runs=study.suggest,
        per_cell=max(assume.max_seeds, int(start.max())),
    )
    counts = next_runs(knowledge, start, limits, progress)
    return Suggestion(
        cells=tuple(_cells(knowledge, start, counts, runs, others)),
        flops=cost(counts, start, limits),
        allowance_flops=spend,
        law=truths[0].name,
        runs=len(runs),
        under_way=len(coming),
        width_before=_width(knowledge, start),
        width_after=_width(knowledge, counts),
    )


def _cells(
    knowledge: FisherInformation, start: Counts, counts: Counts, runs: pd.DataFrame, others: pd.DataFrame
) -> list[tuple[int, float, int]]:
    chosen = []
    cells = [[*zip(f["target_flops"], f["mean_recurrence"], f["seed"], strict=True)] for f in (runs, others)]
    existing, first = {*cells[0], *cells[1]}, int(runs["seed"].min())
    for k, m in np.argwhere(counts > start):
        flops, mu = float(knowledge.budgets_flops[k]), int(knowledge.recurrences[m])
        free = [seed for seed in range(first, first + 1000) if (flops, mu, seed) not in existing]
        chosen += [(mu, flops, seed) for seed in free[: counts[k, m] - start[k, m]]]
    return chosen


def _width(knowledge: FisherInformation, counts: Counts) -> float | None:
    widths = knowledge.widths(counts, penalised=False)
    return float(np.exp(np.median(widths))) if np.median(widths) < 10 else None
