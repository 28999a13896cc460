"""The reduced form of validation/fuzz.py: three inputs of each kind."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_hostile_inputs_end_in_success_or_in_one_line(tmp_path):
    script, result = ROOT / "validation" / "fuzz.py", tmp_path / "fuzz.json"
    ended = subprocess.run(
        [sys.executable, script, "--inputs=33", "--workers=1", f"--root={tmp_path}", f"--result={result}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    summary = json.loads(result.read_text())
    assert summary["inputs"] == 33 and summary["wrong"] == [], ended.stdout
    assert ended.returncode == 0
    refused = sum(kind.get("refused", 0) for kind in summary["kinds"].values())
    assert 10 <= refused <= 31  # damage is found, and what is sound is used
