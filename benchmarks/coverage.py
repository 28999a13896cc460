"""Do the intervals of the exponents cover? Simulate studies of a known law and count.

python benchmarks/coverage.py [studies] [processes]

The design is the paper's 140M grid (6 budgets by 6 even recurrences, FLOPs counted as in the paper) under
the paper's own coefficients with N non-embedding and A times 0.30, so that five optima lie inside the grid
and one above it; noise of 0.005 nats, one seed per cell. For each estimator the script prints how many
studies had an exponent accepted, how often its 95 % interval held the slope of the true law over the
accepted budgets, and the median width over the spread of the estimates (their central 95 %).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core beats threads inside numpy

import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.config import FitConfig
from analysis.noise import noise_floor
from analysis.study import fit_groups
from analysis.tables import select
from tests.analysis.synthetic import PAPER_GRID, Truth, study

NOISE_NATS = 0.005
RESAMPLES = 400


def simulate(numbers: range) -> list[tuple[str, str, float | None, float, float, int]]:
    """Return (estimator, quantity, error or None, low - truth, high - truth, budgets) of each study."""
    truth = Truth()
    best = {flops: truth.optimum(flops) for flops in PAPER_GRID}
    tokens = {flops: flops / float(truth.flops(best[flops])) for flops in PAPER_GRID}
    runs = select(study(truth, budgets=PAPER_GRID, fixed=False)[0], 1.0).runs
    clean, found = runs["val_loss_nats"].to_numpy(float), []
    for number in numbers:
        errors = np.random.default_rng([0, number]).standard_normal(len(clean))
        runs["val_loss_nats"] = clean + NOISE_NATS * errors
        config = FitConfig(bootstrap=RESAMPLES, seed=number)
        group = fit_groups(runs, noise_floor(runs), config)[0][0]
        for estimator in group.estimators:
            for quantity, law in estimator.laws.items():
                if law.exponent is None:
                    found.append((estimator.name, quantity, None, 0.0, 0.0, 0))
                    continue
                values = best if quantity == "mean_recurrence" else tokens
                logs = np.log([values[flops] for flops in law.budgets_flops])
                slope = float(np.polyfit(np.log(law.budgets_flops), logs, 1)[0])
                low = -np.inf if law.exponent_low is None else law.exponent_low
                high = np.inf if law.exponent_high is None else law.exponent_high
                row = (law.exponent - slope, low - slope, high - slope, len(law.budgets_flops))
                found.append((estimator.name, quantity, *row))
    return found


def chunks(studies: int, size: int) -> Iterator[range]:
    """Split study numbers into ranges."""
    for first in range(0, studies, size):
        yield range(first, min(first + size, studies))


def main(studies: int, processes: int) -> None:
    """Simulate and print one line per estimator and quantity."""
    with ProcessPoolExecutor(processes) as pool:
        rows = [row for part in pool.map(simulate, chunks(studies, 25)) for row in part]
    for key in sorted({row[:2] for row in rows}):
        accepted = np.array([row[2:] for row in rows if row[:2] == key and row[2] is not None], float)
        error, low, high, budgets = accepted.T
        spread = float(np.ptp(np.quantile(error, [0.025, 0.975])))
        width = float(np.median(high - low))
        counts = ", ".join(f"{int(n)}: {c}" for n, c in sorted(Counter(budgets).items()))
        print(
            f"{key[0]:>13} {key[1]:<16} accepted {len(error)} of {studies} (budgets {counts}); "
            f"coverage {np.mean((low <= 0) & (high >= 0)):.4f} "
            f"(above {np.mean(low > 0):.4f}, below {np.mean(high < 0):.4f}); "
            f"bias {error.mean():+.4f}, spread {spread:.3f}, width {width:.3f}, ratio {width / spread:.2f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, int(sys.argv[2]) if len(sys.argv) > 2 else 2)
