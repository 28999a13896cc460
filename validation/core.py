"""Score every item of 12 tasks of Core by the definition and by the fast path, and count what differs.

python validation/core.py [BUNDLE]

The definition is tests/harness/evaluation/reference_core.py: one option at a time, no batch, no shared
prefix. The model is small and untrained but away from its start; its vocabulary of 2,000 tokens is trained on
the bundle. Without BUNDLE, the public one is downloaded. Interrupted, it continues with the next task; after
9 minutes it ends with exit code 75: call it again. Writes docs/validation/core.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.evaluation.bundle import read_items, read_suite
from harness.evaluation.download import public_bundle
from harness.evaluation.prompts import encode, shuffle
from harness.evaluation.results import predictions
from harness.evaluation.scoring import score_options
from harness.storage.files import write_json
from model.depth import counter_seed
from tests.harness import core_data, reference_core

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "validation" / "core.json"
MINUTES, DEPTH, SEED = 9, 2, 0
TASKS = (
    *("bigbench_repeat_copy_logic", "copa", "bigbench_operators", "agi_eval_lsat_ar", "winograd"),
    *("openbook_qa", "lambada_openai", "bigbench_dyck_languages", "arc_challenge", "commonsense_qa"),
    *("winogrande", "bigbench_cs_algorithms"),
)


def compare(bundle: Path, label: str) -> dict[str, Any]:
    """Score all items of one task both ways."""
    model, tokenizer = core_data.model(), core_data.tokenizer()
    definition = core_data.definitions()[label]
    (task,) = read_suite(bundle, label).tasks
    items = shuffle(read_items(bundle, task))
    context = model.config.sequence_length
    encoded = encode(task, items, range(len(items)), tokenizer, bos=core_data.BOS_ID, context=context)
    fast = score_options(model, encoded, [DEPTH], seed=SEED)
    chosen = predictions(fast.nats, fast.exact, fast.tokens)[0]
    data = reference_core.read(bundle / "eval_data" / task.file)
    differ, worst = 0, 0.0
    for index in range(len(items)):
        sums, _, expected = reference_core.score(
            model,
            tokenizer,
            data,
            index,
            definition,
            bos=core_data.BOS_ID,
            depth=DEPTH,
            state_seed=counter_seed("options", SEED),
        )
        differ += int(chosen[index] != expected)
        worst = max(worst, float(np.abs(-fast.nats[0, index, : len(sums)] - sums).max()))
    return {"task": label, "items": len(items), "other_predictions": differ, "worst_difference_nats": worst}


def main() -> int:
    """Continue with the tasks that are not in the result yet."""
    torch.set_num_threads(1)
    bundle = Path(sys.argv[1]) if len(sys.argv) > 1 else core_data.BUNDLE
    if not bundle.exists():
        core_data.BUNDLE = bundle = public_bundle(ROOT / "runs" / ".data")
    rows = json.loads(RESULT.read_text())["tasks"] if RESULT.exists() else []
    until = time.monotonic() + 60 * MINUTES
    for label in TASKS:
        if label in {row["task"] for row in rows}:
            continue
        if time.monotonic() > until:
            return 75
        rows.append(compare(bundle, label))
        print(rows[-1], flush=True)
        about = {"command": "python validation/core.py", "seed": SEED, "depth": DEPTH}
        write_json(RESULT, {**about, "tasks": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
