"""Can the parameter multiplier be trusted? Simulate ladders of a known law and count.

python validation/multiplier.py [studies=2000] [processes=2] [folder=runs/.validation/multiplier] [out=FILE]

A looped model at 11.2B tokens beside six plain transformers of six layers, whose losses are those of
tests/analysis/ladders.py: the looped model is worth a transformer of twice its parameters outside embedding
and value tables. Noise of 0.004 nats. `replicates`: two seeds of every transformer and three of the looped
model, at equal tokens. `single`: one seed each, so that the noise is that of the ladder about its law.
`flops`: two and three seeds, the ladder at the looped model's tokens and at its FLOPs, which are 2.2 times
those of the transformer of its width. For k in every counting and for the share of the gap to the next larger
size: how often the 95 % interval held the truth, open ends included, and how often there was a refusal.
Study k is drawn from the generator [SEED, k]. Studies are kept in `folder`, so that an interrupted run
continues.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core beats threads inside numpy

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis import FitConfig
from analysis.compare.ladder import COUNTINGS
from analysis.compare.multiplier import compare_with_transformers
from analysis.compare.multiplier_comparison import ModelWorth
from tests.analysis.ladders import Ladder, ladder_runs
from validation.simulated import ROOT, Record, given, run, write

SEED = 0
NOISE_NATS = 0.004
RESAMPLES = 400
ROUND = 100  # studies of every kind before the next: if the run is stopped, all kinds have as many
TOKENS = 1.12e10
KINDS: dict[str, dict[str, Any]] = {
    "replicates": {"seeds": (0, 1), "equal_flops": False},
    "single": {"seeds": (0,), "looped_seeds": (0,), "equal_flops": False},
    "flops": {"truth": Ladder(looped_flops=2.2), "seeds": (0, 1)},
}


def truths(kind: str) -> dict[str, float]:
    """Return the true numbers of a kind: k by counting, and of equal tokens the share of the gap."""
    truth = KINDS[kind].get("truth", Ladder())
    if kind == "flops":
        flops = truth.looped_flops * truth.flops(768) * TOKENS
        return {f"k at equal FLOPs, {counting}": truth.k(counting, TOKENS, flops) for counting in COUNTINGS}
    small, large, looped = truth.loss(768, TOKENS), truth.loss(1024, TOKENS), truth.looped_loss(TOKENS)
    found = {f"k at equal tokens, {counting}": truth.k(counting, TOKENS) for counting in COUNTINGS}
    return found | {"share of the gap": (small - looped) / (small - large)}


def estimates(model: ModelWorth) -> Iterator[tuple[str, Any]]:
    """Yield the numbers of a compared model by the names of `truths`."""
    yield "share of the gap", model.gaps[0].share
    for row in model.rows:
        yield f"k at equal {row.equal}, {row.counting}", row.multiplier


def simulate(kind: str, numbers: range) -> list[Record]:
    """Compare some studies; return one record per study and entry."""
    truth, clean, found = truths(kind), ladder_runs(**KINDS[kind]), []
    for number in numbers:
        noise = NOISE_NATS * np.random.default_rng([SEED, number]).standard_normal(len(clean))
        runs = clean.assign(val_loss_nats=clean["val_loss_nats"] + noise)
        config = FitConfig(bootstrap=RESAMPLES, seed=number)
        (model,) = compare_with_transformers(runs, config).models
        for entry, e in estimates(model):
            if entry in truth:
                found.append(
                    {"entry": entry, "truth": truth[entry], "value": e.value, "low": e.low, "high": e.high}
                )
    return found


def summarise(kind: str, records: list[Record]) -> list[Record]:
    """Return coverage, bias, width and refusals per entry; k as its log."""
    rows = []
    for entry, mine in pd.DataFrame(records).groupby("entry", sort=False):
        kept = mine.drop(columns="entry")[mine["value"].notna()].astype(float)
        low, high = kept["low"].fillna(-np.inf), kept["high"].fillna(np.inf)
        truth, value = kept["truth"], kept["value"]
        held = (low <= truth) & (truth <= high)
        if str(entry).startswith("k "):
            value, truth, low, high = (
                pd.Series(np.log(column.clip(lower=1e-300))) for column in (value, truth, low, high)
            )
        spread = float(value.std())
        rows.append(
            {
                "kind": kind,
                "entry": entry,
                "studies": len(mine),
                "refused": int(mine["value"].isna().sum()),
                "truth": float(mine["truth"].iloc[0]),
                "coverage": float(held.mean()),
                "coverage_se": float(np.sqrt(held.mean() * (1 - held.mean()) / len(held))),
                "truth_below_interval": float((truth < low).mean()),
                "truth_above_interval": float((truth > high).mean()),
                "open": int((kept["low"].isna() | kept["high"].isna()).sum()),
                "bias": float((value - truth).mean()),
                "spread": spread,
                "median_width_over_spread": float((high - low).median() / (2 * 1.96 * spread)),
            }
        )
    return rows


def show(row: Record) -> str:
    """Return one row in a line."""
    return (
        f"{row['kind']:>10}, {row['entry']:<38} {row['studies']} studies, {row['refused']} refused, coverage "
        f"{row['coverage']:.4f} +- {row['coverage_se']:.4f} (below {row['truth_below_interval']:.4f}, above "
        f"{row['truth_above_interval']:.4f}), {row['open']} open; bias {row['bias']:+.4f}, spread "
        f"{row['spread']:.4f}, width over spread {row['median_width_over_spread']:.2f}"
    )


def main(
    studies: int = 2000,
    processes: int = 2,
    folder: str = "runs/.validation/multiplier",
    out: str = str(ROOT / "docs" / "validation" / "multiplier.json"),
) -> None:
    """Simulate, print one line per kind and entry, and write the summary after every round."""
    for so_far in sorted({*range(ROUND, studies, ROUND), studies}):
        rows: list[Record] = []
        for kind in KINDS:
            rows += summarise(kind, run(partial(simulate, kind), so_far, processes, Path(folder) / kind))
        result = {
            "command": f"python validation/multiplier.py studies={so_far}",
            "seed": SEED,
            "studies": so_far,
            "noise_nats": NOISE_NATS,
            "resamples": RESAMPLES,
            "rows": rows,
        }
        write(Path(out), result)
    print("\n".join(map(show, rows)))


if __name__ == "__main__":
    main(**given(sys.argv[1:]))
