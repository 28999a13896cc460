"""`loopscale new`: a commented sweep file from a few answers, priced and simulated."""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.storage.files import write_text
from model.config_validation import ConfigError
from sweeps.cli.help import Command, described, wrapped
from sweeps.config.commands import NewConfig
from sweeps.config.compose import compose_study, compose_table
from sweeps.config.folders import CONF, NAME, choices, find, user_folders
from sweeps.config.shell import quote

if TYPE_CHECKING:
    from sweeps.config.study import StudyConfig
    from sweeps.planning.new_sweep import Reference
    from sweeps.planning.plan import Plan

FOLDER = Path("conf") / "sweep"
BRIEF = {"studies": 200, "analysts": 10, "bootstrap": 100}  # a simulation of seconds


def new_sweep(settings: NewConfig) -> tuple[Path, StudyConfig, Plan, Reference]:
    """Write the sweep file that `settings` describe; return it, its study, its plan and the sweep it follows.

    Raises
    ------
    ConfigError : the name is taken, the scale or the budgets are not given, or no cell would run; nothing is
        written.
    """
    from sweeps.planning import new_sweep as new
    from sweeps.planning.plan import plan

    _check_name(settings.sweep)
    scale = _required(settings.scale, "scale", "a file of conf/model, e.g. looped_30k")
    model = new.looped_model(scale)
    reference = new.closest_reference(scale, model)
    text_path = None if settings.path is None else str(Path(settings.path).expanduser().resolve())
    content = new.recipe(scale, model, reference, settings.data, text_path)
    recurrences = sorted(set(settings.mean_recurrences or reference.settings["sweep"]["mean_recurrences"]))

    def composed(budgets: list[float], folder: Path) -> tuple[str, StudyConfig]:
        cells = new.noise_cells(recurrences, budgets)
        grid = {"mean_recurrences": recurrences, "budgets_flops": budgets, "cells": cells}
        text = new.sweep_text(settings.sweep, _command(settings), content, grid)
        path = folder / f"{settings.sweep}.yaml"
        path.write_text(text, encoding="utf-8")
        places = [f"cluster={settings.cluster}", f"root={settings.root}", f"cache={settings.cache}"]
        return text, compose_study([f"sweep={path}", *places])

    with tempfile.TemporaryDirectory() as trial:  # a file that does not compose is not left behind
        if settings.allowance is not None:
            _, study = composed([1.0], Path(trial))
            flops = new.allowance_in_flops(study, settings.allowance)
            budgets = new.ladder(flops, recurrences)
        elif settings.budgets_flops:
            budgets = sorted(set(settings.budgets_flops))
        elif scale == reference.scale:
            budgets = reference.budgets_flops
        else:
            raise ConfigError(
                f"no shipped sweep has budgets for {scale}: give budgets_flops=1e12,2e12,... or "
                "allowance=..., FLOPs or device-hours as 20h"
            )
        text, study = composed(budgets, Path(trial))
    planned = plan(study)
    if planned.accepted.empty:
        longest = planned.frame.sort_values("target_flops")["reason"].iloc[-1]
        raise ConfigError(
            f"no cell would run at budgets of {budgets[0]:.3g} to {budgets[-1]:.3g} FLOPs: {longest}"
        )
    path = FOLDER / f"{settings.sweep}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path, study, planned, reference


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(f"sweep={name}: name it with letters, digits, '_', '-' and '.' alone")
    if (taken := find("sweep", name)) is not None:
        raise ConfigError(f"sweep={name}: {taken} exists already; choose another name, or edit that file")


def _required(value: str | None, key: str, meaning: str) -> str:
    if value is None:
        raise ConfigError(f"{key} is not set: {key}=..., {meaning}")
    return value


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


def _new(overrides: list[str]) -> str:
    from sweeps.planning import new_sweep as new

    settings = compose_table("new", overrides)
    if sys.stdin.isatty():
        settings = _asked(settings, overrides)
    path, study, planned, reference = new_sweep(settings)
    places = [
        f"{key}={getattr(settings, key)}"
        for key in ("cluster", "root", "cache")
        if getattr(settings, key) != getattr(NewConfig, key)
    ]
    following = " ".join(["loopscale launch", f"sweep={settings.sweep}", *map(quote, places)])
    source = f"as the shipped sweep {reference.name}; the comments in the file say what was carried over"
    return "\n".join(
        [
            f"{path}: {source}",
            planned.summary(),
            *new.too_short(study, planned),
            *_designed(study, reference),
            *new.other_budgets(study, reference),
            f"next: {following}",
        ]
    )


def _designed(study: StudyConfig, reference: Reference) -> list[str]:
    """Return what the grid would resolve under a known law of its scale, or why that is not known."""
    from analysis.tables.schema import TableError
    from sweeps.planning.design import design

    (scale,) = study.runs
    assume: dict[str, Any] = dict(BRIEF)
    option = ""
    if scale == reference.scale and reference.study is not None:
        folder = str(reference.study)
        assume |= {"law": f"{folder}/laws.json", "noise_from": folder}
        option = f" assume.law={folder}/laws.json assume.noise_from={folder}"
    study = dataclasses.replace(study, assume=dataclasses.replace(study.assume, **assume))
    more = f"loopscale plan sweep={study.sweep.name} design=true{option}"
    try:
        (result,) = design(study)
    except (ConfigError, TableError) as error:
        return [f"design: {error}"]
    return [
        result.summary(),
        f"this was a brief simulation; {more} has the figure and intervals of a full one",
    ]


def _asked(settings: NewConfig, overrides: Sequence[str]) -> NewConfig:
    """Return the settings with answers to what is not given; an empty answer is the default."""
    answers: list[str] = []
    folders = [*user_folders(), CONF]

    def ask(question: str) -> str:
        print(f"{question}: ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().replace(" ", "")

    if settings.scale is None:
        answers.append("scale=" + ask(f"scale ({', '.join(_scales())}; new --help describes them)"))
    if settings.data is None and settings.path is None:
        profiles = choices("data", folders)
        question = f"text: a file or folder of yours, or one of {', '.join(profiles)} (empty: as shipped)"
        if given := ask(question):
            answers += [f"data={given}"] if given in profiles else ["data=text", f"path={given}"]
    if settings.budgets_flops is None and settings.allowance is None:
        given = ask(
            "FLOP budgets, as 1e12,2e12,4e12; or one allowance for all runs, FLOPs as 1e14 or device-hours "
            "as 20h (empty: the budgets of the shipped sweep of that scale)"
        )
        if given:
            answers.append(f"{'budgets_flops' if ',' in given else 'allowance'}={given}")
    if settings.mean_recurrences is None and (given := ask("mean recurrences µ (empty: 2,4,6,8,10,12)")):
        answers.append(f"mean_recurrences={given}")
    return compose_table("new", [*overrides, *answers])


def _scales() -> dict[str, str]:
    """Return the names of the looped models with what each is, the smallest first."""
    models = {name: text for name, text in described("model").items() if not name.startswith("transformer")}

    def size(name: str) -> float:
        number = re.search(r"_(\d+)([km])$", name)
        return int(number[1]) * {"k": 1e3, "m": 1e6}[number[2]] if number else 0.0

    return {name: models[name] for name in sorted(models, key=size)}


def _choices() -> list[str]:
    """Return the lines of the help on what can be chosen."""
    lines: list[str] = []
    for key, named in (("scale", _scales()), ("data", described("data")), ("cluster", described("cluster"))):
        lines += ["", f"{key}=, yours included (conf/, LOOPSCALE_CONFIG, --config-dir):"]
        width = max(map(len, named))
        for name, text in named.items():
            lines += wrapped(f"{name:<{width}}  {text}", "  ", " " * (width + 4))
    return lines


COMMANDS = {
    "new": Command(
        run=_new,
        summary="write a commented sweep file for a scale, priced and simulated",
        example="loopscale new sweep NAME scale=looped_30k allowance=2e14",
        settings="table/new",
        positional="sweep",
        more=_choices,
    )
}
