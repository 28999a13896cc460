"""What does the designed 140M grid resolve, beside the published one, under four laws?

python validation/designed_140m.py [studies=1000] [analyses=100] [out=FILE]

conf/sweep/isoflop_140m_designed.yaml and isoflop_140m, without their controls, under the printed law of the
paper (N counts all) and three laws with A scaled to the printed optima: N non embedding, the same with N and
D coupled, and with a loop worth less. Noise of 0.005 nats. The interval is the median over the analysed
studies of what `fit` would print. The summary is docs/validation/designed_140m.json, or `out`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loopscale
from analysis.design.ground_truth import published
from analysis.design.power import DesignConfig, PowerAnalysis
from analysis.design.simulate import Grid, Noise, grid
from analysis.design.studies import analyse_power
from sweeps.planning.design import planned_runs
from validation.design import COUNT, NOISE, SCALE, SEED, of, worlds
from validation.simulated import ROOT, Record, write

SWEEPS = ("isoflop_140m", "isoflop_140m_designed")
SCALED = ("published law", "coupled", "loop worth less")


def planned(sweep: str, folder: str) -> tuple[Grid, float]:
    """Return the looped runs of a shipped sweep, and its FLOPs with the control."""
    study = loopscale.compose([f"sweep={sweep}", f"root={folder}", f"cache={folder}"])
    flops = float(planned_runs(study)["nominal_flops"].sum())
    return grid(planned_runs(replace(study, sweep=replace(study.sweep, control="none"))), COUNT), flops


def resolved(result: PowerAnalysis) -> Record:
    """Return what one grid resolves under one law."""
    exponent = result.of()
    return {
        "runs": result.runs,
        "flops": result.nominal_flops,
        "three_optima_inside": 1 - exponent.without_estimate,
        "all_inside": result.all_inside,
        **of(exponent),
    }


def main(studies: int = 1000, analyses: int = 100, out: str = "") -> None:
    """Simulate both grids and write the summary."""
    with tempfile.TemporaryDirectory() as folder:
        grids = {sweep: planned(sweep, folder) for sweep in SWEEPS}
    first = grids[SWEEPS[0]][0]
    scaled = worlds(first)
    laws = [published(SCALE, first.runs, "all"), *(scaled[name] for name in SCALED)]
    config = DesignConfig(studies=studies, analysts=analyses, bootstrap=400, seed=SEED, target_flops=1.28e20)
    rows = []
    for name, law in zip(("printed law", *SCALED), laws, strict=True):
        before, after = (
            resolved(analyse_power(made, law, Noise(seed_nats=NOISE), config)) for made, _ in grids.values()
        )
        one, other = before["interval"], after["interval"]
        ratio = other / one if one and other else None
        rows.append({"law": name, SWEEPS[0]: before, SWEEPS[1]: after, "interval_ratio": ratio})
        print(f"{name}: {other} instead of {one}; three optima inside in {after['three_optima_inside']:.1%}")
    result = {
        "command": "python validation/designed_140m.py",
        "seed": SEED,
        "noise_nats": NOISE,
        "studies": studies,
        "analyses": analyses,
        "flops_with_control": {sweep: flops for sweep, (_, flops) in grids.items()},
        "rows": rows,
    }
    write(Path(out) if out else ROOT / "docs" / "validation" / "designed_140m.json", result)


if __name__ == "__main__":
    settings = dict(text.split("=", 1) for text in sys.argv[1:])
    counts = {name: int(settings.pop(name)) for name in ("studies", "analyses") if name in settings}
    main(**counts, **settings)
