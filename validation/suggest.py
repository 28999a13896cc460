"""Are suggested runs worth more than a uniform refinement of the same cost?

python validation/suggest.py [minutes=M] [folder=DIR] [out=FILE]

300 studies of the same 12 cells; eight more by `suggest`, or the same recurrences at the next two budgets, at
no more FLOPs; the ratio of the widths of the 95 % intervals of the exponent of µ*, with its own bootstrap
interval over studies. Kept and continued as in `validation/design.py`; the summary is
docs/validation/suggest.json, or `out`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.design.ground_truth import GroundTruth
from analysis.design.simulate import Grid, Noise, grid
from sweeps.config.study import StudyConfig
from sweeps.planning.design import planned_runs
from sweeps.planning.design_files import added_cells
from sweeps.planning.suggest import suggest_runs
from validation.design import (
    COUNT,
    NOISE,
    RESAMPLES,
    SEED,
    interval_of,
    kept,
    study,
    width,
    worlds,
)
from validation.simulated import ROOT, Record, write

STUDIES = 300
FIRST = {"mean_recurrences": [2, 4, 8, 12], "budgets_flops": [2e18, 4e18, 8e18]}
NEXT_BUDGETS = [16e18, 32e18]


def suggestions(folder: Path) -> Record:
    """Return the ratio of interval widths, suggestion over uniform refinement, with its own interval."""
    base = replace(study(folder, **FIRST), suggest=8)
    start = planned_runs(base)
    more = planned_runs(study(folder, mean_recurrences=FIRST["mean_recurrences"], budgets_flops=NEXT_BUDGETS))
    spend = float(more["target_flops"].sum())
    base = replace(base, allowance=spend)
    uniform = grid(pd.concat([start, more]), COUNT)
    law = worlds(uniform)["published law"]

    def compare(numbers: range) -> list[Record]:
        return [one(k, base, start, uniform, law) for k in numbers]

    records = kept(folder, "suggest", STUDIES, compare)
    pairs = np.array([[width(r["suggested"]), width(r["uniform"])] for r in records])
    both = np.isfinite(pairs).all(1)
    logs = np.log(pairs[both, 0] / pairs[both, 1])
    again = np.random.default_rng(SEED).choice(logs, (10_000, len(logs))).mean(1)
    low, high = np.exp(np.quantile(again, [0.025, 0.975]))
    widths = [[float(np.nanmedian(column)), float(np.mean(~np.isfinite(column)))] for column in pairs.T]
    kinds = ("suggested", "uniform")
    ends = [[r[kind]["exponent"] for r in records if r[kind]["exponent"]] for kind in kinds]
    spreads = [float(np.ptp(np.quantile(values, [0.025, 0.975]))) for values in ends]
    result = {
        "command": "python validation/suggest.py",
        "seed": SEED,
        "noise_nats": NOISE,
        "resamples": RESAMPLES,
        "law": law.name,
        "studies": STUDIES,
        "studies_with_both": int(both.sum()),
        "ratio_of_widths": float(np.exp(logs.mean())),
        "ratio_low": float(low),
        "ratio_high": float(high),
        "suggested": {"median_width": widths[0][0], "without_interval": widths[0][1], "spread": spreads[0]},
        "uniform": {"median_width": widths[1][0], "without_interval": widths[1][1], "spread": spreads[1]},
        "flops_ratio": float(np.mean([record["flops"] for record in records]) / spend),
    }
    print(json.dumps(result, indent=1))
    return result


def one(k: int, base: StudyConfig, start: pd.DataFrame, uniform: Grid, law: GroundTruth) -> Record:
    """Simulate one study of the 12 cells, continue it both ways and return the two intervals."""
    noise = Noise(seed_nats=NOISE)
    clean = uniform.expected(law)
    losses = clean + noise.draw(uniform.runs, 1, 10_000 + k)[0]
    first = uniform.runs.iloc[: len(start)].assign(val_loss_nats=losses[: len(start)])
    found = suggest_runs(base, start, first)
    added = planned_runs(replace(base, sweep=added_cells(base.sweep, found.cells)))
    suggested = grid(pd.concat([start, added]), COUNT)
    fresh = noise.draw(added.reset_index(drop=True), 1, 20_000 + k)[0]
    ended = suggested.expected(law) + np.concatenate([losses[: len(start)] - clean[: len(start)], fresh])
    return {
        "suggested": interval_of(suggested, ended, k),
        "uniform": interval_of(uniform, losses, k),
        "cells": [list(cell) for cell in found.cells],
        "flops": float(added["target_flops"].sum()),
    }


def main(
    folder: str = "runs/.validation/design", out: str = str(ROOT / "docs" / "validation" / "suggest.json")
) -> None:
    """Simulate and write the summary."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    write(Path(out), suggestions(place))


if __name__ == "__main__":
    given = dict(text.split("=", 1) for text in sys.argv[1:])
    if "minutes" in given:
        os.environ["LOOPSCALE_VALIDATION_MINUTES"] = given.pop("minutes")
    main(**given)
