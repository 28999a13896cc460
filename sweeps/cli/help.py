"""The help texts: the list of commands, the settings of one, and the keys of every configuration group."""

from __future__ import annotations

import dataclasses
import importlib
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.config.folders import CONF, STUDY, choices, user_folders

GROUPS = {  # the class of each group's keys; it is imported when they are shown
    "sweep": "sweeps.config.study.SweepConfig",
    "model": "model.config.ModelConfig",
    "data": "harness.data.dataset.DataConfig",
    "optimizer": "harness.run.config.OptimizerConfig",
    "schedule": "harness.run.config.ScheduleConfig",
    "logger": "harness.run.config.LoggerConfig",
    "cluster": "sweeps.config.cluster.ClusterConfig",
    "retry": "sweeps.config.cluster.RetryConfig",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: the function that runs it and what `--help` shows."""

    run: Callable[[list[str]], str | None]  # takes the overrides and returns the text to print
    summary: str
    example: str
    settings: str = STUDY  # file under conf/ whose keys it takes
    positional: str | None = None  # key that may be written as `KEY VALUE` or `VALUE` at the beginning


def usage(commands: Mapping[str, Command]) -> str:
    """Return the text of `loopscale --help`."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(
        [
            "usage: loopscale COMMAND [key=value | group=name | group=path.yaml | ~key ...] [flags]",
            "",
            "Scaling-law studies of looped language models.",
            "",
            *lines,
            "",
            "Flags of every command:",
            "--help            its settings and an example",
            "--cfg job         the composed configuration",
            "--config-dir DIR  your configuration files; also LOOPSCALE_CONFIG=DIR and ./conf",
            "",
            "loopscale --version prints the version.",
        ]
    )


def command_help(name: str, command: Command) -> str:
    """Return the text of `loopscale COMMAND --help`: an example, the settings, the groups with their keys."""
    text = (CONF / f"{command.settings}.yaml").read_text()
    study = command.settings == STUDY
    body = text[text.index("\nroot:") :] if study else text
    return "\n".join(
        [
            f"loopscale {name}: {command.summary}",
            "",
            f"example: {command.example}",
            "",
            f"settings (key=value), from conf/{command.settings}.yaml:",
            body.strip(),
            *(_groups() if study else []),
        ]
    )


def _groups() -> list[str]:
    """Return every group with its choices, then its keys with their defaults."""
    lines = [
        "",
        "groups (group=name) and their keys (group.key=value), with the defaults that files override:",
    ]
    for group in GROUPS:
        names = ", ".join(choices(group, [*user_folders(), CONF]))
        lines += [
            "",
            *_wrapped(f"{group}=  {names}", "  "),
            *_wrapped(" ".join(_keys(group_class(group), group)), "    "),
        ]
    return lines


def group_class(group: str) -> type:
    """Return the class of a group's keys."""
    module, _, name = GROUPS[group].rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _keys(configuration: Any, prefix: str) -> Iterator[str]:
    """Yield the keys of a configuration, a class or an instance, as they are written on the command line."""
    for item in dataclasses.fields(configuration):
        key = f"{prefix}.{item.name}"
        value = item.default_factory() if callable(item.default_factory) else item.default
        value = value if isinstance(configuration, type) else getattr(configuration, item.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, key)
        else:
            yield f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "..."
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "").replace("'", "")
