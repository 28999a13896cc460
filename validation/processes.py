"""Train one run with 1, 2 and 4 processes, DDP and FSDP2, two micro-batches: what differs is rounding.

python validation/processes.py [--root runs/validation/processes]

Prints, and writes to docs/validation/processes.json, the largest relative difference of any step's loss and
of the final validation loss from the run of one process, over 50 steps in float32. Runs that are done are not
repeated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loopscale
from harness.data.prepare import prepare
from harness.run.folder import RunFolder, create
from harness.run.length import solve
from harness.run.metrics import read_metrics
from harness.storage.files import write_json
from tests.harness.processes import run_together

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 50
OVERRIDES = [
    "data.packages=[rich,pygments]",
    "data.validation_packages=[click]",
    "data.vocabulary_size=512",
    "model=looped_40k",
    "model.mean_recurrence=4",
    "model.sequence_length=64",
    "training.batch_sequences=16",
    "training.threads=1",
    "training.log_every=1",
    "evaluation.blocks=16",
    "evaluation.max_depth=4",
    f"steps={STEPS}",
]
LIMITS = {"train_loss": 1e-5, "val_loss": 1e-4}


def main() -> None:
    """Run what is missing and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=REPOSITORY / "runs" / "validation" / "processes")
    parser.add_argument("--result", type=Path, default=REPOSITORY / "docs" / "validation" / "processes.json")
    arguments = parser.parse_args()
    cache = arguments.root / "data"
    rows = []
    reference = None
    for world in (1, 2, 4):
        for way in ("ddp", "fsdp"):
            for size in (4, 2):
                more = [f"training.parallel={way}", f"training.micro_batch={size}", f"cache={cache}"]
                folder = _folder(arguments.root / f"{world}_{way}_{size}", more, cache)
                if folder.status().state != "done":
                    run_together(world, [folder.path], cache)
                reference = reference or folder
                rows.append(
                    {"processes": world, "parallel": way, "micro_batch": size, **_apart(reference, folder)}
                )
                print(rows[-1], flush=True)
    worst = {key: max(row[key] for row in rows) for key in LIMITS}
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.result,
        {
            "command": "python validation/processes.py",
            "seed": 0,
            "steps": STEPS,
            "runs": rows,
            "worst": worst,
        },
    )
    print(worst)
    sys.exit(int(any(worst[key] > limit for key, limit in LIMITS.items())))


def _folder(parent: Path, more: list[str], cache: Path) -> RunFolder:
    run = solve(next(iter(loopscale.compose([*OVERRIDES, *more]).runs.values())))
    dataset = prepare(run.data, cache)
    return create(parent, run, data_digest=dataset.digest, unique_tokens=dataset.unique_tokens)


def _apart(reference: RunFolder, folder: RunFolder) -> dict[str, float]:
    """Return the largest relative difference of a step's loss, and that of the validation loss."""
    ours, theirs = (
        [line["train_loss_nats"] for line in read_metrics(run.metrics)] for run in (folder, reference)
    )
    train = max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))
    ends = folder.record()["val_loss_nats"] / reference.record()["val_loss_nats"]
    return {"train_loss": train, "val_loss": abs(ends - 1)}


if __name__ == "__main__":
    main()
