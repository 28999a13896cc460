"""The arrows between the rooms, and what may not be imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("model", "harness", "sweeps", "analysis")
MAY_IMPORT = {
    "model": {"model"},
    "harness": {"model", "harness"},
    "sweeps": {"model", "harness", "sweeps", "analysis"},
    "analysis": {"analysis"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_run_one_way(room):
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top not in ROOMS or top in MAY_IMPORT[room], f"{path} imports {name}"


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


def test_planning_imports_no_torch(tmp_path):
    code = (
        "import contextlib, io, loopscale\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    loopscale.main(['plan', 'sweep=isoflop_140m', 'cache={tmp_path}'])"
    )
    assert not imported_by(code) & {"torch", "wandb", "scipy", "matplotlib", "submitit"}


def test_analysis_imports_no_torch_hydra_or_pyplot():
    code = "import analysis\nassert 'matplotlib.pyplot' not in sys.modules"
    assert not imported_by(code) & {"torch", "hydra", "omegaconf", "rich", "submitit"}


def test_training_does_not_import_wandb():
    assert "wandb" not in imported_by("import harness.training.job")
