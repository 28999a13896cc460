"""Do the intervals of the exponents cover? Simulate studies of a known law and count.

python validation/coverage.py [noise=gaussian] [studies=2000] [processes=2] [folder=FOLDER] [out=FILE]

The design is the paper's 140M grid (6 budgets by 6 even recurrences, FLOPs counted as in the paper) under
the paper's own coefficients with N non-embedding and A times 0.30, so that five optima lie inside the grid
and one above it; noise of 0.005 nats, one seed per cell. Study k is drawn from the generator [SEED, k].

noise=gaussian is equal normal noise. noise=robust runs four other kinds of study, fitted by shared shape and
surface: Student's t with 3 degrees of freedom; noise that goes as C^-1/2 (both of the same pooled variance);
one run in each study 0.1 nats off, up or down; and curves that lack cells on one side (the deepest at two low
budgets, the shallowest at two high ones).

For each estimator: how many studies had an exponent accepted, how often its 95 % interval held the slope of
the true law, and the median width over the spread of the estimates (their central 95 %). The true slope is
taken over the five budgets whose true optimum lies inside the grid, and again over the budgets that the
study itself accepted. Studies are kept in `folder`, by noise and estimator, so that an interrupted run
continues; the summary is written to docs/validation/coverage.json or coverage_robust.json (or `out`). If the
run was stopped, the summary covers the studies so far and says how many there are of how many.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core beats threads inside numpy

import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.config import FitConfig
from analysis.isoflop.group import ESTIMATORS, NAMES, fit_groups
from analysis.stats.noise import noise_floor
from analysis.tables.selection import select
from tests.analysis.synthetic import INSIDE, PAPER_GRID, Truth, study
from validation.simulated import ROOT, Record, given, records, run, write

SEED = 0
NOISE_NATS = 0.005
RESAMPLES = 400
ROUND = 100  # studies of every kind before the next
GAUSSIAN = "gaussian"
ROBUST = ("outlier", "low_budgets", "t3", "missing")
BY_NAME = dict(zip(NAMES, ESTIMATORS, strict=True))
OUTLIER_NATS = 0.1
TRUTH = Truth()
OPTIMA = {flops: TRUTH.optimum(flops) for flops in PAPER_GRID}
TOKENS = {flops: flops / float(TRUTH.flops(OPTIMA[flops])) for flops in PAPER_GRID}


def true_slope(quantity: str, budgets: tuple[float, ...]) -> float:
    """Return the least-squares slope of the true log optimum on log C over some budgets."""
    values = OPTIMA if quantity == "mean_recurrence" else TOKENS
    return float(np.polyfit(np.log(budgets), np.log([values[flops] for flops in budgets]), 1)[0])


def errors(noise: str, number: int, flops: np.ndarray) -> np.ndarray:
    """Return the errors of the runs of one study in nats [runs]; `flops` are their budgets."""
    generator = np.random.default_rng([SEED, number])
    if noise == "t3":
        return NOISE_NATS * generator.standard_t(3, len(flops)) / np.sqrt(3)  # of unit variance
    normal = NOISE_NATS * generator.standard_normal(len(flops))
    if noise == "low_budgets":
        scale = flops**-0.5
        return normal * scale / np.sqrt(np.mean(scale**2))
    if noise == "outlier":
        normal[generator.integers(len(flops))] += OUTLIER_NATS * generator.choice([-1, 1])
    return normal


def runs_of(noise: str) -> pd.DataFrame:
    """Return the runs of a study without noise."""
    runs = select(study(TRUTH, budgets=PAPER_GRID, fixed=False)[0], 1.0).runs
    if noise != "missing":
        return runs
    depth, flops = runs["mean_recurrence"], runs["target_flops"]
    low, high = flops.isin(PAPER_GRID[:2]), flops.isin(PAPER_GRID[3:5])
    return runs[~(low & (depth == depth.max())) & ~(high & (depth == depth.min()))].reset_index(drop=True)


def simulate(noise: str, name: str, numbers: range) -> list[Record]:
    """Fit some studies by one estimator; return one record per study and quantity."""
    runs = runs_of(noise)
    clean, floor, found = runs["val_loss_nats"].to_numpy(float), noise_floor(runs), []
    flops = runs["target_flops"].to_numpy(float)
    for number in numbers:
        runs["val_loss_nats"] = clean + errors(noise, number, flops)
        config = FitConfig(bootstrap=RESAMPLES, seed=number, validation=False)
        (fit,) = fit_groups(runs, floor, config, (BY_NAME[name],))[0][0].estimators
        for quantity, law in fit.laws.items():
            found.append(
                {
                    "study": number,
                    "estimator": name,
                    "quantity": quantity,
                    "exponent": law.exponent,
                    "low": law.exponent_low,
                    "high": law.exponent_high,
                    "budgets": law.budgets_flops,
                    "refusal": law.refusal,
                }
            )
    return found


def summarise(records: list[Record]) -> list[Record]:
    """Return coverage, bias, spread and width per estimator and quantity."""
    rows = []
    for name, quantity in sorted({(r["estimator"], r["quantity"]) for r in records}):
        mine = [r for r in records if (r["estimator"], r["quantity"]) == (name, quantity)]
        kept = [r for r in mine if r["exponent"] is not None]
        estimate = np.array([r["exponent"] for r in kept])
        low = np.array([-np.inf if r["low"] is None else r["low"] for r in kept])
        high = np.array([np.inf if r["high"] is None else r["high"] for r in kept])
        fixed = true_slope(quantity, INSIDE)
        own = np.array([true_slope(quantity, tuple(r["budgets"])) for r in kept])
        spread = float(np.ptp(np.quantile(estimate, [0.025, 0.975])))
        width = float(np.median(high - low))
        rows.append(
            {
                "estimator": name,
                "quantity": quantity,
                "studies": len(mine),
                "accepted": len(kept),
                "refused": dict(Counter(r["refusal"] for r in mine if r["exponent"] is None)),
                "budgets_accepted": dict(sorted(Counter(len(r["budgets"]) for r in kept).items())),
                "true_exponent": fixed,
                "coverage": float(np.mean((low <= fixed) & (fixed <= high))),
                "truth_below_interval": float(np.mean(fixed < low)),
                "truth_above_interval": float(np.mean(fixed > high)),
                "coverage_of_the_slope_over_accepted_budgets": float(np.mean((low <= own) & (own <= high))),
                "open_intervals": int(np.sum(~np.isfinite(high - low))),
                "mean_bias": float(np.mean(estimate - fixed)),
                "spread": spread,
                "median_width": width,
                "width_over_spread": width / spread,
            }
        )
    return rows


def show(row: Record) -> str:
    """Return one row in a line."""
    name = f"{row['estimator']:>13} {row['quantity']:<16}"
    own = row["coverage_of_the_slope_over_accepted_budgets"]
    return (
        f"{name} accepted {row['accepted']} of {row['studies']} (budgets {row['budgets_accepted']}); "
        f"coverage {row['coverage']:.4f} (below {row['truth_below_interval']:.4f}, above "
        f"{row['truth_above_interval']:.4f}; own budgets {own:.4f}); bias {row['mean_bias']:+.4f}, spread "
        f"{row['spread']:.3f}, width {row['median_width']:.3f}, ratio {row['width_over_spread']:.2f}"
    )


def main(
    noise: str = GAUSSIAN,
    studies: int = 2000,
    processes: int = 2,
    folder: str = "runs/.validation/coverage",
    out: str = "",
) -> None:
    """Simulate, print one line per estimator and quantity, and write the summary."""
    kinds, names = (ROBUST, ("shared shape", "surface")) if noise != GAUSSIAN else ((GAUSSIAN,), NAMES)
    rows = []
    places = {(kind, name): Path(folder) / kind / name for kind in kinds for name in names}
    try:
        # Some studies of every kind before the next: if the run is stopped, all kinds have about as many.
        for so_far in sorted({*range(ROUND, studies, ROUND), studies}):
            for (kind, name), place in places.items():
                run(partial(simulate, kind, name), so_far, processes, place)
    except KeyboardInterrupt:
        print("stopped: the summary covers the studies so far", file=sys.stderr)
    for (kind, _), place in places.items():
        rows += [{"noise": kind, **row} for row in summarise(records(studies, place))]
    for row in rows:
        print(f"{row['noise']:>11} {show(row)}")
    name = "coverage" if noise == GAUSSIAN else "coverage_robust"
    result = {
        "command": f"python validation/{name}.py studies={studies}",
        "seed": SEED,
        "noise_nats": NOISE_NATS,
        "resamples": RESAMPLES,
        "studies_wanted": studies,
        "true_optima": {f"{flops:g}": value for flops, value in OPTIMA.items()},
        "rows": rows,
    }
    write(Path(out or ROOT / "docs" / "validation" / f"{name}.json"), result)


if __name__ == "__main__":
    main(**given(sys.argv[1:]))
