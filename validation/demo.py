"""Does the demo end in laws, and do they agree over seeds?

python validation/demo.py [folder=DIR] [out=FILE]

The demo's grid is trained with the seeds 0, 1 and 2, about six minutes each on two quiet cores. What is
finished in `folder` is not repeated. The summary is docs/validation/demo.json, or `out`: per seed the optima,
the exponents with their 95 % intervals by all estimators, and looped minus fixed depth at each budget.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)


def summary(folder: Path) -> dict[str, Any]:
    """Return optima, exponents and differences of the collected demo in `folder`."""
    laws = json.loads((folder / "laws.json").read_text(encoding="utf-8"))
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    (group,) = laws["groups"]
    names = ("nats", "low_nats", "high_nats", "verdict")
    return {
        "runs": laws["runs_used"],
        "noise_nats": laws["noise"]["sd_nats"],
        "estimators": {
            estimator["name"]: {
                quantity: {
                    "optima": [optimum["value"] for optimum in estimator["optima"][quantity]],
                    "exponent": [law["exponent"], law["exponent_low"], law["exponent_high"]],
                }
                for quantity, law in estimator["laws"].items()
            }
            for estimator in group["estimators"]
        },
        "looped_minus_fixed": [
            {"budget_flops": row["budget_flops"]} | {name: row["difference"][name] for name in names}
            for row in comparison["rows"]
        ],
    }


def main() -> None:
    """Run the demo with every seed and write the summary."""
    settings = dict(text.split("=", 1) for text in sys.argv[1:])
    folder = Path(settings.get("folder", ROOT / "runs" / "validation" / "demo"))
    seeds = {}
    for seed in SEEDS:
        root = folder / f"seed{seed}"
        command = [sys.executable, "-m", "loopscale", "demo", f"sweep.seeds=[{seed}]", f"root={root}"]
        subprocess.run([*command, f"cache={root / '.data'}"], cwd=ROOT, check=True)
        seeds[str(seed)] = summary(root / "demo")
    result = {"command": "python validation/demo.py", "seeds": seeds}
    out = Path(settings.get("out", ROOT / "docs" / "validation" / "demo.json"))
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
