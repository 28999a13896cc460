"""Run every command on hostile input: settings, models, tokenizers, text, state, tables and bundles, damaged.

python validation/fuzz.py [--inputs 2000] [--workers 2] [--minutes 600] [--root runs/validation/fuzz]

Each input is drawn from its kind and number, and read by one command in a process of its own. It must end in
success or in one line that names the file or setting; within 20 s and 2 GB; with nothing executed and nothing
written outside its folder. What is done is kept under `--root`, so that it continues; the result is
docs/validation/fuzz.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.storage.files import new_folder, write_json
from tests.fuzz.cases import KINDS, make_base, run_case
from tests.fuzz.judge import REFUSED, SUCCESS, imported_ahead
from validation.children import in_children

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    """Judge what is missing and write the summary; exit code 75 asks to be called again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--root", type=Path, default=REPOSITORY / "runs" / "validation" / "fuzz")
    parser.add_argument("--result", type=Path, default=REPOSITORY / "docs" / "validation" / "fuzz.json")
    arguments = parser.parse_args()
    # One thread, as forked processes inherit none of the others; torch reads it when it is imported.
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.dont_write_bytecode = True
    arguments.root.mkdir(parents=True, exist_ok=True)
    base = arguments.root / "base"
    if not base.is_dir():  # made in a process of its own: forked ones inherit none of its threads
        in_children([functools.partial(_make, base)])
    each = -(-arguments.inputs // len(KINDS))
    cases = [(kind, number) for number in range(each) for kind in KINDS]
    ends = time.monotonic() + 60 * arguments.minutes
    imported_ahead()
    in_children(
        [
            functools.partial(_judge, cases[worker :: arguments.workers], worker, base, arguments.root, ends)
            for worker in range(arguments.workers)
        ]
    )
    rows = _done(arguments.root)
    if len(rows) < len(cases):
        sys.exit(75)
    wrong = _summarise(rows, arguments.result, arguments.inputs)
    sys.exit(int(bool(wrong)))


def _make(base: Path) -> None:
    with new_folder(base) as unfinished:
        make_base(unfinished)


def _judge(cases: list[tuple[str, int]], worker: int, base: Path, root: Path, ends: float) -> None:
    done = set(_done(root))
    with (root / f"verdicts-{worker}.jsonl").open("a", encoding="utf-8") as file:
        for kind, number in cases:
            if (kind, number) in done:
                continue
            if time.monotonic() > ends:
                return
            case, verdict = run_case(kind, number, base, (root / f"case-{worker}" / kind.replace(" ", "_")))
            row = {"kind": kind, "number": number, "command": case.command, **vars(verdict)}
            file.write(json.dumps(row) + "\n")
            file.flush()


def _done(root: Path) -> dict[tuple[str, int], dict]:
    lines = [line for path in root.glob("verdicts-*.jsonl") for line in path.read_text().splitlines()]
    return {(row["kind"], row["number"]): row for row in map(json.loads, lines)}


def _summarise(rows: dict, result: Path, inputs: int) -> list:
    kinds = {
        kind: dict(sorted(Counter(row["outcome"] for row in rows.values() if row["kind"] == kind).items()))
        for kind in KINDS
    }
    wrong = [row for row in rows.values() if row["outcome"] not in (SUCCESS, REFUSED)]
    write_json(
        result,
        {
            "command": f"python validation/fuzz.py --inputs {inputs}",
            "seed": "kind and number of each input",
            "inputs": len(rows),
            "kinds": kinds,
            "longest_s": round(max(row["seconds"] for row in rows.values()), 1),
            "largest_gb": round(max(row["gigabytes"] for row in rows.values()), 2),
            "wrong": [
                {"kind": row["kind"], "number": row["number"], "outcome": row["outcome"]} for row in wrong
            ],
        },
    )
    for row in wrong:
        print(row["kind"], row["number"], row["outcome"], row["command"], row["message"], "", sep="\n")
    print(kinds)
    return wrong


if __name__ == "__main__":
    main()
