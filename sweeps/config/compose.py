"""Compose Hydra configurations into checked dataclasses; every Hydra error becomes one line."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_type_hints

from harness.run.config import RunConfig
from harness.run.length import LENGTHS
from model.config_validation import ConfigError, build, closest
from sweeps.config.cluster import ClusterConfig, RetryConfig
from sweeps.config.commands import TABLES
from sweeps.config.folders import CONF, SEARCH_PATH, STUDY, choices, searched
from sweeps.config.study import StudyConfig, SweepConfig

# Keys whose value is text, a path or the name of a column: taken as it is written, outside Hydra's grammar.
_TEXT_KEYS = (
    *(
        "prompt",
        "where",
        "columns.*",
        "data",
        "path",
        "sweep.name",
        "data.path",
        "data.tokenizer",
        "root",
        "cache",
        "run",
    ),
    *("checkpoint", "folder", "bundle", "cluster.python", "assume.noise_from"),
)
FLAGS = "--help, --version, --config-dir DIR, --cfg job and, for train, -m"
_PATH_LISTS = ("also", "assume.law")  # keys of one such value, or several between commas
_QUOTED = re.compile(r"[\[{('\"]")  # in a value that is not a plain list
LISTS = {  # keys whose value is always a list, by command
    "eval": ("tasks", "depths", "seeds"),
    "fit": ("envelope",),
    "report": ("envelope",),
    "new": ("budgets_flops", "mean_recurrences"),
}
_STUDY_KEYS = (
    *("root", "cache", "format", "confirm", "quick", "retry_failed", "dry_run", "calibrate", "run", "tasks"),
    *("design", "suggest", "allowance", "assume"),
)


def compose_study(overrides: Sequence[str] | StudyConfig) -> StudyConfig:
    """Return the study that `overrides` describe, with one checked run template per scale.

    A study that is composed already is returned as it is.

    Raises
    ------
    ConfigError : a key or value is unknown, mistyped or contradictory; the message is one line.
    """
    if isinstance(overrides, StudyConfig):
        return overrides
    mapping, chosen = _compose(CONF, STUDY, overrides)
    # Hydra merges a mapping on the command line into the file's; only null removes the file's cells.
    fields = mapping["sweep"] | {"cells": mapping["sweep"].get("cells") or {}}
    sweep = build(SweepConfig, fields, "sweep.")
    cluster = build(ClusterConfig, mapping["cluster"], "cluster.")
    retry = build(RetryConfig, mapping["retry"], "retry.")
    runs = {}
    for scale in sweep.scales or [chosen]:
        fields = mapping
        if scale != chosen or scale in sweep.per_scale:
            own = [f"{key}={value}" for key, value in sweep.per_scale.get(scale, {}).items()]
            if scale != chosen:
                own.insert(0, f"model={scale}")
            rest = [text for text in overrides if scale == chosen or not text.startswith("model=")]
            fields, _ = _compose(CONF, STUDY, [*rest, *own])
        runs[scale] = _run(fields, scale)
    settings = build(StudyConfig, {key: mapping[key] for key in _STUDY_KEYS} | {"runs": {}})
    return dataclasses.replace(settings, runs=runs, sweep=sweep, cluster=cluster, retry=retry)


def _run(mapping: dict[str, Any], scale: str) -> RunConfig:
    known = [item.name for item in dataclasses.fields(RunConfig)]
    others = (*_STUDY_KEYS, "sweep", "cluster", "retry", "path")  # path is a short name for data.path
    fields = {key: value for key, value in mapping.items() if key not in others}
    for key in fields:
        if key not in known:
            raise ConfigError(f"unknown key {key}{_inside(key) or closest(key, [*known, *others])}")
    return build(RunConfig, fields | {"scale": scale})


def _inside(key: str) -> str:
    """Return a hint if a group has a key of this very name, such as sweep.seeds for seeds."""
    parts = {"sweep": SweepConfig, "cluster": ClusterConfig} | get_type_hints(RunConfig)
    named = [
        f"{part}.{key}"
        for part, cls in parts.items()
        if dataclasses.is_dataclass(cls) and key in (item.name for item in dataclasses.fields(cls))
    ]
    return f" (did you mean {' or '.join(named)}?)" if named else ""


def compose_table(command: str, overrides: Any) -> Any:
    """Return the checked settings of a command on finished runs, of the class that `TABLES` names.

    Settings that are composed already are returned as they are.

    Raises
    ------
    ConfigError : a key is unknown, mistyped or not set; the message is one line.
    """
    if isinstance(overrides, TABLES[command]):
        return overrides
    if command == "eval":
        overrides = [text.removeprefix("eval.") for text in overrides]
    overrides = with_lists(overrides, LISTS.get(command, ()))
    mapping, _ = _compose(CONF / "table", command, overrides)
    for key, value in mapping.items():
        if value == "???":
            raise ConfigError(f"{key} is not set: {key}=...")
    return build(TABLES[command], mapping)


def composed_text(settings: str, overrides: Sequence[str]) -> str:
    """Return the composed configuration of a command as YAML; `settings` is its file below conf/."""
    import yaml

    path = CONF / settings
    mapping, _ = _compose(path.parent, path.name, overrides)
    return yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True).rstrip()


def single_run(study: StudyConfig) -> RunConfig:
    """Return the one run of a composed `train` command; raises ConfigError when its length is not set."""
    run = next(iter(study.runs.values()))
    if all(getattr(run, name) is None for name in LENGTHS):
        raise ConfigError(f"how long? set one of {', '.join(LENGTHS)}, e.g. budget_flops=1e11")
    return run


def with_lists(overrides: Sequence[str], keys: Sequence[str] = ()) -> list[str]:
    """Return the overrides with `key=a,b`, and `key=a` of these keys, as Hydra's lists: `key=[a,b]`."""
    out = []
    for text in overrides:
        key, _, value = text.partition("=")
        name = key.lstrip("+")
        literal = _is_text(name) or name in _PATH_LISTS
        plain = not literal and value not in ("", "null") and not _QUOTED.search(value)
        out.append(f"{key}=[{value}]" if plain and (name in keys or "," in value) else text)
    return out


def multirun(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of every run of `train -m`: the product of all `key=a,b` and `key=range(...)`.

    Raises ConfigError, in one line, where Hydra cannot parse an override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    def values(text: str) -> list[str]:
        key, _, value = text.partition("=")
        if _is_text(key.lstrip("+")):
            return [f"{key}={one}" for one in value.split(",")]
        try:
            item = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise ConfigError(f"{text}: {_one_line(str(error))}") from error
        if not item.is_sweep_override():
            return [text]
        return [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()]

    return [list(chosen) for chosen in itertools.product(*map(values, overrides))]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep Python from searching for garbage in tens of thousands of objects that are all kept."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_garbage_collection()
def _compose(folder: Path, name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with (
            searched(overrides, groups=folder == CONF) as (folders, texts),
            initialize_config_dir(version_base="1.3", config_dir=str(folder)),
        ):
            _check(texts, folders)
            config = compose(name, _forced(folders, with_lists(texts)), return_hydra_config=True)
            chosen = str(config.hydra.runtime.choices.get("model", ""))
            OmegaConf.set_struct(config, False)
            config.pop("hydra")
            mapping = OmegaConf.to_container(config, resolve=True)
    except OverrideParseException as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{error.override.lstrip('+')}: {said}; a list is [1,2], text with brackets needs quotes"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(str(error))) from error
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}, chosen


def _forced(folders: Sequence[Path], overrides: Sequence[str]) -> list[str]:
    # Configuration files show only what differs from a default, so Hydra does not know every key. All keys
    # pass here; the dataclasses refuse the unknown ones.
    return [
        text
        if text.startswith("~") or choices(text.partition("=")[0].lstrip("+"), folders)
        else "++" + _quoted(text.lstrip("+"))
        for text in overrides
    ]


def _is_text(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in _TEXT_KEYS)


def _quoted(text: str) -> str:
    """Quote a value that is taken as it is written: brackets and commas have a meaning in Hydra's grammar."""
    key, _, value = text.partition("=")
    if value in ("", "null") and key != "prompt":
        return text
    if key in _PATH_LISTS and not (value[0] == "[" and value[-1] == "]"):
        values = [_literal(one) for one in value.split(",")]
        return f"{key}={values[0]}" if len(values) == 1 and key != "also" else f"{key}=[{','.join(values)}]"
    return f"{key}={_literal(value)}" if _is_text(key) else text


def _literal(value: str) -> str:
    """Return Hydra's quotation of a text; what is quoted already stays."""
    if value[:1] in ("'", '"') and value[-1:] == value[0]:
        return value
    # Backslashes count only before a quote or at the end, where each is written twice.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped).replace("${", "\\${")
    return f"'{escaped}'"


def _check(overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """Refuse what is no override, what Hydra alone would use, and unknown names of groups."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if key in ("-m", "--multirun"):
            raise ConfigError(
                f"{key} works for train; for a sweep write the values as an axis, sweep.axes={{KEY:[1,2]}}, "
                "other commands take one value at a time"
            )
        if key.startswith("-"):
            raise ConfigError(f"{key} is no flag: write key=value; the flags are {FLAGS}")
        if key.lstrip("+~").startswith("hydra."):
            raise ConfigError(
                f"{key} would change nothing: root=FOLDER is where runs go, {SEARCH_PATH} adds files"
            )
        if not equals and not key.startswith("~"):
            raise ConfigError(f"{text!r} is not an override: write key=value, e.g. seed=1")
        group = key.lstrip("+")
        names = choices(group, folders)
        if names and not value.startswith("{") and value not in names:
            _refuse_name(group, value, names, folders, overrides)


def _refuse_name(
    group: str, value: str, names: list[str], folders: Sequence[Path], overrides: Sequence[str]
) -> None:
    root = next((text[5:] for text in overrides if text.startswith("root=")), "runs")
    if group == "sweep" and (Path(root) / value / "sweep.json").exists():
        raise ConfigError(
            f"sweep={value} names no file of conf/sweep: repeat the settings with which "
            f"{root}/{value} was launched, sweep.name={value} among them"
        )
    places = ", ".join(str(folder / group) for folder in folders if (folder / group).is_dir())
    listed = closest(value, names) or f" (choose from {', '.join(names)})"
    raise ConfigError(f"{group}={value} is unknown{listed}; looked in {places}")


def _one_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip() and set(line.strip()) != {"^"}]
    return "; ".join(lines[:2])
