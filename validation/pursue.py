"""What does a pursuit cost for a given interval, and does that interval hold the truth as often as it says?

python validation/pursue.py [studies=1000] [by_hand=100] [processes=2] [minutes=M] [folder=DIR] [out=FILE]

Three laws, each with two noises. The fixed grid is the one that `design=search` found for the FLOPs of the
published 140M grid (`docs/validation/design.json`), with those laws known. Its median interval of the
exponent of µ* is the width that pursuits of the same allowance are asked for. Runs are independent of each
other, as without trunks.

- `flops_ratio`: FLOPs of pursuits over those of the grid, with its bootstrap interval over pursuits. One that
  ends without the wanted width counts with all that it spent.
- `coverage`: how often the last interval holds the slope of the true optima over the budgets that the fit
  accepted, under the policy and its stopping rule.
- `by_hand`: from the same pilots, `plan suggest=8` again and again until the interval is as narrow.

Pursuit k of every case draws its noise from seed 200,000 + k: the widening of the intervals was chosen with
other seeds. Studies by hand draw from seed k and stop by the intervals of `fit`, which are not widened.
Finished chunks are kept in `folder`; the summary, docs/validation/pursue.json or `out`, is written after
every chunk with the numbers that were really done.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.design.ground_truth import GroundTruth
from analysis.design.simulate import Noise, grid
from analysis.pursuit.policy import Policy, ladder, pilot
from analysis.pursuit.question import STRETCH, Answer, Question, answer, inputs_of
from analysis.pursuit.simulate import simulate_pursuit, trained
from sweeps.planning.design import planned_runs
from sweeps.planning.suggest import suggest_runs
from validation.design import COUNT, interval_of, out_of_time, study, width, worlds
from validation.simulated import ROOT, Record, chunks, keep, write

LAWS = ("published law", "coupled", "loop worth less")
NOISES = {
    "normal, 0.005 nats": Noise(seed_nats=0.005),
    "Student's t of 5, 0.01 nats": Noise(seed_nats=0.01, tail=5.0),
}
ALLOWANCE = 5.7e20  # FLOPs of the published 140M grid's looped runs
RECURRENCES = (2, 4, 6, 8, 10, 12, 16, 20, 24, 32)
FIRST = 200_000  # seed of the first pursuit
GRID_STUDIES = 100  # analyses of the fixed grid behind its median width
Cases = list[tuple[str, str]]


class Bench:
    """What all cases have in common: the cells to choose from, the fixed grid and the laws."""

    def __init__(self, folder: Path) -> None:
        """Plan the cells, without any file of the command line's."""
        self.policy = Policy(
            question=Question(asked="exponent"),
            target_width=1.0,
            allowance_flops=ALLOWANCE,
            recurrences=RECURRENCES,
            budgets_flops=ladder(ALLOWANCE),
        )
        self.study = study(
            folder,
            mean_recurrences=list(RECURRENCES),
            budgets_flops=list(self.policy.budgets_flops),
        )
        self.candidates = planned_runs(self.study)
        found = json.loads((ROOT / "docs/validation/design.json").read_text())["search"][0]["cells"]
        cells = [
            (mu, flops, seed)
            for recurrences, (flops,), seeds in found.values()
            for mu in recurrences
            for seed in seeds
        ]
        recurrences = sorted({mu for mu, _, _ in cells})
        planned = planned_runs(
            study(folder, mean_recurrences=recurrences, budgets_flops=sorted({c[1] for c in cells}))
        )
        self.fixed = grid(trained(planned, cells), COUNT)
        self.laws = worlds(grid(self.candidates, COUNT))

    def width(self, law: GroundTruth, noise: Noise) -> float:
        """Return the median width that the fixed grid gives."""
        losses = self.fixed.expected(law) + noise.draw(self.fixed.runs, GRID_STUDIES, 0)
        return float(np.nanmedian([width(interval_of(self.fixed, row, k)) for k, row in enumerate(losses)]))


def pursued(bench: Bench, law: GroundTruth, noise: Noise, wanted: float, numbers: range) -> list[Record]:
    """Return how pursuits end."""
    records = []
    for k in numbers:
        one = simulate_pursuit(
            replace(bench.policy, target_width=wanted), bench.candidates, law, noise, FIRST + k
        )
        last = one.rounds[-1]
        records.append(
            {
                "spent": one.spent_flops,
                "rounds": len(one.rounds) - 1,
                "answered": last.answered,
                "covered": one.covered,
                "true": one.true,
                "answer": vars(last.answer) if last.answer else None,
            }
        )
    return records


def by_hand(bench: Bench, law: GroundTruth, noise: Noise, wanted: float, numbers: range) -> list[Record]:
    """Return what `suggest=8` from the same pilots spends, one suggestion after the other."""
    asked = replace(
        bench.study,
        suggest=8,
        assume=replace(
            bench.study.assume,
            recurrences=list(RECURRENCES),
            budgets_flops=list(bench.policy.budgets_flops),
        ),
    )
    records = []
    for k in numbers:
        generator = np.random.default_rng(k)
        runs, cells, spent = bench.candidates.iloc[:0], pilot(bench.policy).cells, 0.0
        found = None
        while cells:
            chosen = trained(bench.candidates, cells)
            errors = noise.draw(chosen, 1, int(generator.integers(2**31)))[0]
            columns = (chosen[name].to_numpy(float) for name in ("mean_recurrence", "tokens"))
            done = chosen.assign(val_loss_nats=law.loss(*columns) + errors)
            runs = pd.concat([runs, done], ignore_index=True)
            spent += float(chosen["nominal_flops"].sum())
            found = _answered(runs)
            if found.width is not None and found.width <= STRETCH * wanted:
                break
            left = min(ALLOWANCE - spent, 8 * float(runs["target_flops"].max()))
            cells = suggest_runs(replace(asked, allowance=left), bench.candidates, runs).cells
        answered = found is not None and found.width is not None and found.width <= STRETCH * wanted
        records.append({"spent": spent, "answered": answered})
    return records


def _answered(runs: pd.DataFrame) -> Answer:
    """Return the answer over all budgets of the runs."""
    inputs = inputs_of(grid(runs, COUNT), runs["val_loss_nats"].to_numpy(float), 0)
    return answer(Question(asked="exponent"), inputs, inputs.cells.budgets_flops)


def ratio(spent: list[float], flops: float) -> Record:
    """Return mean FLOPs over those of the grid, with a 95 % bootstrap interval."""
    values = np.array(spent) / flops
    again = np.random.default_rng(0).choice(values, (4000, len(values))).mean(1)
    low, high = np.quantile(again, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def summary(bench: Bench, law: str, noise: str, wanted: float, done: list[Record]) -> Record:
    """Return one case in numbers."""
    flops = float(bench.fixed.runs["nominal_flops"].sum())
    known = [record for record in done if record["covered"] is not None]
    share = float(np.mean([record["covered"] for record in known])) if known else np.nan
    error = 1.96 * float(np.sqrt(share * (1 - share) / max(len(known), 1)))
    widths = [record["answer"]["width"] for record in known]
    return {
        "law": law,
        "noise": noise,
        "wanted_width": wanted,
        "pursuits": len(done),
        "answered": float(np.mean([record["answered"] for record in done])),
        "without_interval": 1 - len(known) / len(done),
        "coverage": share,
        "coverage_error": error,
        "coverage_of_answered": float(np.mean([r["covered"] for r in known if r["answered"]] or [np.nan])),
        "median_width": float(np.median(widths)),
        "rounds": float(np.mean([record["rounds"] for record in done])),
        "flops_ratio": ratio([record["spent"] for record in done], flops),
        "largest_spent_of_allowance": max(record["spent"] for record in done) / ALLOWANCE,
    }


def main(
    studies: int = 1000,
    hand: int = 100,
    processes: int = 2,
    folder: str = "runs/.validation/pursue",
    out: str = str(ROOT / "docs" / "validation" / "pursue.json"),
) -> None:
    """Simulate chunk by chunk, a chunk of every case in turn, and write the summary after each turn."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    bench = Bench(place)
    cases = [(law, noise) for noise in NOISES for law in LAWS]
    wanted: dict[str, float] = {}
    for number, (law, noise) in enumerate(cases):
        path = place / f"width-{number}.json"
        if not path.exists():
            path.write_text(json.dumps(bench.width(bench.laws[law], NOISES[noise])))
        wanted[f"{number}"] = json.loads(path.read_text())
    pool = ProcessPoolExecutor(processes)
    for chunk in chunks(max(studies, hand)):
        waiting = []
        out_of_time()
        for number, (law, noise) in enumerate(cases):
            common = (bench, bench.laws[law], NOISES[noise], wanted[f"{number}"])
            works: dict[str, tuple[int, Callable[[range], list[Record]]]] = {
                "pursued": (studies, partial(pursued, *common)),
                "by_hand": (hand if number < len(LAWS) else 0, partial(by_hand, *common)),
            }
            for name, (count, work) in works.items():
                path = place / f"{name}-{number}-{chunk.start:05}.json"
                if chunk.stop <= count and not path.exists():
                    waiting.append(pool.submit(keep, work, chunk, path))
        for job in waiting:
            job.result()
        write(Path(out), result(bench, cases, wanted, place))


def result(bench: Bench, cases: Cases, wanted: dict[str, float], place: Path) -> Record:
    """Return the summary of all finished chunks."""
    rows = []
    for number, (law, noise) in enumerate(cases):
        done = _finished(place, f"pursued-{number}")
        rows.append(summary(bench, law, noise, wanted[f"{number}"], done))
        hand = _finished(place, f"by_hand-{number}")
        if hand:
            same = [record["spent"] for record in done[: len(hand)]]
            other = [record["spent"] for record in hand]
            rows[-1]["by_hand"] = {
                "studies": len(hand),
                "answered": float(np.mean([record["answered"] for record in hand])),
                "pursuit_over_by_hand": ratio(same, float(np.mean(other))),
            }
    return {
        "command": "python validation/pursue.py",
        "seed": f"{FIRST} + k for pursuit k, k for study k by hand",
        "widened_by": STRETCH,
        "allowance_flops": ALLOWANCE,
        "fixed_grid_flops": float(bench.fixed.runs["nominal_flops"].sum()),
        "rows": rows,
    }


def _finished(place: Path, name: str) -> list[Record]:
    return [
        record for path in sorted(place.glob(f"{name}-*.json")) for record in json.loads(path.read_text())
    ]


if __name__ == "__main__":
    given = dict(text.split("=", 1) for text in sys.argv[1:])
    if "minutes" in given:
        os.environ["LOOPSCALE_VALIDATION_MINUTES"] = given.pop("minutes")
    numbers = {
        {"by_hand": "hand"}.get(k, k): int(given.pop(k))
        for k in ("studies", "by_hand", "processes")
        if k in given
    }
    main(**numbers, **given)
