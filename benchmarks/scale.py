"""What sizes of real use cost: packing, the start of a rank, loading a model, wandb histories.

python benchmarks/scale.py [--documents 1000000] [--result docs/validation/scale.json]

CPU seconds, so that other work on the machine counts little; memory is the peak of a process of its own.
docs/scale.md says what follows for larger sizes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
TOKENS = 20  # of a document, in the mean; short ones, as the cost is by document
SLOTS = 257


def main() -> None:
    """Measure each part in a process of its own and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--mapped", type=int, default=30_000_000)
    parser.add_argument("--result", type=Path, default=REPOSITORY / "docs" / "validation" / "scale.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = {
            "packing": measured(packing, folder / "packed", arguments.documents),
            "start of a rank": measured(start, folder / "mapped", arguments.mapped),
            "order of 170,000,000 rows": measured(order, 170_000_000),
            "first weights": measured(first_weights),
            "loaded weights": measured(loaded_weights, folder),
            "history of wandb": measured(history, folder / "runs", 2000),
        }
    about = {"command": "python benchmarks/scale.py", "seed": 0}
    arguments.result.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def measured(part: Callable[..., dict], *arguments: object) -> dict:
    """Return what `part` says of itself, with CPU seconds and peak memory of its process."""
    row = _alone(_part, part, arguments)
    print(part.__name__, row, flush=True)
    return row


def _alone(work: Callable, *arguments: object) -> dict:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _part(part: Callable[..., dict], arguments: tuple) -> dict:
    return part(*arguments) | {"peak_gb": _peak_gb()}


def _peak_gb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6, 2)


def _timed(work: Callable[[], object]) -> tuple[object, float]:
    began = time.process_time()
    result = work()
    return result, round(time.process_time() - began, 3)


def _documents(count: int) -> np.ndarray:
    """Return a stream of `count` documents of 2 to 38 tokens; 0 begins each."""
    lengths = np.random.default_rng(0).integers(2, 2 * TOKENS - 1, count)
    tokens = np.ones(lengths.sum(), np.uint16)
    tokens[np.cumsum(lengths) - lengths] = 0
    return tokens


def packing(folder: Path, documents: int) -> dict:
    """Pack a split into files, by one process."""
    from harness.data.packed_files import _write

    tokens = _documents(documents)
    folder.mkdir()
    _, seconds = _timed(lambda: _write(folder, tokens, 0, SLOTS, workers=1))
    return {"documents": documents, "cpu_s": seconds, "us_a_document": round(1e6 * seconds / documents, 2)}


def start(folder: Path, documents: int) -> dict:
    """Open the rows of a packed data set and take a batch of step 0, as a rank does."""
    place = folder / f"packed-1-train-{SLOTS - 1}"
    place.mkdir(parents=True)
    rows = documents // (SLOTS // TOKENS)
    documents = rows * (SLOTS // TOKENS)
    pieces = np.lib.format.open_memmap(place / "pieces.npy", "w+", np.int64, (documents, 2))
    pieces[:, 0], pieces[:, 1] = np.arange(documents) * TOKENS, TOKENS
    np.save(place / "rows.npy", np.arange(rows + 1) * (SLOTS // TOKENS))
    np.save(place / "filled.npy", np.full(rows, SLOTS // TOKENS * TOKENS))
    (place / "about.json").write_text(json.dumps({"tokens": documents * TOKENS, "documents": documents}))
    del pieces
    np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.uint16, (documents * TOKENS,))
    return {"documents": documents, "rows": rows} | _alone(_first_batch, folder)


def _first_batch(folder: Path) -> dict:
    from harness.data.dataset import Dataset
    from harness.data.loader import training_rows

    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    about = {"name": "", "digest": "", "vocabulary_size": 1 << 16, "bos": 0, "unigram_nats": 1.0}
    data = Dataset(train=tokens, validation=tokens, token_bytes=np.ones(1), folder=folder, **about)
    before = _peak_gb()
    how = {"packing": "best_fit", "seed": 0, "batch_sequences": 64, "sequence_length": SLOTS - 1}
    _, seconds = _timed(lambda: training_rows(data, **how).batch(0))
    return {"cpu_s": seconds, "rank_gb": round(_peak_gb() - before, 2)}


def order(rows: int) -> dict:
    """Return the rows of one batch in an epoch of 350e9 tokens at a length of 2,048."""
    from harness.data.order import ordered_rows

    _, seconds = _timed(lambda: ordered_rows(0, 0, rows, np.arange(1024)))
    return {"rows": rows, "cpu_s": seconds}


def _config():
    from model.config import ModelConfig

    return ModelConfig(
        width=768,
        heads=12,
        prelude_layers=2,
        core_layers=2,
        coda_layers=2,
        vocabulary_size=8192,
        sequence_length=256,
    )


def first_weights() -> dict:
    """Make a model with its orthogonal first weights."""
    from model.transformer import build_model

    model, seconds = _timed(lambda: build_model(_config(), seed=0))
    return _per_parameter(model, seconds)


def loaded_weights(folder: Path) -> dict:
    """Load a checkpoint as `eval` and a resumed run do."""
    from harness.training.checkpoint import Checkpoint, load_newest
    from harness.training.checkpoint_writer import save
    from model.transformer import build_model, model_from_weights

    model = build_model(_config(), seed=None)
    for value in model.parameters():
        value.data.zero_()
    save(
        folder / "checkpoints",
        Checkpoint(step=1, model=model.state_dict(), optimizer={}, counters={}),
        keep=1,
    )

    def load():
        stored = load_newest(folder / "checkpoints", weights_only=True)
        return model_from_weights(_config(), stored.model)

    loaded, seconds = _timed(load)
    return _per_parameter(loaded, seconds)


def _per_parameter(model, seconds: float) -> dict:
    parameters = sum(value.numel() for value in model.parameters())
    return {
        "parameters": parameters,
        "cpu_s": seconds,
        "ns_a_parameter": round(1e9 * seconds / parameters, 1),
    }


def history(folder: Path, lines: int) -> dict:
    """Write the metrics of eight runs as offline histories, by one process and by two; wall seconds."""
    import loopscale
    from harness.data import encoding
    from harness.run.folder import RunFolder
    from sweeps.launch.launch import write_ledger
    from tests.conftest import TINY_SWEEP, WORDS
    from tests.fuzz.cases import RUN

    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for number in range(20):
        (corpus / f"{number}.txt").write_text(" ".join(WORDS * 20) + f" {number}")
    own = [
        f"root={folder}",
        f"cache={folder / 'cache'}",
        f"path={corpus}",
        "sweep.tokens=[640,1280,1920,2560]",
    ]
    ledger = write_ledger(loopscale.compose([*RUN, *TINY_SWEEP, "sweep.mean_recurrences=[2]", *own]))
    for name in ledger.run_ids:
        run = RunFolder(folder / "tiny" / name)
        run.ensure_created()
        run.metrics.write_text(
            "".join(json.dumps({"step": s, "train_loss_nats": 1.0}) + "\n" for s in range(lines))
        )
    said = {"runs": len(ledger.run_ids), "lines": lines}
    for workers in (1, 2):
        encoding.available_cores = lambda workers=workers: workers
        for name in ledger.run_ids:
            shutil.rmtree(folder / "tiny" / name / "wandb", ignore_errors=True)
        began = time.perf_counter()
        loopscale.sync(["sweep=tiny", f"root={folder}"])
        said[f"wall_s_with_{workers}"] = round(time.perf_counter() - began, 1)
    return said


if __name__ == "__main__":
    main()
