"""The arrows between rooms and sub-packages, and what may not be imported before it is needed."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("model", "harness", "sweeps", "analysis")

# What a room, and within it a sub-package, may import. "" stands for the modules at the room's own root.
ROOM_ARROWS = {
    "model": set(),
    "harness": {"model"},
    "analysis": set(),
    "sweeps": {"model", "harness", "analysis"},
}
_LOW = {"", "tables"}
_ISOFLOP = {*_LOW, "stats", "laws", "isoflop"}
_RESULTS = {*_ISOFLOP, "study", "compare", "published", "design", "pursuit"}
ARROWS = {
    "model": {
        "": {"kernels"},
        "kernels": {""},
        "published": {""},
        "huggingface": {"", "published"},
    },
    "harness": {
        "storage": set(),
        "data": {"storage"},
        "run": {"data", "storage"},
        "distributed": {"storage"},
        "optim": {"run", "distributed", "storage"},
        "training": {"optim", "run", "data", "distributed", "storage"},
        "evaluation": {"training", "optim", "run", "data", "distributed", "storage"},
    },
    "analysis": {
        "": set(),
        "tables": {""},
        "stats": _LOW,
        "laws": {*_LOW, "stats"},
        "isoflop": {*_LOW, "stats", "laws"},
        "study": _ISOFLOP,
        "published": _ISOFLOP,
        "compare": {*_ISOFLOP, "study"},
        "design": {*_ISOFLOP, "compare", "published"},
        "pursuit": {*_ISOFLOP, "compare", "published", "design"},
        "figures": _RESULTS,
        "report": {*_RESULTS, "figures"},
    },
    "sweeps": {
        "config": set(),
        "grid": {"config"},
        "backends": {"config"},
        "state": {"grid", "backends", "config"},
        "planning": {"state", "grid", "backends", "config"},
        "workers": {"state", "grid", "backends", "config"},
        "launch": {"planning", "state", "grid", "backends", "config"},
        "pursuit": {"launch", "planning", "state", "grid", "backends", "config"},
        "cli": {"pursuit", "launch", "planning", "state", "grid", "backends", "config"},
    },
}


def modules() -> dict[str, Path]:
    """Return all modules of the rooms by their dotted names, a package by the name of its folder."""
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the rooms that a file imports, wherever in the file."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports by a relative path"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                targets |= {whole} if whole in known else {node.module} & known.keys()
    return targets


MODULES = modules()
pytestmark = pytest.mark.xdist_group("rooms")  # the graph is made once


@functools.cache
def graph() -> dict[str, set[str]]:
    return {name: imports(path, MODULES) for name, path in MODULES.items()}


def home(name: str) -> tuple[str, str]:
    """Return the room and the sub-package of a module; "" at the root of the room."""
    room, *inner = name.split(".")
    is_package = MODULES[name].name == "__init__.py"
    return room, inner[0] if inner and (len(inner) > 1 or is_package) else ""


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms_and_sub_packages_run_one_way(room):
    wrong = []
    for name, targets in graph().items():
        here, inside = home(name)
        if here != room or name == room:  # a room's own __init__ re-exports what is public
            continue
        for target in targets:
            there, part = home(target)
            if there != here:
                allowed = there in ROOM_ARROWS[here]
            else:
                allowed = part == inside or part in ARROWS[here][inside]
            if not allowed:
                wrong.append(f"{name} imports {target}")
    assert sorted(wrong) == []


def test_no_circle_of_files():
    """A package's `__init__` counts as a file of its own."""
    try:
        order = list(graphlib.TopologicalSorter(graph()).static_order())
    except graphlib.CycleError as error:
        pytest.fail("circle: " + " -> ".join(error.args[1]))
    assert len(order) == len(MODULES)


@pytest.mark.parametrize("room", ROOMS)
def test_every_sub_package_is_named_here_and_holds_more_than_one_file(room):
    folders = {path.parent for path in (ROOT / room).glob("*/*.py")}
    assert {folder.name for folder in folders} == set(ARROWS[room]) - {""}
    for folder in folders:
        assert len([path for path in folder.rglob("*.py") if path.name != "__init__.py"]) > 1, folder


def test_the_tests_mirror_the_rooms():
    for room in ROOMS:
        for folder in (ROOT / "tests" / room).iterdir():
            if folder.is_dir() and any(folder.glob("test_*.py")):
                assert folder.name in ARROWS[room], f"{folder} tests no sub-package of {room}"


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


def test_the_package_imports_neither_torch_nor_transformers():
    assert not imported_by("import loopscale") & {"torch", "transformers", "pandas", "hydra"}


def test_training_does_not_import_wandb():
    assert "wandb" not in imported_by("import harness.training.job")


def test_reading_a_model_does_not_import_the_compiler():
    code = (
        "from model.config import ModelConfig\n"
        "from model.transformer import build_model, model_from_weights\n"
        "config = ModelConfig(width=32, heads=2, prelude_layers=1, core_layers=1, coda_layers=1,"
        " vocabulary_size=64, sequence_length=16)\n"
        "model_from_weights(config, build_model(config, seed=None).state_dict())"
    )
    assert "sympy" not in imported_by(code)  # which torch._dynamo imports
