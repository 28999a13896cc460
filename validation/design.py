"""Are designs calibrated, and does a search find narrower grids?

python validation/design.py [part=calibration|search] [minutes=M] [folder=DIR] [out=FILE]

calibration: four grids under two laws. The spread of the exponents of 4,000 simulated studies (what a design
prints) beside the median width of the 95 % intervals of the first 200 of them, each analysed as `fit` does;
then the same where the world is not as the design was told: heavier tails, another N, a coupled law.
search: the published 140M grid and what `design=search` finds for its FLOPs, under three laws.
Study k of a case is drawn from seeds that name it. What was done is kept in `folder`, by default
runs/.validation/design; with `minutes` the script ends with exit code 75 when they are over, and continues
when called again. The summary, docs/validation/design.json or `out`, gains each part as it is there.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loopscale
from analysis.config import FitConfig
from analysis.design.ground_truth import GroundTruth, at_published_optima, published
from analysis.design.simulate import Grid, Noise, estimate, grid
from analysis.design.studies import expected_losses, joined, true_exponent
from analysis.isoflop.shared_shape import fit_shared
from sweeps.config.study import StudyConfig
from sweeps.planning.design import planned_runs
from sweeps.planning.design_search import search
from validation.simulated import ROOT, Record, chunks, keep, write

SEED, NOISE, RESAMPLES = 0, 0.005, 400
STUDIES, ANALYSES = 4000, 200
COUNT = FitConfig().parameter_count
SCALE = "looped_140m"
STARTED = time.monotonic()

SMALL = {"mean_recurrences": [2, 4, 6, 10, 14], "budgets_flops": [2e18, 4e18, 8e18, 16e18]}
WIDE = {
    "mean_recurrences": [2, 4, 6, 10, 16, 24],
    "budgets_flops": [4e18, 8e18, 16e18, 32e18],
    "seeds": [0, 1],
}
DENSE = {
    "mean_recurrences": [2, 4, 6, 8, 10, 12, 16, 20],
    "budgets_flops": [2e18, 4e18, 8e18, 16e18, 32e18],
}
PUBLISHED, TWO_SEEDS = "published 140M grid", "four budgets by six, two seeds"
GRIDS = {PUBLISHED: {}, "four budgets by five": SMALL, TWO_SEEDS: WIDE, "five budgets by eight": DENSE}


def study(cache: Path, **sweep: Any) -> StudyConfig:
    """Return the published 140M sweep without its control, its grid replaced where `sweep` says so."""
    base = loopscale.compose(["sweep=isoflop_140m", f"cache={cache}", f"root={cache}"])
    return replace(base, sweep=replace(base.sweep, control="none", **sweep))


def worlds(bench: Grid) -> dict[str, GroundTruth]:
    """Return the laws of the study, all with A scaled to the published optima."""
    own = published(SCALE, bench.runs, COUNT)
    larger = published("370m", bench.runs, COUNT)
    found = {
        "published law": own,
        "exponents of 370M": replace(larger, floor_nats=own.floor_nats),
        "N counts all": published(SCALE, bench.runs, "all"),
        "coupled": replace(own, coupling=1.2),
        "loop worth less": replace(own, loop_power=0.7),
    }
    return {name: at_published_optima(law, SCALE, bench.shape) for name, law in found.items()}


def cases() -> list[tuple[str, str, float | None]]:
    """Return (grid, law, tail) of every calibration: what a design is told, then what it is not told."""
    known = [(name, law, None) for name in GRIDS for law in ("published law", "exponents of 370M")]
    unknown: list[tuple[str, str, float | None]] = []
    for name in (PUBLISHED, TWO_SEEDS):
        unknown += [(name, "published law", 3.0), (name, "N counts all", None), (name, "coupled", None)]
    return [*known, *unknown]


def losses_of(bench: Grid, law: GroundTruth, tail: float | None, studies: int, seed: int) -> tuple[Any, Any]:
    """Return the noise-free losses [runs] and those of all studies [studies, runs]."""
    clean = expected_losses(bench, law, 0.01)
    return clean, clean + Noise(seed_nats=NOISE, tail=tail).draw(bench.runs, studies, seed)


def interval_of(bench: Grid, losses: Any, seed: int) -> Record:
    """Return the exponent of µ* and its 95 % interval as `fit` gives them to one study."""
    config = FitConfig(bootstrap=RESAMPLES, seed=seed, validation=False)
    law = fit_shared(bench.inputs(losses, config, f"study {seed}")).laws["mean_recurrence"]
    return {
        "exponent": law.exponent,
        "low": law.exponent_low,
        "high": law.exponent_high,
        "refusal": law.refusal,
    }


def width(record: Record) -> float:
    """Return the width of an interval, NaN where there is none."""
    return np.nan if None in (record["low"], record["high"]) else record["high"] - record["low"]


def made(folder: Path, number: int) -> tuple[Grid, GroundTruth, Any, Any]:
    """Return grid, law, noise-free losses and those of all studies of a case."""
    name, law_name, tail = cases()[number]
    bench = grid(planned_runs(study(folder, **GRIDS[name])), COUNT)
    law = worlds(bench)[law_name]
    return bench, law, *losses_of(bench, law, tail, STUDIES, SEED + number)


def analyses(folder: Path, number: int, bench: Grid, losses: Any) -> list[Record]:
    """Return what `fit` says of the first studies of a case."""

    def work(numbers: range) -> list[Record]:
        return [interval_of(bench, losses[k], k) for k in numbers]

    return kept(folder, f"calibration-{number:02}", ANALYSES, work)


def calibration(folder: Path) -> list[Record]:
    """Return one row per case."""
    rows: list[Record] = []
    for number, (name, law_name, tail) in enumerate(cases()):
        bench, law, clean, losses = made(folder, number)
        analysed = analyses(folder, number, bench, losses)
        parts = [estimate(bench, clean, losses[first : first + 250])[0] for first in range(0, STUDIES, 250)]
        slopes = joined(parts).line(bench, "mean_recurrence", 1.0)[1]
        known = slopes[np.isfinite(slopes)]
        widths = np.array([width(record) for record in analysed])
        spread, middle = float(np.ptp(np.quantile(known, [0.025, 0.975]))), float(np.nanmedian(widths))
        rows.append(
            {
                "grid": name,
                "law": law_name,
                "tail": tail,
                "runs": len(bench.runs),
                "true_exponent": true_exponent(bench, law, "mean_recurrence", budgets(bench)),
                "median_exponent": float(np.median(known)),
                "spread": spread,
                "median_interval": middle,
                "interval_over_spread": middle / spread,
                "studies": STUDIES,
                "without_estimate": 1 - len(known) / STUDIES,
                "analyses": ANALYSES,
                "without_interval": float(np.mean(~np.isfinite(widths))),
            }
        )
        designed = next(
            row for row in rows if (row["grid"], row["law"], row["tail"]) == (name, "published law", None)
        )
        rows[-1]["spread_over_design"] = spread / designed["spread"]
        rows[-1]["interval_over_design"] = middle / designed["median_interval"]
        print(show(rows[-1]))
    return rows


def budgets(bench: Grid) -> list[int]:
    """Return the indices of all budgets."""
    return list(range(len(bench.cells.budgets_flops)))


def searched(folder: Path) -> list[Record]:
    """Return what the published grid and the one found for its FLOPs resolve under three laws."""

    def find(numbers: range) -> list[Record]:
        base = study(folder)
        base = replace(base, assume=replace(base.assume, analysts=100, seed_nats=NOISE))
        own = worlds(grid(planned_runs(base), COUNT))
        chosen = ("published law", "coupled", "loop worth less")
        found = search(base, progress, [own[name] for name in chosen])
        rows: list[Record] = []
        for name, before, after in zip(chosen, found.planned, found.searched, strict=True):
            one, other = before.of(), after.of()
            rows.append(
                {
                    "law": name,
                    "planned": {"runs": before.runs, "flops": before.nominal_flops, **of(one)},
                    "found": {"runs": after.runs, "flops": after.nominal_flops, **of(other)},
                    "interval_ratio": None if not one.interval else (other.interval or np.nan) / one.interval,
                    "all_inside": after.all_inside,
                    "cells": {
                        key: [cells.mean_recurrences, cells.lengths, cells.seeds]
                        for key, cells in found.sweep.cells.items()
                    },
                }
            )
        return rows

    rows = kept(folder, "search", 1, find)
    for row in rows:
        print(
            f"{row['law']}: interval {row['found']['interval']} instead of {row['planned']['interval']} "
            f"(ratio {row['interval_ratio']}), minima inside in {row['all_inside']:.3f}"
        )
    return rows


def of(item: Any) -> Record:
    """Return what a report keeps of one resolved number."""
    return {
        "true": item.true,
        "median": item.median,
        "spread": item.spread,
        "interval": item.interval,
        "without_interval": item.without_interval,
    }


def kept(folder: Path, name: str, count: int, work: Callable[[range], list[Record]]) -> list[Record]:
    """Return the records of `count` studies, those of finished chunks from `folder`."""
    records: list[Record] = []
    for chunk in chunks(count):
        path = folder / f"{name}-{chunk.start:05}.json"
        if not path.exists():
            out_of_time()
            keep(work, chunk, path)
            print(f"{name}: {chunk.stop} of {count}, {time.monotonic() - STARTED:.0f} s", file=sys.stderr)
        records += json.loads(path.read_text())
    return records


def out_of_time() -> None:
    """End with exit code 75 when the minutes are over."""
    if time.monotonic() - STARTED > 60 * float(os.environ.get("LOOPSCALE_VALIDATION_MINUTES", "inf")):
        sys.exit(75)


def progress(stage: str, done: float) -> None:
    """Print where a search is."""
    print(f"{stage}: {done:.0%}", file=sys.stderr)


def show(row: Record) -> str:
    """Return one calibration in a line."""
    tail = f", t({row['tail']:g}) noise" if row["tail"] else ""
    return (
        f"{row['grid']}, {row['law']}{tail}: spread {row['spread']:.3f}, median interval "
        f"{row['median_interval']:.3f}, ratio {row['interval_over_spread']:.2f}, against the design "
        f"{row['interval_over_design']:.2f}"
    )


PARTS: dict[str, Callable[[Path], Any]] = {
    "calibration": calibration,
    "search": searched,
}


def main(
    part: str = "",
    folder: str = "runs/.validation/design",
    out: str = str(ROOT / "docs/validation/design.json"),
) -> None:
    """Carry out one part, or all, and add the results to the summary."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    path = Path(out)
    result = json.loads(path.read_text()) if path.exists() else {}
    settings = {
        "command": "python validation/design.py",
        "seed": SEED,
        "noise_nats": NOISE,
        "resamples": RESAMPLES,
    }
    for name in [part] if part else PARTS:
        result = (
            settings
            | {key: value for key, value in result.items() if key in PARTS}
            | {name: PARTS[name](place)}
        )
        write(path, result)


if __name__ == "__main__":
    given = dict(text.split("=", 1) for text in sys.argv[1:])
    if "minutes" in given:
        os.environ["LOOPSCALE_VALIDATION_MINUTES"] = given.pop("minutes")
    main(**given)
