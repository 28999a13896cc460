"""The help texts: the list of commands, the settings of one, and the keys of every configuration group."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.data.dataset import DataConfig
from harness.run.config import LoggerConfig, OptimizerConfig, ScheduleConfig
from model.config import ModelConfig
from sweeps.config.cluster import ClusterConfig, RetryConfig
from sweeps.config.compose import STUDY
from sweeps.config.folders import CONF, choices, user_folders
from sweeps.config.study import SweepConfig

GROUPS = {
    "model": ModelConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "logger": LoggerConfig,
    "sweep": SweepConfig,
    "cluster": ClusterConfig,
    "retry": RetryConfig,
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: the function that runs it and what `--help` shows."""

    run: Callable[[list[str]], str | None]  # takes the overrides and returns the text to print
    summary: str
    example: str
    settings: str = STUDY  # file under conf/ whose keys it takes


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
    for group, cls in GROUPS.items():
        names = ", ".join(choices(group, [*user_folders(), CONF]))
        lines += ["", *_wrapped(f"{group}=  {names}", "  "), *_wrapped(" ".join(_keys(cls, group)), "    ")]
    return lines


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
