"""How fast are plan, launch, status and collect? Against the targets, and against single sbatch calls.

python benchmarks/sweep.py [cells]

With a SLURM cluster that answers (make slurm-up; SLURM_CONF set), 1,000 cells are submitted to it as job
arrays, and the same job file as 1,000 single sbatch calls. The rest runs on folders alone, all of `cells`
runs (10,000 by default): a plan, a rehearsal in which 20 % of the attempts fail, then, with depth curves of
24 rows and a tenth of the runs at work, status (second call, files in cache), and collect, first and again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loopscale
from harness.storage.files import write_json
from sweeps.grid.cells import plan_cells
from sweeps.launch.launch import register, start_missing
from sweeps.launch.rehearsal import rehearse_with
from sweeps.state.collect import collect
from sweeps.state.ledger import read_ledger

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]


def timed(what: str, target_s: float | None, action: Callable[[], T]) -> T:
    """Run `action` and print how long it took."""
    began = time.perf_counter()
    result = action()
    taken = time.perf_counter() - began
    target = "" if target_s is None else f" (target {target_s:g} s)"
    print(f"{what:<60} {taken:8.2f} s{target}", flush=True)
    return result


def grid(folder: Path, cells: int, *more: str) -> list[str]:
    """Return overrides of a sweep with about that many cells, seven to a seed."""
    seeds = ",".join(map(str, range(-(-cells // 42))))
    return [
        "sweep=isoflop_140m",
        f"root={folder}",
        f"cache={folder / 'data'}",
        f"sweep.seeds=[{seeds}]",
        "data.unique_tokens=1_000_000_000_000",
        "confirm=false",
        *more,
    ]


def slurm_submission(folder: Path, cells: int) -> None:
    """Submit `cells` runs as `launch` does, then the same number of single sbatch calls."""
    (folder / "text").mkdir()
    for number in range(20):
        (folder / "text" / f"{number}.txt").write_text(f"{number} and other words " * 1000)
    depths, seeds = (",".join(map(str, values)) for values in (range(2, 12), range(cells // 10)))
    overrides = [
        f"root={folder}", f"cache={folder / 'data'}", "data=text", f"path={folder / 'text'}",
        "sweep.name=many", "data.vocabulary_size=270", "data.validation_fraction=0.2", "model=looped_40k",
        "model.sequence_length=32", "training.batch_sequences=4", "evaluation.blocks=2", "sweep.control=none",
        f"sweep.mean_recurrences=[{depths}]", f"sweep.seeds=[{seeds}]", "sweep.min_steps=1",
        "sweep.max_epochs=100", "cluster=slurm", "cluster.resources.options={hold: true}",
        "confirm=false", "sweep.tokens=[4096]",
    ]  # fmt: skip
    loopscale.data(overrides)
    study = loopscale.compose(overrides)
    sweep = folder / "many"
    timed(f"enter {cells} runs into the ledger", None, lambda: register(study, plan_cells(study)))
    timed(f"submit {cells} entered runs to SLURM, one array", None, lambda: start_missing(sweep))
    loopscale.cancel([f"root={folder}", "sweep=many"])
    command = [sys.executable, "-m", "loopscale", "launch", *overrides, "sweep.name=again"]
    timed(f"loopscale launch of {cells} new cells, whole command", 3, lambda: run(command))
    loopscale.cancel([f"root={folder}", "sweep=again"])
    script = next((folder / "again" / "jobs").glob("*/*_submission.sh"))
    single = folder / "single.sh"
    single.write_text("".join(line for line in script.read_text().splitlines(True) if "--array" not in line))
    ids = timed(
        f"{cells} single sbatch calls",
        None,
        lambda: [run(["sbatch", "--parsable", str(single)]) for _ in range(cells)],
    )
    for start in range(0, cells, 500):
        run(["scancel", *(number.strip() for number in ids[start : start + 500])])


def run(command: list[str]) -> str:
    """Run a command from the checkout and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def on_folders(folder: Path, cells: int) -> None:
    """Time what needs no cluster."""
    study = loopscale.compose(grid(folder, cells, "cluster=fake"))
    frame = timed(f"plan of {cells} cells", 2, lambda: loopscale.plan(study))
    print(f"  {len(frame)} cells")
    sweep = timed(f"rehearsal of {cells} cells, 20 % failures", 60, lambda: rehearse_with(study))[0]
    settings = [f"root={folder}", f"sweep={sweep.name}"]
    left = loopscale.status(settings).query("status != 'done'")
    assert left.empty, f"{len(left)} runs did not end"
    lifelike(sweep)
    timed("status, first", None, lambda: loopscale.status(settings))
    counts = timed("status, warm", 2, lambda: loopscale.status(settings))["status"].value_counts()
    print(f"  {dict(counts)}")
    timed("collect, first", 10, lambda: collect(sweep))
    timed("collect, again", None, lambda: collect(sweep))


def lifelike(sweep: Path) -> None:
    """Write 24 rows of depth curve for every run; set every tenth to running, with 100 lines of metrics."""
    for number, run in enumerate(read_ledger(sweep).runs(sweep)):
        rows = [
            {"run_id": run.run_id, "depth": depth, "val_loss_nats": 3 + 1 / depth, "val_loss_se_nats": 0.01}
            for depth in range(1, 25)
        ]
        write_json(run.depth_curve, rows, sync=False)
        if number % 10 == 0:
            run.set_status(replace(run.status(), state="running"), sync=False)
            lines = [{"step": step, "train_loss_nats": 3.0, "tokens_per_s": 1e6} for step in range(100)]
            run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main(cells: int) -> None:
    """Print one line per measurement."""
    folder = Path(tempfile.mkdtemp(prefix="loopscale-sweep-"))
    try:
        if shutil.which("sinfo") and subprocess.run(["sinfo", "-h"], capture_output=True).returncode == 0:
            slurm_submission(folder, 1000)
        else:
            print("no SLURM cluster answers: submission is not timed (make slurm-up)")
        on_folders(folder, cells)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
