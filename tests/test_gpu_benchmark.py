"""The script that measures a GPU, in its tiny form on whatever is here."""

import json
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
SECTIONS = ["device", "attention", "precision", "step", "loop", "kernels", "memory", "resume", "search"]
# Any of these would keep it from a machine that has but torch, numpy, pydantic, safetensors and PyYAML.
FOREIGN = ["hydra", "omegaconf", "submitit", "pandas", "pyarrow", "scipy", "tokenizers", "matplotlib", "rich"]


def test_every_section_ends_in_its_line(tmp_path):
    out = tmp_path / "gpu.jsonl"
    blocked = f"import runpy, sys; sys.modules |= dict.fromkeys({FOREIGN}); sys.argv[:] = sys.argv[1:]; "
    blocked += "runpy.run_path(sys.argv[0], run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", blocked, SCRIPT, "--tiny", "--eager", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert ended.returncode == 0, (ended.stderr, lines)
    assert [line["section"] for line in lines] == SECTIONS
    found = {line["section"]: line for line in lines}
    assert all(row["equal_bits"] for row in found["resume"]["rows"])
    assert found["search"]["largest_difference"] == 0
    for row in found["precision"]["rows"]:
        assert row["loss_error"] < 0.01
        assert max(row["gradient_error"].values()) < 0.02  # rounding to eight bits, some 30 operators deep
    assert ended.stdout.splitlines()[-1].startswith("fastest step: ")


def test_the_page_on_gpus_calls_it_as_it_is():
    page = (SCRIPT.parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python benchmarks/gpu\.py(.*)$", page, re.MULTILINE)
    known = set(re.findall(r'add_argument\("(--\w+)"', SCRIPT.read_text(encoding="utf-8")))
    assert len(commands) == 2 and set(re.findall(r"--\w+", " ".join(commands))) <= known
    assert set(SECTIONS) <= set(re.findall(r"`(\w+)`", page))
