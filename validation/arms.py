"""Can the differences of two arms be trusted? Simulate studies of known differences and count.

python validation/arms.py [studies=500] [processes=2] [folder=runs/.validation/arms] [out=FILE]

Two arms on the paper's 140M grid (five budgets by six even recurrences, a fixed control), whose losses are
those of one law, in the second arm at 1.3 times the tokens: its compute multiplier is 1.3. Noise of 0.003
nats, three seeds at three cells of each arm. For the difference in nats over all cells, the multiplier and
the differences of exponents: how often the 95 % interval held the truth, its width over the spread, refusals.
The envelope: arms with noise of a known level, all but one worse by a gap; by how much the least loss lies
low before and after the shortfall is added back. Study k is drawn from the generator [SEED, k].
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core beats threads inside numpy

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis import FitConfig
from analysis.compare.arms import compare_arms
from analysis.study.envelope import least_losses
from tests.analysis.compare.test_arms import REPLICATES, SAVED, TWO, arms_of
from tests.analysis.synthetic import Truth, study
from validation.simulated import ROOT, Record, given, run, write

SEED = 0
NOISE_NATS = 0.003
RESAMPLES = 400


def truths() -> dict[str, float | None]:
    """Return the true differences: those of a study without noise, and the multiplier by construction."""
    quiet = arms_of(TWO, replicates=REPLICATES)
    (group,) = compare_arms(quiet, "injection", FitConfig(bootstrap=100), "diagonal").pairs[0].groups
    exponents = {f"exponent of {quantity}": found.value for quantity, found in group.exponents.items()}
    return {"nats at equal FLOPs": group.nats.value, "compute multiplier": SAVED, **exponents}


def simulate(numbers: range) -> list[Record]:
    """Compare some studies; return one record per study and entry."""
    truth, clean, found = truths(), arms_of(TWO, replicates=REPLICATES), []
    for number in numbers:
        noise = NOISE_NATS * np.random.default_rng([SEED, number]).standard_normal(len(clean))
        runs = clean.assign(val_loss_nats=clean["val_loss_nats"] + noise)
        config = FitConfig(bootstrap=RESAMPLES, seed=number)
        (group,) = compare_arms(runs, "injection", config, "diagonal").pairs[0].groups
        seen = dict(zip(truth, [group.nats, group.multiplier, *group.exponents.values()], strict=True))
        found += [
            {"entry": name, "truth": truth[name], "value": e.value, "low": e.low, "high": e.high}
            for name, e in seen.items()
        ]
    return found


def summarise(records: list[Record]) -> list[Record]:
    """Return coverage, width and refusals per entry."""
    rows = []
    for entry, mine in pd.DataFrame(records).groupby("entry", sort=False):
        given_value = mine[mine["value"].notna()]
        low, high = given_value["low"].fillna(-np.inf), given_value["high"].fillna(np.inf)
        held = (low <= given_value["truth"]) & (given_value["truth"] <= high)
        spread = float(given_value["value"].std())
        rows.append(
            {
                "entry": entry,
                "studies": len(mine),
                "refused": int(mine["value"].isna().sum()),
                "coverage": float(held.mean()),
                "bias": float((given_value["value"] - given_value["truth"]).mean()),
                "spread": spread,
                "median_width_over_spread": float((high - low).median() / (2 * 1.96 * spread)),
            }
        )
    return rows


def selection(studies: int) -> list[Record]:
    """Return by how many standard deviations the least of some arms lies low, before and after."""
    rows, base = [], study(Truth())[0]
    for arms, gap in ((2, 0.0), (4, 0.0), (4, 1.0), (4, 3.0)):
        rates = [0.001 * 2**k for k in range(arms)]
        clean = pd.concat(
            [
                base.assign(
                    adamw_learning_rate=rate,
                    run_id=base["run_id"] + f"-{rate}",
                    val_loss_nats=base["val_loss_nats"] + NOISE_NATS * gap * (k > 0),
                )
                for k, rate in enumerate(rates)
            ],
            ignore_index=True,
        )
        cell = ["kind", "mean_recurrence", "target_flops"]
        truth = clean.groupby(cell)["val_loss_nats"].min()
        raw, raised = [], []
        for number in range(studies):
            noise = NOISE_NATS * np.random.default_rng([SEED, number]).standard_normal(len(clean))
            runs = clean.assign(val_loss_nats=clean["val_loss_nats"] + noise)
            for one in least_losses(runs, ["adamw_learning_rate"], NOISE_NATS, 1000)[0]:
                error = one.loss_nats - truth[one.kind, one.mean_recurrence, one.budget_flops]
                raised.append(error / NOISE_NATS)
                raw.append((error - one.shortfall_nats) / NOISE_NATS)
        rows.append(
            {
                "arms": arms,
                "gap_sd": gap,
                "bias_sd_of_the_least": float(np.mean(raw)),
                "bias_sd_raised": float(np.mean(raised)),
            }
        )
    return rows


def main(
    studies: int = 500,
    processes: int = 2,
    folder: str = "runs/.validation/arms",
    out: str = str(ROOT / "docs" / "validation" / "arms.json"),
) -> None:
    """Simulate, print one line per entry and write the summary."""
    rows = summarise(run(simulate, studies, processes, Path(folder)))
    least = selection(max(studies // 25, 2))
    for row in [*rows, *least]:
        print(row)
    result = {
        "command": f"python validation/arms.py studies={studies}",
        "seed": SEED,
        "studies": studies,
        "noise_nats": NOISE_NATS,
        "resamples": RESAMPLES,
        "rows": rows,
        "envelope": least,
    }
    write(Path(out), result)


if __name__ == "__main__":
    main(**given(sys.argv[1:]))
