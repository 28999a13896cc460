"""The help texts: the list of commands, the settings of one, and the keys of every configuration group."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.config.folders import CONF, STUDY, choices, user_folders
from sweeps.config.shell import quote

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
PROFILE_KEYS = {  # of conf/cluster/NAME.yaml, which explains them
    "local": ("parallel_runs", "threads_per_run"),
    "slurm": tuple(
        f"resources.{name}" for name in ("partition", "account", "time_min", "gpus_per_node", "runs_per_job")
    ),
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: the function that runs it and what `--help` shows."""

    run: Callable[[list[str]], str | None]  # takes the overrides and returns the text to print
    summary: str
    example: str
    settings: str = STUDY  # file under conf/ whose keys it takes
    positional: str | None = None  # key that may be written as `KEY VALUE` or `VALUE` at the beginning
    more: Callable[[], list[str]] | None = None  # further lines of the help


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
            "A study is new, plan, launch, status, collect, fit, compare, report, each of which ends with",
            "the next command: begin with loopscale new --help. launch runs data where that was not done.",
            "",
            "Flags of every command:",
            "--help            its settings and an example; --help all: every key",
            "--cfg job         the composed configuration",
            "--config-dir DIR  your configuration files; also LOOPSCALE_CONFIG=DIR and ./conf",
            "",
            "loopscale --version prints the version.",
        ]
    )


def command_help(name: str, command: Command, *, whole: bool = False) -> str:
    """Return the text of `loopscale COMMAND --help`: an example and the settings.

    Commands on a study also have groups: first the keys of the sweep, then its settings, then the other
    groups with their choices; if `whole`, with their keys.
    """
    text = (CONF / f"{command.settings}.yaml").read_text(encoding="utf-8")
    head = [f"loopscale {name}: {command.summary}", "", f"example: {command.example}", ""]
    settings = f"settings (key=value), from conf/{command.settings}.yaml:"
    if command.settings != STUDY:
        return "\n".join([*head, settings, text.strip(), *(command.more() if command.more else [])])
    text = text[text.index("\nroot:") :]
    sweep, *groups = GROUPS
    keys = (CONF / "sweep" / "none.yaml").read_text(encoding="utf-8").splitlines()[2:]
    lines = [*head, "the sweep, a file or its name, and its keys (sweep.key=value), which the file sets:"]
    lines += [*_group(sweep, keys=False), *keys]
    lines += ["", settings, (text if whole else text[: text.index("\ntraining:")]).strip(), ""]
    lines.append("groups (group=name)" + (" and their keys (group.key=value):" if whole else ":"))
    for group in groups:
        lines += _group(group, keys=whole)
    if not whole:
        lines += command.more() if command.more else []
        lines += [
            "",
            f"loopscale {name} --help all adds training, guardrails, evaluation, assume and the groups' keys",
        ]
    return "\n".join(lines)


def profile_keys() -> list[str]:
    """Return the lines of the help on the keys of a cluster profile that most users set, and on one's own."""
    lines = ["", "keys of a profile that most users set, for launch and plan, or in a profile of yours:"]
    for profile, keys in PROFILE_KEYS.items():
        written = (CONF / "cluster" / f"{profile}.yaml").read_text(encoding="utf-8").splitlines()
        for key in keys:
            name = key.rpartition(".")[2]
            line = next(line for line in written if line.strip().startswith(f"{name}:"))
            value, _, comment = line.strip().removeprefix(f"{name}:").partition("#")
            lines.append(f"  {f'cluster.{key}={value.strip()}':<38} # {profile}: {comment.strip()}")
    return [*lines, f"a profile of yours: {copy_command('slurm')}; take it with cluster=mine"]


def copy_command(profile: str) -> str:
    """Return the command that copies a shipped cluster profile to where it may be changed."""
    source = quote(str(CONF / "cluster" / f"{profile}.yaml"))
    return f"mkdir -p conf/cluster && cp {source} conf/cluster/mine.yaml"


def _group(group: str, *, keys: bool) -> list[str]:
    """Return the choices of a group and its keys with their defaults."""
    names = ", ".join(choices(group, [*user_folders(), CONF]))
    lines = wrapped(f"{group}=  {names}", "  ")
    return [*lines, *wrapped(" ".join(_keys(group_class(group), group)), "    ")] if keys else lines


def group_class(group: str) -> type:
    """Return the class of a group's keys."""
    module, _, name = GROUPS[group].rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def described(group: str) -> dict[str, str]:
    """Return the names of a group's files with the comment at the head of each, the user's files first."""
    found: dict[str, str] = {}
    for folder in [*user_folders(), CONF]:
        for path in sorted((folder / group).glob("*.yaml")):
            lines = path.read_text(encoding="utf-8").splitlines()
            head = itertools.takewhile(lambda line: line.startswith("#"), lines)
            text = " ".join(line.lstrip("# ").strip() for line in head)
            found.setdefault(path.stem, text.removeprefix("scale: "))
    return found


def wrapped(text: str, indent: str, further: str | None = None) -> list[str]:
    """Return the lines of a text at most 100 characters wide; `further` indents those after the first."""
    further = indent if further is None else further
    return textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=further, break_on_hyphens=False)


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
