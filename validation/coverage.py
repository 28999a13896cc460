"""Do the intervals of the exponents cover? Simulate studies of a known law and count.

python validation/coverage.py [studies=2000] [processes=2] [folder=runs/.validation/coverage] [out=FILE]

The design is the paper's 140M grid (6 budgets by 6 even recurrences, FLOPs counted as in the paper) under
the paper's own coefficients with N non-embedding and A times 0.30, so that five optima lie inside the grid
and one above it; noise of 0.005 nats, one seed per cell. Study k is drawn from the generator [SEED, k].

For each estimator: how many studies had an exponent accepted, how often its 95 % interval held the slope of
the true law, and the median width over the spread of the estimates (their central 95 %). The true slope is
taken over the five budgets whose true optimum lies inside the grid, and again over the budgets that the
study itself accepted. Studies are kept in `folder`, so that an interrupted run continues; the summary is
written to docs/validation/coverage.json (or `out`) once all are there.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core beats threads inside numpy

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.config import FitConfig
from analysis.isoflop.group import fit_groups
from analysis.stats.noise import noise_floor
from analysis.tables.selection import select
from tests.analysis.synthetic import INSIDE, PAPER_GRID, Truth, study

ROOT = Path(__file__).resolve().parents[1]
SEED = 0
NOISE_NATS = 0.005
RESAMPLES = 400
CHUNK = 10
TRUTH = Truth()
OPTIMA = {flops: TRUTH.optimum(flops) for flops in PAPER_GRID}
TOKENS = {flops: flops / float(TRUTH.flops(OPTIMA[flops])) for flops in PAPER_GRID}

Record = dict[str, Any]
Simulation = Callable[[range], list[Record]]


def true_slope(quantity: str, budgets: tuple[float, ...]) -> float:
    """Return the least-squares slope of the true log optimum on log C over some budgets."""
    values = OPTIMA if quantity == "mean_recurrence" else TOKENS
    return float(np.polyfit(np.log(budgets), np.log([values[flops] for flops in budgets]), 1)[0])


def simulate(numbers: range) -> list[Record]:
    """Fit some studies; return one record per study, estimator and quantity."""
    runs = select(study(TRUTH, budgets=PAPER_GRID, fixed=False)[0], 1.0).runs
    clean, floor, found = runs["val_loss_nats"].to_numpy(float), noise_floor(runs), []
    for number in numbers:
        errors = np.random.default_rng([SEED, number]).standard_normal(len(clean))
        runs["val_loss_nats"] = clean + NOISE_NATS * errors
        config = FitConfig(bootstrap=RESAMPLES, seed=number, validation=False)
        for estimator in fit_groups(runs, floor, config)[0][0].estimators:
            for quantity, law in estimator.laws.items():
                found.append(
                    {
                        "study": number,
                        "estimator": estimator.name,
                        "quantity": quantity,
                        "exponent": law.exponent,
                        "low": law.exponent_low,
                        "high": law.exponent_high,
                        "budgets": law.budgets_flops,
                        "refusal": law.refusal,
                    }
                )
    return found


def keep(simulate: Simulation, numbers: range, path: Path) -> None:
    """Simulate and write one chunk, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(simulate(numbers)))
    partial.replace(path)


def run(simulate: Simulation, studies: int, processes: int, folder: Path) -> list[Record]:
    """Simulate the chunks that `folder` lacks and return all records."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [range(first, min(first + CHUNK, studies)) for first in range(0, studies, CHUNK)]
    paths = {chunk: folder / f"{chunk.start:05}-{chunk.stop:05}.json" for chunk in chunks}
    missing = [chunk for chunk in chunks if not paths[chunk].exists()]
    start = time.monotonic()
    pool = ProcessPoolExecutor(processes)
    try:
        waiting = [pool.submit(keep, simulate, chunk, paths[chunk]) for chunk in missing]
        for done, job in enumerate(as_completed(waiting), start=1):
            job.result()
            left = (time.monotonic() - start) / done * (len(missing) - done)
            print(f"{done} of {len(missing)} chunks, about {left / 60:.0f} min left", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)
    return [record for path in paths.values() for record in json.loads(path.read_text())]


def summarise(records: list[Record], studies: int) -> list[Record]:
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
                "studies": studies,
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


def given(arguments: list[str]) -> dict[str, Any]:
    """Return what the command line says: studies=, processes=, folder= and out=."""
    settings = dict(text.split("=", 1) for text in arguments)
    return {name: int(v) if name in ("studies", "processes") else v for name, v in settings.items()}


def write(path: Path, result: Record) -> None:
    """Write the summary of a study."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main(
    studies: int = 2000,
    processes: int = 2,
    folder: str = "runs/.validation/coverage",
    out: str = str(ROOT / "docs" / "validation" / "coverage.json"),
) -> None:
    """Simulate, print one line per estimator and quantity, and write the summary."""
    rows = summarise(run(simulate, studies, processes, Path(folder)), studies)
    for row in rows:
        print(show(row))
    result = {
        "command": f"python validation/coverage.py studies={studies}",
        "seed": SEED,
        "noise_nats": NOISE_NATS,
        "resamples": RESAMPLES,
        "true_optima": {f"{flops:g}": value for flops, value in OPTIMA.items()},
        "rows": rows,
    }
    write(Path(out), result)


if __name__ == "__main__":
    main(**given(sys.argv[1:]))
