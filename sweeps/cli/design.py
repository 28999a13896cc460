"""What `plan` prints and writes of designs and suggestions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from analysis import serialize
from analysis.config import Progress
from analysis.design.power import Resolution
from model.config_validation import ConfigError
from sweeps.cli.progress import stage_progress
from sweeps.cli.tables import DESIGN_COLUMNS, as_text
from sweeps.config.compose import CONF
from sweeps.config.study import StudyConfig
from sweeps.planning.design import design, write_design
from sweeps.planning.design_files import GRID, added_cells, write_sweep
from sweeps.planning.design_search import search
from sweeps.planning.suggest import suggest


def show(study: StudyConfig, overrides: Sequence[str]) -> str:
    """Carry out `design` or `suggest` with a progress bar; write its files and return what to print.

    Raises ConfigError where both are asked for.
    """
    if study.design and study.suggest:
        raise ConfigError("design and suggest are two questions: ask for one of them")
    with stage_progress() as progress:
        if study.suggest:
            return _show_suggestion(study, overrides, progress)
        if study.design == "search":
            return _show_search(study, overrides, progress)
        return _show_design(study, progress)


def _show_design(study: StudyConfig, progress: Progress) -> str:
    results = design(study, progress)
    folder = write_design(results, _folder(study))
    if study.format == "json":
        return serialize.to_json({"results": results, "folder": str(folder)})
    return "\n".join(
        [*(_text(result) for result in results), f"{folder}: design.json, design.pdf, design.png"]
    )


def _show_search(study: StudyConfig, overrides: Sequence[str], progress: Progress) -> str:
    found = search(study, progress)
    lines = found.summary().splitlines()
    kept = lines[:1] if found.keeps_minima_inside else [lines[0], lines[-1]]
    head = [f"Found by loopscale plan {' '.join(overrides)}:", *kept]
    path = write_sweep(found.sweep, _parent(overrides), "design", CONF / "sweep", head, rename=True)
    launch = _launch(path, overrides)
    folder = write_design((found.planned[0], found.found[0]), _folder(study), "search", ("planned", "found"))
    if study.format == "json":
        return serialize.to_json({"search": found, "file": str(path), "launch": launch})
    told = [*(_text(result) for result in found.found), found.summary()]
    return "\n".join([*told, f"{folder}: search.json, search.pdf, search.png", f"{path}: {launch}"])


def _show_suggestion(study: StudyConfig, overrides: Sequence[str], progress: Progress) -> str:
    found = suggest(study, progress)
    if not found.cells:
        raise ConfigError(
            f"no run within {found.allowance_flops:.3g} FLOPs would narrow the interval: raise allowance"
        )
    head = [f"Suggested by loopscale plan {' '.join(overrides)}:", *found.summary().splitlines()[:1]]
    sweep = added_cells(study.sweep, found.cells)
    path = write_sweep(sweep, _parent(overrides), "next", CONF / "sweep", head, rename=False)
    launch = _launch(path, overrides)
    if study.format == "json":
        return json.dumps(
            serialize.to_jsonable({"suggestion": found, "file": str(path), "launch": launch}), indent=2
        )
    return "\n".join([found.summary(), f"{path}: {launch}"])


def _folder(study: StudyConfig) -> Path:
    return Path(study.root) / str(study.sweep.name) / "design"


def _text(result: Resolution) -> str:
    return f"{result.summary()}\n{as_text(result.frame(), DESIGN_COLUMNS)}"


def _parent(overrides: Sequence[str]) -> str | None:
    named = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith("sweep=")]
    return named[-1] if named else None


def _launch(path: Path, overrides: Sequence[str]) -> str:
    """Return the command that launches a written sweep, with what else was given on the command line."""
    of_file = (f"sweep.{name}" for name in GRID)
    asked = ("sweep=", "design=", "suggest=", "allowance=", "assume.", "format=", *of_file)
    kept = [text for text in overrides if not text.lstrip("+").startswith(asked)]
    return " ".join(["loopscale launch", f"sweep={path.stem}", *kept])
