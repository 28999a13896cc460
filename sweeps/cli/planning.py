"""`loopscale plan`: the plan of a sweep, what its design would resolve, and the runs to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from model.config_validation import ConfigError
from sweeps.cli.help import Command
from sweeps.cli.tables import as_json, as_text
from sweeps.config.folders import find
from sweeps.config.next_command import command_line, next_command
from sweeps.config.study import StudyConfig
from sweeps.state.profile import study_of

if TYPE_CHECKING:
    from analysis.config import Progress
    from analysis.design.power import PowerAnalysis
    from sweeps.planning.plan import Plan

PLAN_COLUMNS = {
    "verdict": "",
    "scale": "",
    "kind": "",
    "mean_recurrence": "µ",
    "seed": "",
    "target_flops": "target FLOPs",
    "nominal_flops": "nominal FLOPs",
    "steps": "",
    "tokens": "",
    "epochs": "",
    "memory_bytes": "memory",
    "devices": "",
    "hours": "device-hours",
    "trunk_steps": "shared steps",
    "status": "",
    "reason": "",
}
DESIGN_COLUMNS = {
    "budget_flops": "budget FLOPs",
    "runs": "",
    "true": "true µ*",
    "low": "2.5 % of µ*",
    "high": "97.5 %",
    "below": "below grid",
    "above": "above",
    "without": "no minimum",
    "power": "",
    "power_known": "power, noise known",
}


def _plan(overrides: list[str]) -> str:
    study = study_of(overrides)
    if study.allowance is not None and study.design != "search" and not study.suggest:
        raise ConfigError("allowance is for design=search and suggest=N: add one of them or leave it out")
    if study.design and study.suggest:
        raise ConfigError("design and suggest cannot be combined: set one of them")
    if study.design or study.suggest:
        from sweeps.cli.progress import stage_progress

        with stage_progress() as progress:
            if study.suggest:
                return _suggest(study, overrides, progress)
            if study.design == "search":
                return _search(study, overrides, progress)
            return _design(study, overrides, progress)
    if study.calibrate:
        from sweeps.cli.progress import watch
        from sweeps.launch.calibrate import calibrate

        calibrate(study, watch)
    from sweeps.planning.plan import plan

    planned = plan(study)
    return _plan_json(planned) if study.format == "json" else _plan_text(study, planned, overrides)


def _plan_text(study: StudyConfig, plan: Plan, overrides: Sequence[str]) -> str:
    axes = {key: key.rpartition(".")[2] for key in plan.axes}
    lines = [as_text(plan.frame, axes | PLAN_COLUMNS), plan.summary()]
    if not plan.accepted.empty:
        lines += _outside(study, overrides)
        following = "collect" if plan.is_done else "data" if plan.lacks_text else "launch"
        lines.append(next_command(following, overrides))
    return "\n".join(lines)


def _outside(study: StudyConfig, overrides: Sequence[str]) -> list[str]:
    """Return a line on the budgets with their optimum outside the grid, and the command of better ones."""
    from sweeps.planning.known_optima import on_budgets, optima_outside, shipped_window

    missed = optima_outside(study, shipped_window(study))
    if missed is None or missed.better is None:
        return [missed.words] if missed else []
    other = command_line("plan", overrides, *on_budgets(study.sweep, missed.better[1]))
    return [f"{missed.words}: {other}"]


def _plan_json(plan: Plan) -> str:
    trunks = {} if plan.trunks is None else asdict(plan.trunks)
    return as_json(plan.frame, totals=plan.totals(), notes=plan.notes, price=plan.hours_source, trunks=trunks)


def _design(study: StudyConfig, overrides: Sequence[str], progress: Progress) -> str:
    """Simulate the planned grid, write design.json and its figure, and return the text."""
    from analysis import serialize
    from sweeps.planning.design import design, write_design

    results = design(study, progress)
    folder = write_design(results, _folder(study))
    if study.format == "json":
        return serialize.to_json({"results": results, "folder": str(folder)})
    written = f"{folder}: design.json, design.pdf, design.png"
    return "\n".join([*map(_resolution_text, results), written, next_command("launch", overrides)])


def _search(study: StudyConfig, overrides: Sequence[str], progress: Progress) -> str:
    """Search for a grid, write it as a sweep with search.json and its figure, and return the text."""
    from analysis import serialize
    from sweeps.planning.design import write_design
    from sweeps.planning.design_files import write_sweep
    from sweeps.planning.design_search import search

    result = search(study, progress)
    lines = result.summary().splitlines()
    kept = lines[:1] if result.keeps_minima_inside else [lines[0], lines[-1]]
    head = [f"Found by loopscale plan {' '.join(overrides)}:", *kept]
    path = write_sweep(result.sweep, _parent(overrides), "design", head, rename=True)
    launch = _launch_command(path, overrides)
    best = (result.planned[0], result.searched[0])
    folder = write_design(best, _folder(study), "search", ("planned", "found"))
    if study.format == "json":
        return serialize.to_json({"search": result, "file": str(path), "launch": launch})
    files = [f"{folder}: search.json, search.pdf, search.png", f"written: {path}", f"next: {launch}"]
    return "\n".join([*map(_resolution_text, result.searched), result.summary(), *files])


def _suggest(study: StudyConfig, overrides: Sequence[str], progress: Progress) -> str:
    """Choose the next runs, write them as a sweep, and return the text."""
    from analysis import serialize
    from sweeps.planning.design_files import added_cells, write_sweep
    from sweeps.planning.suggest import suggest

    suggestion = suggest(study, progress)
    if not suggestion.cells:
        raise ConfigError(
            f"no run within {suggestion.allowance_flops:.3g} FLOPs would narrow the interval: raise allowance"
        )
    head = [f"Suggested by loopscale plan {' '.join(overrides)}:", *suggestion.summary().splitlines()[:1]]
    sweep = added_cells(study.sweep, suggestion.cells)
    path = write_sweep(sweep, _parent(overrides), "next", head, rename=False)
    launch = _launch_command(path, overrides)
    if study.format == "json":
        return serialize.to_json({"suggestion": suggestion, "file": str(path), "launch": launch})
    return "\n".join([suggestion.summary(), f"written: {path}", f"next: {launch}"])


def _folder(study: StudyConfig) -> Path:
    return Path(study.root) / str(study.sweep.name) / "design"


def _resolution_text(result: PowerAnalysis) -> str:
    return f"{result.summary()}\n{as_text(result.frame(), DESIGN_COLUMNS)}"


def _parent(overrides: Sequence[str]) -> Path | None:
    """Return the file of the sweep that the command line names."""
    names = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith("sweep=")]
    return find("sweep", names[-1], overrides) if names else None


def _launch_command(path: Path, overrides: Sequence[str]) -> str:
    """Return the command that launches a written sweep, with the other overrides of this command line."""
    from sweeps.planning.design_files import GRID

    grid = tuple(f"sweep.{name}" for name in GRID)
    kept = [text for text in overrides if not text.lstrip("+").startswith(grid)]
    named = find("sweep", path.stem, overrides)
    sweep = path.stem if named is not None and named.samefile(path) else str(path)
    return command_line("launch", kept, f"sweep={sweep}")


COMMANDS = {
    "plan": Command(
        run=_plan,
        summary="solve a grid and estimate its cost; writes only for design=, suggest= and calibrate=",
        example="loopscale plan sweep=isoflop_140m accounting=released",
    )
}
