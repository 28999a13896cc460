"""Time to solution of a group of five budgets through a shared trunk, and as independent runs.

    python benchmarks/trunk.py [groups] [steps of the smallest budget]

A group is one model and seed with budgets two times apart. It is trained by the local pool with 2 and with 8
workers, each way; every line also says what the plan's schedule predicts for as many free cores, from the
time that each job took with 2 workers. Times run from the first job's start to the last one's end. With fewer
cores than workers the measured times say little: the number of cores and the load are printed.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loopscale
from harness.data.encoding import available_cores
from harness.storage.files import read_json
from sweeps.backends.local import LocalPool
from sweeps.launch.launch import write_ledger
from sweeps.planning.plan import plan
from sweeps.planning.trunk_savings import time_to_solution
from sweeps.state.ledger import Ledger, read_ledger

WORKERS = (2, 8)
POLL_S = 0.05


def overrides(folder: Path, name: str, groups: int, steps: int, workers: int, trunk: bool) -> list[str]:
    """Return the sweep of `groups` seeds, five budgets each; 8 x 64 tokens are a step."""
    budgets = ",".join(str(512 * steps * 2**power) for power in range(5))
    return [
        f"root={folder}", f"cache={folder / 'data'}", "data=text", f"path={folder / 'text'}",
        "data.vocabulary_size=300", "data.validation_fraction=0.1", "model=looped_40k",
        "model.sequence_length=64", "training.batch_sequences=8", "training.threads=1",
        "training.log_every=50", "training.peak_flops_per_s=1e11", "evaluation.blocks=8",
        "evaluation.max_depth=4",
        "sweep.mean_recurrences=[4]", "sweep.control=none", "sweep.min_steps=1", "sweep.max_epochs=100",
        f"sweep.seeds=[{','.join(map(str, range(groups)))}]", f"sweep.tokens=[{budgets}]",
        f"sweep.name={name}", f"sweep.trunk={str(trunk).lower()}", f"cluster.parallel_runs={workers}",
    ]  # fmt: skip


def train(folder: Path, settings: list[str]) -> tuple[float, Path]:
    """Train a sweep with the local pool; returns seconds from the first start to the last end, its folder."""
    study = loopscale.compose(settings)
    ledger = write_ledger(study)
    sweep = folder / ledger.name
    workers = LocalPool(study.cluster).start_workers(sweep, owner=os.getpid())
    nodes, began = ledger.nodes(sweep), 0.0
    while any(worker.poll() is None for worker in workers):
        if not began and any(run.status().state != "planned" for run in nodes):
            began = time.monotonic()
        time.sleep(POLL_S)
    if not all(run.status().state == "done" for run in nodes):
        sys.exit(f"{ledger.name} did not end well: loopscale status sweep={ledger.name} root={folder}")
    # The pool waits for a while after the last run; its files say when that ended.
    return began_to_end(ledger, sweep, began), sweep


def began_to_end(ledger: Ledger, sweep: Path, began: float) -> float:
    """Return the seconds between a moment of the monotonic clock and the end of the last run."""
    last = max(run.status().updated_s for run in ledger.nodes(sweep))
    return (time.monotonic() - began) - (time.time() - last)


def lengths(sweep: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Return the seconds that every job took itself, in the pool's order, and what it came after."""
    ledger = read_ledger(sweep)
    walls = {run.run_id: read_json(run.path / "record.json")["wall_s"] for run in ledger.nodes(sweep)}
    parents = {name: ledger.parent_of(name) for name in walls}
    return {name: wall - walls.get(parents[name], 0.0) for name, wall in walls.items()}, parents


def main(groups: int, steps: int) -> None:
    """Print one line per way and number of workers."""
    with tempfile.TemporaryDirectory(prefix="loopscale-trunk-") as scratch:
        folder = Path(scratch)
        (folder / "text").mkdir()
        for number in range(20):
            draw = random.Random(number)
            words = " ".join(f"{draw.randrange(4096):x}" for _ in range(20_000))
            (folder / "text" / f"{number}.txt").write_text(words)
        loopscale.data(overrides(folder, "data", 1, steps, 1, False))
        savings = plan(loopscale.compose(overrides(folder, "plan", groups, steps, 2, True))).trunks
        saved = 1 - savings.nominal_flops / savings.independent_flops
        print(f"{groups} x 5 budgets from {steps} steps on; the trunks save {saved:.0%} of the FLOPs")
        print(
            f"{'workers':>7}  {'':<12} {'measured s':>10}  {'predicted s':>11}  cores, load before and after"
        )
        jobs: dict[bool, tuple[dict[str, float], dict[str, str]]] = {}
        for workers in WORKERS:
            for trunk in (True, False):
                name = f"{'trunk' if trunk else 'independent'}-{workers}"
                before = os.getloadavg()[0]
                measured, sweep = train(folder, overrides(folder, name, groups, steps, workers, trunk))
                jobs.setdefault(trunk, lengths(sweep))
                predicted = time_to_solution(*jobs[trunk], workers)
                print(
                    f"{workers:>7}  {name.partition('-')[0]:<12} {measured:>10.1f}  {predicted:>11.1f}  "
                    f"{available_cores()}, {before:.1f} and {os.getloadavg()[0]:.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    main(*(numbers + [1, 20][len(numbers) :]))
