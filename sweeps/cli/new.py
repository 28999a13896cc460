"""`loopscale new`: a commented sweep file from a few answers, priced and simulated."""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.storage.files import write_text
from model.config_validation import ConfigError
from sweeps.cli.help import Command
from sweeps.cli.new_choices import asked, check_name, listed_choices, one_scale
from sweeps.config.commands import NewConfig
from sweeps.config.compose import compose_study, compose_table
from sweeps.config.folders import NAME
from sweeps.config.next_command import command_line, next_command
from sweeps.config.shell import quote

if TYPE_CHECKING:
    from analysis.design.power import PowerAnalysis
    from sweeps.config.study import StudyConfig
    from sweeps.planning.known_window import Window
    from sweeps.planning.new_grid import Allowance
    from sweeps.planning.new_sweep import Reference
    from sweeps.planning.plan import Plan

FOLDER = Path("conf") / "sweep"
PLACES = ("cluster", "root", "cache")
PUBLISHED = ("looped_140m", "looped_370m")  # scales whose law the paper prints
BRIEF = {"studies": 200, "analysts": 10, "bootstrap": 100}  # a simulation of seconds


def new_sweep(settings: NewConfig) -> tuple[Path, StudyConfig, Plan, Reference]:
    """Write the sweep file that `settings` describe; return it, its study, its plan and the sweep it follows.

    Raises
    ------
    ConfigError : the name is taken, the scale is not given, the allowance is too small for a law, or no cell
        would run; nothing is written.
    """
    from sweeps.planning import new_grid
    from sweeps.planning import new_sweep as new
    from sweeps.planning.plan import plan
    from sweeps.planning.text_needed import lacks_text, sufficient_text

    check_name(settings.sweep)
    scale = one_scale(settings.scale)
    reference = new.closest_reference(scale, new.looped_model(scale))
    with tempfile.TemporaryDirectory() as folder:  # a file that does not compose is not left behind
        trial = functools.partial(_trial, settings, scale, reference, Path(folder))
        recurrences, budgets = _grid(settings, trial, reference)
        text, study = trial(recurrences, budgets)
        planned = plan(study)
        if settings.data is None and settings.path is None and lacks_text(planned.frame):
            longest, vocabulary = planned.frame["tokens"].max(), planned.frame["vocabulary_size"].max()
            if better := sufficient_text(longest, vocabulary):
                text, study = trial(recurrences, budgets, better)
                planned = plan(study)
    if planned.accepted.empty:
        reason = planned.frame.sort_values("target_flops")["reason"].iloc[-1]
        least = new_grid.least_budget(study)
        start = f". Start at {new.flow(least)}" if budgets[-1] < least else ""
        raise ConfigError(
            f"no cell would run at budgets of {budgets[0]:.3g} to {budgets[-1]:.3g} FLOPs: {reason}{start}"
        )
    path = FOLDER / f"{settings.sweep}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path, study, planned, reference


def _trial(
    settings: NewConfig,
    scale: str,
    reference: Reference,
    folder: Path,
    recurrences: list[int],
    budgets: list[float],
    data: str | None = None,
) -> tuple[str, StudyConfig]:
    """Write a sweep file of this grid into `folder`; return its text and its study."""
    from sweeps.planning import new_grid
    from sweeps.planning import new_sweep as new

    text_path = None if settings.path is None else str(Path(settings.path).expanduser().resolve())
    content = new.recipe(scale, new.looped_model(scale), reference, data or settings.data, text_path)
    if settings.cluster != NewConfig.cluster and NAME.fullmatch(settings.cluster):
        content = dataclasses.replace(content, groups=content.groups | {"cluster": settings.cluster})
    cells = new_grid.noise_cells(recurrences, budgets)
    grid = {"mean_recurrences": recurrences, "budgets_flops": budgets, "cells": cells}
    text = new.sweep_text(settings.sweep, _command(settings), content, grid)
    path = folder / f"{settings.sweep}.yaml"
    path.write_text(text, encoding="utf-8")
    places = [f"{key}={getattr(settings, key)}" for key in PLACES]
    study = compose_study([f"sweep={path}", *places])
    return text, dataclasses.replace(study, overrides=_overrides(settings))


def _grid(
    settings: NewConfig, trial: Callable[..., tuple[str, StudyConfig]], reference: Reference
) -> tuple[list[int], list[float]]:
    """Return the recurrences and budgets that are given, else those that an allowance or the scale gives."""
    from sweeps.planning import new_grid
    from sweeps.planning.design import SpeedUnknown
    from sweeps.planning.known_window import known_window

    recurrences = _recurrences(settings, reference)
    if settings.budgets_flops:
        return recurrences, sorted(set(settings.budgets_flops))
    _, study = trial(recurrences, [1.0])
    if settings.allowance is not None:
        try:
            allowance = new_grid.priced_allowance(study, settings.allowance, reference)
        except SpeedUnknown as error:
            raise ConfigError(f"{error}. Once it is timed, write the file: {_command(settings)}") from error
        window = known_window(new_grid.shortest(study), reference)
        vary = settings.mean_recurrences is None
        for _ in range(3):  # runs of other lengths and recurrences may be slower than those that were priced
            grid = new_grid.fitted_grid(allowance, recurrences, study, window, vary=vary)
            excess = new_grid.excess(trial(*grid)[1], settings.allowance)
            if excess <= 1:
                break
            allowance = dataclasses.replace(allowance, flops=0.99 * allowance.flops / excess)
        return grid
    if settings.scale == reference.scale:
        return recurrences, reference.budgets_flops
    return recurrences, new_grid.alike_budgets(study, reference)


def _recurrences(settings: NewConfig, reference: Reference) -> list[int]:
    return sorted(set(settings.mean_recurrences or reference.settings["sweep"]["mean_recurrences"]))


def _overrides(settings: NewConfig) -> list[str]:
    """Return the overrides that choose the written sweep and the places that are not the default ones."""
    places = [key for key in PLACES if getattr(settings, key) != getattr(NewConfig, key)]
    return [f"sweep={settings.sweep}", *(f"{key}={getattr(settings, key)}" for key in places)]


def _command(settings: NewConfig) -> str:
    """Return the command that writes the same file."""
    from sweeps.planning.new_sweep import flow

    words = ["loopscale", "new", "sweep", settings.sweep]
    for item in dataclasses.fields(settings)[1:]:
        value = getattr(settings, item.name)
        if value not in (None, item.default):
            values = value if isinstance(value, list) else [value]
            written = ",".join(one if isinstance(one, str) else flow(one) for one in values)
            words.append(quote(f"{item.name}={written}"))
    return " ".join(words)


def _again(settings: NewConfig, path: Path) -> str:
    """Return the commands that write another file in the place of `path`."""
    return f"rm {quote(str(path))} && {_command(settings)}"


def _new(overrides: list[str]) -> str:
    settings = compose_table("new", overrides)
    if sys.stdin.isatty():
        settings = asked(settings, overrides)
    path, study, planned, reference = new_sweep(settings)
    source = f"as the shipped sweep {reference.name}; the comments in the file say what was carried over"
    return "\n".join(
        [
            f"{path}: {source}",
            planned.summary(),
            *_designed(study, reference),
            *_remarks(settings, path, study, planned, reference),
            next_command("plan", study.overrides),
        ]
    )


def _remarks(
    settings: NewConfig, path: Path, study: StudyConfig, planned: Plan, reference: Reference
) -> list[str]:
    """Return what is wrong with the budgets, each with the command that writes better ones."""
    from sweeps.planning import new_grid
    from sweeps.planning.known_window import known_window

    lines = []
    if short := new_grid.too_short(study, planned):
        sentence, budgets = short
        changed = dataclasses.replace(settings, budgets_flops=budgets, allowance=None)
        lines.append(f"{sentence}: {_again(changed, path)}")
    allowance = new_grid.Allowance(flops=planned.totals()["nominal_flops"])
    if settings.allowance is not None:
        allowance = new_grid.priced_allowance(study, settings.allowance, reference)
        lines += new_grid.unused(study, planned, allowance)
    window = known_window(new_grid.shortest(study), reference)
    return [
        *lines,
        *_outside(settings, path, study, reference, window, allowance),
        *new_grid.other_budgets(study, reference),
    ]


def _outside(
    settings: NewConfig,
    path: Path,
    study: StudyConfig,
    reference: Reference,
    window: Window,
    allowance: Allowance,
) -> list[str]:
    """Return a line on the budgets whose optimum lies outside the grid, and the command that mends them."""
    from sweeps.planning.known_optima import optima_outside
    from sweeps.planning.new_grid import cost

    by_allowance = settings.allowance is not None
    vary = by_allowance and settings.mean_recurrences is None
    missed = optima_outside(study, window, _recurrences(settings, reference), vary=vary)
    if missed is None or missed.better is None:
        return [missed.words] if missed else []
    needed = cost(missed.better)
    changed = dataclasses.replace(
        settings,
        budgets_flops=None if by_allowance else missed.better[1],
        allowance=allowance.value(needed) if by_allowance else None,
    )
    return [f"{missed.words}, for {allowance.words(needed)} in all: {_again(changed, path)}"]


def _designed(study: StudyConfig, reference: Reference) -> list[str]:
    """Return what the grid would resolve under a known law of its scale, or why that is not known."""
    from analysis.tables.schema import TableError
    from sweeps.planning.design import design

    (scale,) = study.runs
    assume: dict[str, Any] = dict(BRIEF)
    options = []
    if scale == reference.scale and reference.study is not None:
        folder = str(reference.study)
        assume |= {"law": f"{folder}/laws.json", "noise_from": folder}
        options = [f"assume.law={folder}/laws.json", f"assume.noise_from={folder}"]
    elif scale not in PUBLISHED:
        return [
            f"design: what this grid would resolve can be simulated once a law of {scale} is known. None is "
            "shipped, so launch it as a pilot; after fit, this simulates the same grid under its law: "
            + command_line("plan", study.overrides, "design=true", f"assume.law={_laws(study)}")
        ]
    study = dataclasses.replace(study, assume=dataclasses.replace(study.assume, **assume))
    more = command_line("plan", study.overrides, "design=true", *options)
    try:
        (result,) = design(study)
    except (ConfigError, TableError) as error:
        return [f"design: {error}"]
    return [
        result.summary(),
        *_reach(result),
        f"this was a brief simulation; the figure and intervals of a full one: {more}",
    ]


def _reach(result: PowerAnalysis) -> list[str]:
    """Return what is wrong with a grid on which most studies end without a law."""
    from analysis.format import percent

    outlooks = result.outlooks
    above, below = (sum(getattr(each, side) for each in outlooks) for side in ("above", "below"))
    if max(above, below) > len(outlooks) / 2:
        return [
            "most minima lie above these recurrences: lower budgets, or mean_recurrences that reach further"
            if above > below
            else "most minima lie below these recurrences: larger budgets bring them inside"
        ]
    if result.without_law > 0.5:
        return [
            f"{percent(result.without_law)} of the studies on this grid would end without a law of µ*: it "
            "needs a larger allowance, more recurrences, or more seeds (sweep.seeds)"
        ]
    return []


def _laws(study: StudyConfig) -> Path:
    return Path(study.root) / str(study.sweep.name) / "laws.json"


COMMANDS = {
    "new": Command(
        run=_new,
        summary="write a commented sweep file for a scale, priced and simulated",
        example="loopscale new sweep NAME scale=looped_30k allowance=2e14; with your own text: "
        "loopscale new sweep NAME scale=looped_5k allowance=0.5h data=text path=my_corpus/",
        settings="table/new",
        positional="sweep",
        more=listed_choices,
    )
}
