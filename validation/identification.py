"""Is phi's interval right where one or two sizes hardly tell it from alpha? Simulate studies and count.

python validation/identification.py [studies=400] [processes=2] [folder=FOLDER] [out=FILE]

The iso-depth law with phi = 0.46 at six budgets and six even recurrences of the published 140M model, alone
or with a second size 1.1 or 1.3 times as large; noise of 0.005 nats. Study k is drawn from the generator
[SEED, k]. For the floor and each exponent, by 200 resamples and by linear theory (bootstrap=0): in
how many studies it is not identified (determined only together with others), in how many the interval is open
on either side, how often the interval holds the truth (an open end holds everything on its side), the same
among closed intervals, and their median width over the spread of the estimates (their central 95 %). Studies
are kept in `folder`, so that an interrupted run continues.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.laws.fit import fit_law
from tests.analysis.laws.test_identification import EVEN, TRUTH, grid, noisy
from validation.simulated import ROOT, Record, given, run, write

SEED = 0
NOISE_NATS = 0.005
RESAMPLES = 200
SHOWN = ("E", "alpha", "beta", "phi")
SIZES = ((1,), (1, 1.1), (1, 1.3))


def simulate(sizes: tuple[float, ...], numbers: range) -> list[Record]:
    """Fit some studies; return one record per study, kind of interval and parameter."""
    points, found = grid(sizes, EVEN), []
    for number in numbers:
        losses = noisy(points, NOISE_NATS, [SEED, number])
        for intervals, resamples in (("resamples", RESAMPLES), ("linear theory", 0)):
            fit = fit_law("iso_depth", points, losses, bootstrap=resamples, seed=number)
            frame = fit.params.replace({-np.inf: None, np.inf: None})
            found += [
                {
                    "study": number,
                    "sizes": sizes,
                    "intervals": intervals,
                    "parameter": name,
                    "value": fit.parameters[name],
                    "low": frame.loc[name, "low"],
                    "high": frame.loc[name, "high"],
                    "identified": name not in fit.not_identified,
                }
                for name in SHOWN
            ]
    return found


def summarise(records: list[Record]) -> list[Record]:
    """Return shares, coverage and width per kind of study, kind of interval and parameter."""
    table = pd.DataFrame(records)
    table["sizes"] = [" and ".join(f"{size:g}" for size in sizes) for sizes in table["sizes"]]
    low, high = table["low"].astype(float).fillna(-np.inf), table["high"].astype(float).fillna(np.inf)
    truth = table["parameter"].map(TRUTH)
    table = table.assign(
        held=(low <= truth) & (truth <= high), closed=np.isfinite(high - low), width=high - low
    )
    rows = []
    for (sizes, intervals, name), mine in table.groupby(["sizes", "intervals", "parameter"], sort=False):
        closed = mine[mine["closed"]]
        spread = float(np.ptp(mine["value"].quantile([0.025, 0.975])))
        rows.append(
            {
                "sizes": sizes,
                "intervals": intervals,
                "parameter": name,
                "truth": TRUTH[str(name)],
                "studies": len(mine),
                "not_identified": float((~mine["identified"]).mean()),
                "open": float((~mine["closed"]).mean()),
                "coverage": float(mine["held"].mean()),
                "coverage_of_closed": float(closed["held"].mean()) if len(closed) else None,
                "median_width_over_spread": float(closed["width"].median()) / spread if len(closed) else None,
            }
        )
    return rows


def main(
    studies: int = 400,
    processes: int = 2,
    folder: str = "runs/.validation/identification",
    out: str = str(ROOT / "docs" / "validation" / "identification.json"),
) -> None:
    """Simulate, print one line per row and write the summary."""
    rows = []
    for sizes in SIZES:
        place = Path(folder) / "-".join(f"{size:g}" for size in sizes)
        rows += summarise(run(partial(simulate, sizes), studies, processes, place))
    for row in rows:
        print(row)
    result = {
        "command": f"python validation/identification.py studies={studies}",
        "seed": SEED,
        "noise_nats": NOISE_NATS,
        "resamples": RESAMPLES,
        "rows": rows,
    }
    write(Path(out), result)


if __name__ == "__main__":
    main(**given(sys.argv[1:]))
