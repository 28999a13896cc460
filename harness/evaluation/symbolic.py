"""Generated symbolic tasks in the bundle's format, which need no download. They are not part of Core.

Every choice task has four distinct options with the gold one at a random position, so chance is 1/4.
`symbolic_copy_exact` has no options, so chance is 0. Imports no torch.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.storage.files import new_folder

VERSION = 1  # of the items, in the name of their folder
ITEMS, SHOTS = 200, 4
BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Fields = dict[str, Any]


def symbolic_bundle(cache: Path) -> Path:
    """Return the folder of the suite under `cache`, generated on first use."""
    folder = cache / f"symbolic-{VERSION}"
    if not folder.exists():
        with new_folder(folder) as partial:
            write_symbolic(partial)
    return folder


def write_symbolic(folder: Path, items: int = ITEMS, seed: int = 0) -> None:
    """Write the suite as a bundle: symbolic.yaml, eval_meta_data.csv and eval_data/symbolic/*.jsonl."""
    data = folder / "eval_data" / "symbolic"
    data.mkdir(parents=True, exist_ok=True)
    entries, rows = [], []
    for label, (make, shots) in TASKS.items():
        draw = random.Random(f"{label} {seed}")
        fields = [make(draw) for _ in range(items)]
        lines = "".join(json.dumps(one) + "\n" for one in fields)
        (data / f"{label}.jsonl").write_text(lines, encoding="utf-8")
        chosen = "choices" in fields[0]
        entries.append(
            {
                "label": label,
                "dataset_uri": f"symbolic/{label}.jsonl",
                "num_fewshot": [shots],
                "icl_task_type": "multiple_choice" if chosen else "language_modeling",
                "continuation_delimiter": "",
            }
        )
        rows.append({"Eval Task": label, "Random baseline": 25 if chosen else 0})
    (folder / "symbolic.yaml").write_text(yaml.safe_dump({"icl_tasks": entries}), encoding="utf-8")
    with (folder / "eval_meta_data.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, ["Eval Task", "Random baseline"])
        writer.writeheader()
        writer.writerows(rows)


def _choice(draw: random.Random, query: str, options: Sequence[str], gold: str) -> Fields:
    shuffled = draw.sample(options, len(options))
    return {"query": query, "choices": shuffled, "gold": shuffled.index(gold)}


def _brackets(draw: random.Random) -> Fields:
    """Close the innermost open bracket."""
    text, depth = "", draw.sample(list(BRACKETS), draw.randint(2, 4))
    for opening in depth:
        inner = draw.choice(list(BRACKETS))
        text += opening + draw.choice(["", inner + BRACKETS[inner]])
    return _choice(draw, text, list(BRACKETS.values()), BRACKETS[depth[-1]])


def _copy(draw: random.Random) -> Fields:
    """Continue the second pass over a sequence of four letters."""
    letters = draw.sample(LETTERS, 4)
    shown = draw.randrange(4)
    return _choice(
        draw, f"{' '.join(letters)} {' '.join(letters[:shown])}".strip() + " ", letters, letters[shown]
    )


def _copy_exact(draw: random.Random) -> Fields:
    """Continue a sequence of one repeated letter."""
    letter = draw.choice(LETTERS)
    return {"context": f"{' '.join(letter * draw.randint(3, 5))}", "continuation": f" {letter}"}


def _operators(draw: random.Random) -> Fields:
    """Apply an operator that the prompt defines."""
    name, add, given = draw.choice("@#$%&"), draw.randint(1, 4), draw.randint(1, 5)
    value = given + add
    options = [str(value + offset) for offset in draw.choice([(-1, 0, 1, 2), (-2, -1, 0, 1), (-1, 0, 1, 3)])]
    return _choice(draw, f"{name}x=x+{add};{name}{given}=", options, str(value))


def _lookup(draw: random.Random) -> Fields:
    """Look up the value of a key."""
    keys, values = draw.sample(LETTERS, 4), draw.sample("0123456789", 4)
    asked = draw.randrange(4)
    pairs = "".join(f"{key}={value};" for key, value in zip(keys, values, strict=True))
    return _choice(draw, f"{pairs}{keys[asked]}=", values, values[asked])


TASKS: dict[str, tuple[Callable[[random.Random], Fields], int]] = {
    "symbolic_brackets": (_brackets, SHOTS),
    "symbolic_copy": (_copy, SHOTS),
    "symbolic_copy_exact": (_copy_exact, SHOTS),
    "symbolic_operators": (_operators, SHOTS),
    "symbolic_lookup": (_lookup, SHOTS),
}
