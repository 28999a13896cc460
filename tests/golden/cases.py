"""What the golden tests measure, by the public functions alone; `make.py` writes it, the tests repeat it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import loopscale

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).resolve().parent
OLD = GOLDEN / "old"
SWEEP = "old_sweep"

# One instruction set for torch, oneDNN and MKL on every x86-64 processor, and no compiler for the kernels.
FIXED = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "CXX": "/nonexistent",
    "CUDA_VISIBLE_DEVICES": "",
}
DATA = ["data.validation_fraction=0.2", "data.vocabulary_size=300", "data.tokenizer_sample_bytes=100_000"]
# Heads of 8 channels and 300 tokens suit none of the kernels, so every product is torch's.
TINY = [
    *("model=looped_40k", "model.width=8", "model.heads=1", "model.sequence_length=32"),
    *("model.mean_recurrence=2", "training.batch_sequences=4", "training.threads=1", "training.device=cpu"),
    *("training.log_every=1", "training.keep_checkpoints=1", "evaluation.blocks=8", "evaluation.max_depth=4"),
    *("optimizer.muon_learning_rate=0.02", "optimizer.adamw_learning_rate=0.02"),
]
LOOPED = [*TINY, "tokens=3840"]
CONTROL = [*LOOPED, "model.mean_recurrence=1", "model.depth_sampling=fixed"]
OTHER = [  # what the other two leave at its default
    *(*LOOPED, "seed=1", "optimizer=adamw", "schedule=cosine", "model.injection=linear", "model.heads=2"),
    *("model.width=16", "model.kv_heads=1", "model.mlp=swiglu", "model.depth_sampling=stratified"),
    *("training.packing=blocks", "training.document_mask=true", "training.micro_batch=2"),
]
INTERRUPTED = [
    *(*TINY, "model.mean_recurrence=3", "seed=2", "tokens=25600", "training.max_epochs=4"),
    "training.log_every=10",
]
GRID = [
    *(*TINY, f"sweep.name={SWEEP}", "sweep.mean_recurrences=[2,3,4]", "sweep.budgets_flops=[1e8,2e8]"),
    *("sweep.min_steps=5", "training.log_every=5", "cluster.parallel_runs=1", "confirm=false"),
]
WORDS = [
    f"{a}{b}{c}" for a in ("ka", "lo", "mi", "tu", "se") for b in ("n", "r", "st") for c in ("a", "o", "é")
]
LINE = ("train_loss_nats", "gradient_norm", "learning_rate_factor", "executed_flops")


def texts(documents: int) -> list[str]:
    """Return short documents in which every word depends on the one before."""
    found = []
    for number in range(documents):
        draw = random.Random(number)
        at, words = draw.randrange(len(WORDS)), []
        for _ in range(400):
            at = (at * 7 + draw.randrange(3)) % len(WORDS)
            words.append(WORDS[at])
        found.append(" ".join(words))
    return found


def write_corpora(folder: Path) -> None:
    """Write a folder of 24 text files, `corpus`, and one of two JSONL files, `rows`."""
    for name in ("corpus", "rows"):
        (folder / name).mkdir(parents=True)
    for number, text in enumerate(texts(24)):
        (folder / "corpus" / f"{number:02}.txt").write_text(text, encoding="utf-8")
    for half in range(2):
        rows = [{"body": text, "split": ("train", "val")[n % 5 == 4]} for n, text in enumerate(texts(20))]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows[half::2]]
        (folder / "rows" / f"{half}.jsonl").write_text("".join(lines), encoding="utf-8")


def corpus_data(folder: Path, cache: Path) -> list[str]:
    """Return the overrides of the data set of text files."""
    return [f"cache={cache}", "data=text", f"path={folder / 'corpus'}", *DATA]


def digests(folder: Path, cache: Path) -> dict[str, Any]:
    """Return what preparing three data sets gives: trained tokenizers on text and rows, and one reused."""
    text = corpus_data(folder, cache)
    rows = [f"cache={cache}", "data=text", f"path={folder / 'rows'}", "data.text_field=body", *DATA]
    found = {"text": prepared(text), "rows": prepared(rows)}
    existing = cache / found["text"]["digest"] / "tokenizer.json"
    return found | {"rows, existing tokenizer": prepared([*rows, f"data.tokenizer={existing}"])}


def prepared(overrides: list[str]) -> dict[str, Any]:
    """Return the digest, counts and checksums of a data set, prepared first where it is not."""
    cache = Path(next(text[6:] for text in overrides if text.startswith("cache=")))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        loopscale.main(["data", *overrides])
    digest = re.search(r" ([0-9a-f]{16}): ", said.getvalue())[1]
    index = json.loads((cache / digest / "index.json").read_text())
    kept = ("format_version", "vocabulary_size", "bos", "dtype", "unigram_nats", "tokenizer_sha256", "splits")
    return {"digest": digest, **{key: index[key] for key in kept}}


def planned(sweep: str, data: list[str]) -> dict[str, Any]:
    """Return the runs of a shipped sweep on the golden data, with their trunks, and the FLOPs in all.

    Their epochs are not limited, so that no cell is dropped for want of tokens.
    """
    frame = loopscale.plan([f"sweep={sweep}", *data, "sweep.max_epochs=1e15"])
    assert set(frame["verdict"]) == {"OK"}
    columns = ["run_id", "trunk_id", "trunk_steps", "trajectory", "steps", "n_params_total"]
    rows = [" ".join(map(str, row)) for row in frame[columns].itertuples(index=False)]
    return {"runs": rows, **{name: float(frame[name].sum()) for name in ("nominal_flops", "expected_flops")}}


def segments(sweep: str, data: list[str], root: Path) -> dict[str, Any]:
    """Return the runs and the segments of trunks that a rehearsed launch enters, as status shows them."""
    overrides = [f"sweep={sweep}", *data, "sweep.max_epochs=1e15", "cluster=fake", f"root={root}"]
    with contextlib.redirect_stderr(io.StringIO()):
        frame = loopscale.launch(overrides)
    (folder,) = root.glob("rehearsal-*")
    keys = ("run_id", "trunk_id", "first_step", "steps")
    return {
        "runs": [" ".join(str(row[key]) for key in keys) for _, row in frame.iterrows()],
        "segments": [" ".join(str(row[key]) for key in keys) for row in trunks(folder)],
    }


def trunks(folder: Path) -> list[dict[str, Any]]:
    """Return the segments of trunks of the sweep in `folder`, as status shows them."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        loopscale.main(["status", f"root={folder.parent}", f"sweep={folder.name}", "format=json"])
    return json.loads(said.getvalue())["trunks"]


def train_fixed(commands: list[list[str]], folder: Path = ROOT) -> list[dict[str, Any]]:
    """Train runs one after the other in one process of the fixed instruction set; return their records."""
    code = (
        "import json, sys, loopscale; print(json.dumps(list(map(loopscale.train, json.loads(sys.argv[1])))))"
    )
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | FIXED | {"PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(commands)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def results(run: Path) -> dict[str, Any]:
    """Return the bits of a finished run: checksums of its last checkpoint, and every loss that it wrote."""
    checkpoint = max((run / "checkpoints").glob("step_*"))
    record = json.loads((run / "record.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = json.loads((run / "depth_curve.json").read_text())
    kept = [name for name in record if name.startswith(("val_", "executed", "skipped", "loss_"))]
    return {
        "run_id": record["run_id"],
        "checkpoint": checkpoint.name,
        **{part: tensor_bits(checkpoint / f"{part}.safetensors") for part in ("model", "optimizer")},
        "record": {name: record[name] for name in sorted(kept)},
        "curve": [[row["depth"], row["val_loss_nats"], row["val_loss_se_nats"]] for row in curve],
        "metrics": {name: [line[name] for line in lines] for name in LINE},
        "metrics_keys": sorted(set.union(*(set(line) for line in lines))),
    }


def tensor_bits(path: Path) -> str:
    """Return a checksum of the names, types, shapes and bytes of all tensors in a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(
            f"{name} {tensor.dtype} {tensor.shape} ".encode() + np.ascontiguousarray(tensor).tobytes()
        )
    return digest.hexdigest()[:16]


def old_numbers(folder: Path) -> dict[str, Any]:
    """Return what the code reads in a copy of the old folders: status, tables, losses and text."""
    root, cache = f"root={folder / 'runs'}", f"cache={folder / 'cache'}"
    run = evaluated_run(folder)
    status = loopscale.status([f"sweep={SWEEP}", root])
    runs, depths = loopscale.collect([f"sweep={SWEEP}", root])
    curve = loopscale.evaluate([f"run={run}", cache])
    exported = [f"checkpoint={folder / 'export'}", cache]
    prompt = ["prompt=lona mista", "tokens=24", "depth=3", "temperature=0.8", "seed=1"]
    return {
        "status": rows(status, ("run_id", "trunk_id", "status", "attempts", "first_step", "step", "steps")),
        "segments": sorted(row["run_id"] + " " + row["status"] for row in trunks(folder / "runs" / SWEEP)),
        "runs": json.loads(runs.to_json(orient="records")),
        "depths": json.loads(depths.to_json(orient="records")),
        "curve": [curve.loss_nats, curve.loss_se_nats, curve.bits_per_byte, curve.tokens],
        "export_curve": loopscale.evaluate([*exported, f"data={run}"]).loss_nats,
        "text": loopscale.generate([f"checkpoint={run}", cache, *prompt]),
        "export_text": loopscale.generate([*exported, *prompt]),
    }


def rows(frame: Any, columns: tuple[str, ...]) -> list[str]:
    """Return the columns of a frame as one text per row."""
    return [" ".join(map(str, row)) for row in frame[list(columns)].itertuples(index=False)]


def evaluated_run(folder: Path) -> Path:
    """Return the one run of the old sweep whose checkpoint was kept."""
    (found,) = (folder / "runs" / SWEEP).glob("looped*/checkpoints")
    return found.parent


def interrupted_run(folder: Path) -> Path:
    """Return the run that was stopped half way."""
    (found,) = (folder / "runs" / "single").glob("looped*")
    return found


def same(found: Any, pinned: Any) -> bool:
    """Return True if two JSON values agree, numbers to five digits: last digits depend on the processor."""
    if isinstance(pinned, dict):
        return found.keys() == pinned.keys() and all(same(found[key], pinned[key]) for key in pinned)
    if isinstance(pinned, list):
        return len(found) == len(pinned) and all(itertools.starmap(same, zip(found, pinned, strict=True)))
    if isinstance(pinned, float):
        return bool(math.isclose(found, pinned, rel_tol=1e-5, abs_tol=1e-9))
    if isinstance(pinned, str):  # a fit's note: the gradient where it ended is all rounding
        return re.sub(r"gradient \S+", "", found) == re.sub(r"gradient \S+", "", pinned)
    return bool(found == pinned)
