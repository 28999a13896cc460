"""What sizes of real use cost: time, memory and growth with documents, runs and parameters.

python benchmarks/scale.py [PART ...] [--divide 1] [--result docs/validation/scale.json]

Every part is measured at three sizes, each in a process of its own: CPU seconds, so that other work on the
machine counts little, wall seconds, and the peak of resident memory. `growth` is the exponent of CPU seconds
between the two largest sizes. Parts that are named replace their rows in the result and leave the others.
docs/scale.md says what follows for larger sizes.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
TOKENS = 20  # of a document, in the mean; short ones, as the cost is by document
SLOTS = 257
SWEEP = "rehearsal-isoflop_140m"


@dataclass(frozen=True)
class Part:
    """What is measured. `prepare` writes what `work` reads, in a process whose memory does not count."""

    unit: str
    sizes: tuple[int, ...]
    work: Callable[[Path, int], None]
    prepare: Callable[[Path, int], None] | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts and enter each into the result as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--divide", type=int, default=1, help="all sizes by this number, for a trial")
    parser.add_argument("--result", type=Path, default=REPOSITORY / "docs" / "validation" / "scale.json")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for name in chosen.parts or PARTS:
        rows = json.loads(chosen.result.read_text())["rows"] if chosen.result.exists() else {}
        rows[name] = measured(name, PARTS[name], chosen.divide)
        about = {"command": "python benchmarks/scale.py", "seed": 0}
        ordered = {part: rows[part] for part in PARTS if part in rows}
        chosen.result.write_text(json.dumps(about | {"rows": ordered}, indent=1) + "\n")


def measured(name: str, part: Part, divide: int) -> dict[str, object]:
    """Return CPU seconds, wall seconds and peak GB of a part by size, and how its CPU seconds grow."""
    sizes = [max(size // divide, 1) for size in part.sizes]
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            if part.prepare:
                _alone(part.prepare, Path(folder), size)
            rows.append(_alone(_timed, part.work, Path(folder), size))
        cpu, wall, peak = rows[-1]
        print(f"{name}: {size:,} {part.unit}: {cpu} CPU s, {wall} s, {peak} GB", flush=True)
    cpu, wall, peak = zip(*rows, strict=True)
    growth = math.log(max(cpu[-1], 1e-3) / max(cpu[-2], 1e-3)) / math.log(sizes[-1] / sizes[-2])
    return {
        "unit": part.unit,
        "sizes": sizes,
        "cpu_s": cpu,
        "wall_s": wall,
        "peak_gb": peak,
        "growth": round(growth, 2),
    }


def _alone(work: Callable, *arguments: object) -> tuple[float, float, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _timed(work: Callable[[Path, int], None], folder: Path, size: int) -> tuple[float, float, float]:
    cpu, wall = _cpu_s(), time.perf_counter()
    work(folder, size)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6
    return (
        round(_cpu_s() - cpu, 3),
        round(time.perf_counter() - wall, 3),
        round(peak, 2),
    )


def _cpu_s() -> float:
    return sum(os.times()[:4])  # with those of processes that were started and have ended


def write_documents(folder: Path, count: int) -> None:
    """Write a stream of `count` documents of 2 to 38 tokens; 0 begins each."""
    lengths = np.random.default_rng(0).integers(2, 2 * TOKENS - 1, count)
    tokens = np.ones(lengths.sum(), np.uint16)
    tokens[np.cumsum(lengths) - lengths] = 0
    np.save(folder / "tokens.npy", tokens)


def pack(folder: Path, _: int) -> None:
    """Pack the documents into rows, by one process."""
    from harness.data.packed_files import _write

    (folder / "packed").mkdir()
    _write(folder / "packed", np.load(folder / "tokens.npy", mmap_mode="r"), 0, SLOTS, workers=1)


def write_packed(folder: Path, documents: int) -> None:
    """Write the files of a packed data set of equal documents."""
    place = folder / f"packed-1-train-{SLOTS - 1}"
    place.mkdir()
    a_row = SLOTS // TOKENS
    rows = documents // a_row
    documents = rows * a_row
    pieces = np.lib.format.open_memmap(place / "pieces.npy", "w+", np.int64, (documents, 2))
    pieces[:, 0], pieces[:, 1] = np.arange(documents) * TOKENS, TOKENS
    np.save(place / "rows.npy", np.arange(rows + 1) * a_row)
    np.save(place / "filled.npy", np.full(rows, a_row * TOKENS))
    (place / "about.json").write_text(json.dumps({"tokens": documents * TOKENS, "documents": documents}))
    np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.uint16, (documents * TOKENS,))


def first_batch(folder: Path, _: int) -> None:
    """Open the rows of a packed data set and take the batch of step 0, as a rank does."""
    from harness.data.dataset import Dataset
    from harness.data.loader import training_rows

    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    about = {"name": "", "digest": "", "vocabulary_size": 1 << 16, "bos": 0, "unigram_nats": 1.0}
    data = Dataset(train=tokens, validation=tokens, token_bytes=np.ones(1), folder=folder, **about)
    training_rows(data, packing="best_fit", seed=0, batch_sequences=64, sequence_length=SLOTS - 1).batch(0)


def order(_: Path, rows: int) -> None:
    """Take the rows of one batch in an epoch; 170,000,000 are 350e9 tokens at a length of 2,048."""
    from harness.data.order import ordered_rows

    ordered_rows(0, 0, rows, np.arange(1024))


def _config(parameters: int):
    """Return a model of about that many parameters: 6 layers of 12 d^2 and two tables of 8,192 tokens."""
    from model.config import ModelConfig

    width = max(round((math.sqrt(16384**2 + 4 * 72 * parameters) - 16384) / 144 / 64), 1) * 64
    layers = {f"{part}_layers": 2 for part in ("prelude", "core", "coda")}
    return ModelConfig(width=width, heads=width // 64, vocabulary_size=8192, sequence_length=256, **layers)


def first_weights(_: Path, parameters: int) -> None:
    """Make a model with its orthogonal first weights."""
    from model.transformer import build_model

    build_model(_config(parameters), seed=0)


def write_checkpoint(folder: Path, parameters: int) -> None:
    """Write a checkpoint of weights alone."""
    from harness.training.checkpoint import Checkpoint
    from harness.training.checkpoint_writer import save
    from model.transformer import build_model

    model = build_model(_config(parameters), seed=None)
    for value in model.parameters():
        value.data.zero_()
    stored = Checkpoint(step=1, model=model.state_dict(), optimizer={}, counters={})
    save(folder / "checkpoints", stored, keep=1)


def load_weights(folder: Path, parameters: int) -> None:
    """Load a checkpoint as `eval` and a resumed run do."""
    from harness.training.checkpoint import load_newest
    from model.transformer import model_from_weights

    stored = load_newest(folder / "checkpoints", weights_only=True)
    model_from_weights(_config(parameters), stored.model)


def write_tables(folder: Path, runs: int) -> None:
    """Write the tables of a collected sweep: runs, and 24 depths of each."""
    from benchmarks.fit import sweep

    for name, table in zip(("runs", "depths"), sweep(runs), strict=True):
        table.to_parquet(folder / f"{name}.parquet")


def fit_runs(folder: Path, _: int) -> None:
    """Fit all laws with 1,000 resamples and held-out predictions."""
    _fit(folder, validation=True)


def fit_runs_alone(folder: Path, _: int) -> None:
    """Fit all laws with 1,000 resamples, without held-out predictions."""
    _fit(folder, validation=False)


def _fit(folder: Path, *, validation: bool) -> None:
    import pandas as pd

    from analysis import FitConfig, fit

    tables = (pd.read_parquet(folder / f"{name}.parquet") for name in ("runs", "depths"))
    fit(*tables, FitConfig(validation=validation))


def write_sweep(folder: Path, runs: int) -> None:
    """Rehearse a sweep in which a fifth of the attempts fail, then add depth curves and running runs."""
    import loopscale
    from benchmarks.sweep import grid, lifelike
    from sweeps.launch.rehearsal import rehearse_with

    lifelike(rehearse_with(loopscale.compose(grid(folder, runs, "cluster=fake")))[0])


def status(folder: Path, _: int) -> None:
    """Show the status of a sweep, a tenth of it running."""
    import loopscale

    loopscale.status([f"root={folder}", f"sweep={SWEEP}"])


def collect(folder: Path, _: int) -> None:
    """Collect the records and depth curves of a sweep for the first time."""
    import loopscale

    loopscale.collect([f"root={folder}", f"sweep={SWEEP}"])


def write_histories(folder: Path, runs: int) -> None:
    """Write 2,000 lines of metrics for every run of a sweep."""
    import loopscale
    from benchmarks.sweep import grid
    from sweeps.launch.rehearsal import rehearse_with
    from sweeps.state.ledger import read_ledger

    sweep = rehearse_with(loopscale.compose(grid(folder, runs, "cluster=fake")))[0]
    lines = "".join(json.dumps({"step": step, "train_loss_nats": 1.0}) + "\n" for step in range(2000))
    for run in list(read_ledger(sweep).runs(sweep))[:runs]:
        run.metrics.write_text(lines)


def sync(folder: Path, _: int) -> None:
    """Make the offline histories of wandb, by one process."""
    import loopscale
    from harness.data import encoding

    encoding.available_cores = lambda: 1
    loopscale.sync([f"root={folder}", f"sweep={SWEEP}"])


PARTS = {
    "packing": Part("documents", (100_000, 1_000_000, 10_000_000), pack, write_documents),
    "start of a rank": Part("documents", (300_000, 3_000_000, 30_000_000), first_batch, write_packed),
    "order of an epoch": Part("rows", (1_600_000, 16_000_000, 170_000_000), order),
    "first weights": Part("parameters", (10_000_000, 30_000_000, 70_000_000), first_weights),
    "loaded weights": Part(
        "parameters", (10_000_000, 30_000_000, 70_000_000), load_weights, write_checkpoint
    ),
    "fit": Part("runs", (100, 300, 1_000), fit_runs, write_tables),
    "fit without held-out predictions": Part("runs", (100, 1_000, 5_000), fit_runs_alone, write_tables),
    "status": Part("runs", (100, 1_000, 10_000), status, write_sweep),
    "collect": Part("runs", (100, 1_000, 10_000), collect, write_sweep),
    "sync": Part("runs of 2,000 lines", (4, 8, 16), sync, write_histories),
}

if __name__ == "__main__":
    main()
