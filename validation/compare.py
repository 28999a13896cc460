"""Can the verdict on looping be trusted? Simulate studies of a known difference, and of none, and count.

python validation/compare.py [studies=2000] [processes=2] [folder=runs/.validation/compare] [out=FILE]

Three kinds of study, all on the paper's 140M grid (6 budgets by 6 even recurrences) with a fixed control:
`law` draws the losses from the law of validation/coverage.py, the control 0.02 nats above the law's value,
noise of 0.005 nats, and three seeds at a looped cell and a control of three budgets, one elsewhere;
`seeds` is the same with three seeds everywhere that move all runs of a seed together by another 0.01 nats;
`equal` gives all recurrences and the control of a budget one loss, so that every win is false.

For the best recurrence (by how it was found) and for each trained one: how often the 95 % interval held the
true difference, and how often a side was said to win, over budgets whose true optimum lies inside the grid;
the same for the FLOPs that looping saves at equal loss, where the control's budgets reach it.
Study k is drawn from the generator [SEED, k]. Studies are kept in `folder`, so that an interrupted run
continues; the summary, docs/validation/compare.json (or `out`), gains each kind as it ends.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core beats threads inside numpy

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis import FitConfig, compare
from analysis.compare.compute_multiplier import log_equivalent_flops
from tests.analysis.synthetic import INSIDE, PAPER_GRID, Truth, study
from validation.simulated import ROOT, Record, given, run, write

SEED = 0
NOISE_NATS = 0.005
SEED_NATS = 0.01
PENALTY_NATS = 0.02
RESAMPLES = 400
TRUTH = Truth()
KINDS = ("law", "equal", "seeds")
REPLICATES = tuple((budget, cell) for budget in (0, 2, 4) for cell in (1, 6))  # 6 is the control


def table(kind: str) -> pd.DataFrame:
    """Return the runs of a kind of study without noise."""
    places = (
        tuple((k, j) for k in range(len(PAPER_GRID)) for j in range(7)) if kind == "seeds" else REPLICATES
    )
    runs = study(TRUTH, budgets=PAPER_GRID, replicates=places, fixed_penalty_nats=PENALTY_NATS)[0]
    if kind == "equal":
        runs["val_loss_nats"] = runs.groupby("target_flops")["val_loss_nats"].transform("min")
    return runs


def noise(kind: str, runs: pd.DataFrame, number: int) -> np.ndarray[Any, Any]:
    """Return the errors of study `number` in nats [runs]."""
    generator = np.random.default_rng([SEED, number])
    errors = NOISE_NATS * generator.standard_normal(len(runs))
    if kind == "seeds":
        budget, seed = (pd.factorize(runs[name])[0] for name in ("target_flops", "seed"))
        errors += SEED_NATS * generator.standard_normal((budget.max() + 1, seed.max() + 1))[budget, seed]
    return np.asarray(errors)


def best_difference(kind: str, flops: float) -> float:
    """Return the true loss of the best recurrence less that of the control."""
    if kind == "equal":
        return 0.0
    best = TRUTH.optimum(flops)
    looped, fixed = (
        float(TRUTH.loss(mu, flops / TRUTH.flops(mu, back))) for mu, back in ((best, None), (1, 1))
    )
    return looped - fixed - PENALTY_NATS


def true_saving(cells: pd.Series, flops: float, looped_nats: float) -> float:
    """Return the log of the FLOPs over `flops` at which the true control reaches the looped loss."""
    control = cells.xs("fixed", level="kind").droplevel("mean_recurrence")
    budgets = control.index.to_numpy(float)
    return float(
        log_equivalent_flops(control.to_numpy()[None], np.array([looped_nats]), budgets)[0] - np.log(flops)
    )


def simulate(kind: str, numbers: range) -> list[Record]:
    """Compare some studies; return one record per study, budget and entry."""
    runs = table(kind)
    clean = runs["val_loss_nats"].copy()
    cells = runs.assign(loss=clean).groupby(["target_flops", "kind", "mean_recurrence"])["loss"].mean()
    found = []
    for number in numbers:
        runs["val_loss_nats"] = clean + noise(kind, runs, number)
        for row in compare(runs, FitConfig(bootstrap=RESAMPLES, seed=number, validation=False)).rows:
            flops = row.budget_flops
            if kind != "equal" and flops not in INSIDE:
                continue
            fixed = cells[flops, "fixed", 1.0]
            saved = row.saving
            if saved.ratio is not None:
                found.append(
                    {
                        "study": number,
                        "entry": "FLOPs saved (log ratio)",
                        "budget_flops": flops,
                        "truth": true_saving(cells, flops, fixed + best_difference(kind, flops)),
                        "nats": float(np.log(saved.ratio)),
                        "low": -np.inf if saved.low is None else float(np.log(saved.low)),
                        "high": np.inf if saved.high is None else float(np.log(saved.high)),
                        "verdict": "looped lower" if saved.low is not None and saved.low > 1 else "",
                    }
                )
            entries = [(row.choice, best_difference(kind, flops), row.difference)] + [
                ("each recurrence", cells[flops, "looped", c.mean_recurrence] - fixed, c.difference)
                for c in row.recurrences
            ]
            found += [
                {
                    "study": number,
                    "entry": entry,
                    "budget_flops": flops,
                    "truth": truth,
                    "nats": seen.nats,
                    "low": seen.low_nats,
                    "high": seen.high_nats,
                    "verdict": seen.verdict,
                }
                for entry, truth, seen in entries
            ]
    return found


def summarise(kind: str, records: list[Record]) -> list[Record]:
    """Return coverage and verdicts per entry; `best recurrence` joins both ways of finding it."""
    frame = pd.DataFrame(records)
    best = frame[frame["entry"].isin(["fitted curve", "lowest cell (selection)"])].assign(
        entry="best recurrence"
    )
    rows = []
    for entry, mine in pd.concat([frame, best]).groupby("entry"):
        held = (mine["low"] <= mine["truth"]) & (mine["truth"] <= mine["high"])
        error = (mine["nats"] - mine["truth"]).replace([-np.inf, np.inf], np.nan)
        by_study = held.groupby(mine["study"]).mean()
        rows.append(
            {
                "kind": kind,
                "entry": entry,
                "differences": len(mine),
                "coverage": float(held.mean()),
                "coverage_se": float(by_study.std() / np.sqrt(len(by_study))),
                "truth_below_interval": float((mine["truth"] < mine["low"]).mean()),
                "truth_above_interval": float((mine["truth"] > mine["high"]).mean()),
                "looped_lower": float((mine["verdict"] == "looped lower").mean()),
                "fixed_lower": float((mine["verdict"] == "fixed lower").mean()),
                "median_width_nats": float((mine["high"] - mine["low"]).median()),
                "mean_error_nats": float(error.mean()),
            }
        )
    return rows


def show(row: Record) -> str:
    """Return one row in a line."""
    return (
        f"{row['kind']:>5}, {row['entry']:<23} {row['differences']:6} differences; coverage "
        f"{row['coverage']:.4f} +- {row['coverage_se']:.4f} (below {row['truth_below_interval']:.4f}, above "
        f"{row['truth_above_interval']:.4f}); looped lower {row['looped_lower']:.4f}, fixed lower "
        f"{row['fixed_lower']:.4f}; width {row['median_width_nats']:.4f}, error {row['mean_error_nats']:+.4f}"
    )


def main(
    studies: int = 2000,
    processes: int = 2,
    folder: str = "runs/.validation/compare",
    out: str = str(ROOT / "docs" / "validation" / "compare.json"),
) -> None:
    """Simulate, print one line per kind and entry, and write the summary as each kind ends."""
    rows: list[Record] = []
    for kind in KINDS:
        records = run(partial(simulate, kind), studies, processes, Path(folder) / kind)
        found = summarise(kind, records)
        print("\n".join(map(show, found)))
        rows += found
        result = {
            "command": f"python validation/compare.py studies={studies}",
            "seed": SEED,
            "studies": studies,
            "noise_nats": NOISE_NATS,
            "seed_nats": SEED_NATS,
            "resamples": RESAMPLES,
            "rows": rows,
        }
        write(Path(out), result)


if __name__ == "__main__":
    main(**given(sys.argv[1:]))
