"""Compose Hydra configurations into checked dataclasses; every Hydra error becomes one line."""

from __future__ import annotations

import dataclasses
import difflib
import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from harness.run.config import RunConfig
from harness.run.length import LENGTHS
from model.config_validation import ConfigError, build, check_name, closest, keys_named
from sweeps.config.cluster import ClusterConfig, RetryConfig
from sweeps.config.commands import TABLES
from sweeps.config.folders import (
    CONF,
    SEARCH_PATH,
    STUDY,
    SUFFIXES,
    check_files,
    choices,
    empty_file,
    file_that_sets,
    searched,
)
from sweeps.config.numerics import Device, device_of, resolve
from sweeps.config.overrides import check_overrides, check_path, forced, one_line, refuse_name, with_lists
from sweeps.config.study import StudyConfig, SweepConfig

LISTS = {  # keys whose value is always a list, by command
    "eval": ("tasks", "depths", "seeds", "kv_budget", "thresholds"),
    "serve_cost": ("depths", "batches", "prompts"),
    "fit": ("envelope",),
    "report": ("envelope",),
    "new": ("budgets_flops", "mean_recurrences"),
}
POSITIONAL = {"new": "sweep NAME", "completion": "SHELL"}  # what a command cannot do without
_GROUPS = ("sweep", "cluster", "retry", *(item.name for item in dataclasses.fields(RunConfig)))
PROFILE = re.compile(r"[+~]{0,2}cluster[.@=]")  # overrides that choose or change a cluster profile
_STUDY_KEYS = (
    *(
        "root",
        "cache",
        "format",
        "confirm",
        "quick",
        "retry_failed",
        "resubmit",
        "dry_run",
        "calibrate",
        "run",
        "tasks",
    ),
    *("design", "suggest", "allowance", "assume"),
    *("question", "target_width", "confirm_rounds", "detach"),
)


def compose_study(
    overrides: Sequence[str] | StudyConfig, *, devices: Mapping[str, Device] | None = None
) -> StudyConfig:
    """Return the study that `overrides` describe, with one checked run template per scale.

    A study that is composed already is returned as it is.

    Parameters
    ----------
    devices : by scale: what the `auto` settings of its runs stand for; other scales go by the cluster.

    Raises
    ------
    ConfigError : a key or value is unknown, mistyped or contradictory; the message is one line.
    """
    if isinstance(overrides, StudyConfig):
        return overrides
    mapping, chosen = _compose(CONF, STUDY, overrides)
    with _naming_the_file(chosen, overrides):
        return _study(mapping, chosen.get("model", ""), overrides, devices or {})


def _study(
    mapping: dict[str, Any], chosen: str, overrides: Sequence[str], devices: Mapping[str, Device]
) -> StudyConfig:
    """Return the checked study of a composed configuration, `chosen` is its model."""
    for group in ("sweep", "cluster", "retry"):
        if not isinstance(mapping.get(group), dict):
            check_files(overrides)
            raise ConfigError(f"{group} has no settings: its file or {group}=... leaves it empty")
    # Hydra merges a mapping on the command line into the file's; only null removes the file's cells.
    fields = mapping["sweep"] | {"cells": mapping["sweep"].get("cells") or {}}
    sweep = build(SweepConfig, fields, "sweep.")
    cluster = build(ClusterConfig, mapping["cluster"], "cluster.")
    retry = build(RetryConfig, mapping["retry"], "retry.")
    runs, resolved_for = {}, dict[str, Device]()
    for scale in sweep.scales or [chosen]:
        fields = mapping
        if scale != chosen or scale in sweep.per_scale:
            own = [f"{key}={value}" for key, value in sweep.per_scale.get(scale, {}).items()]
            if scale != chosen:
                own.insert(0, f"model={scale}")
            rest = [text for text in overrides if scale == chosen or not text.startswith("model=")]
            fields = _of_scale(scale, [*rest, *own])
        resolved_for[scale] = devices.get(scale) or device_of(fields, cluster, scale)
        runs[scale] = _run(resolve(fields, resolved_for[scale]), scale)
    check_path(mapping.get("path"), next(iter(runs.values())).data, overrides)
    settings = build(StudyConfig, {key: mapping[key] for key in _STUDY_KEYS} | {"runs": {}})
    profile = [text for text in overrides if PROFILE.match(text)]
    return dataclasses.replace(
        settings,
        runs=runs,
        sweep=sweep,
        cluster=cluster,
        retry=retry,
        devices=resolved_for,
        overrides=list(overrides),
        profile=profile,
    )


def _of_scale(scale: str, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        return _compose(CONF, STUDY, overrides)[0]
    except ConfigError as error:
        if error.key == "model":
            raise ConfigError(f"sweep.scales: {error}", "sweep.scales") from None
        raise


@contextmanager
def _naming_the_file(chosen: Mapping[str, str], overrides: Sequence[str]) -> Iterator[None]:
    """Put the file that sets the key of a ConfigError before its message."""
    try:
        yield
    except ConfigError as error:
        found = file_that_sets(error.key, chosen, overrides) if error.key else None
        if found is None:
            raise
        path, key = found
        raise ConfigError(f"{path}: {str(error).replace(error.key, key, 1)}", key) from None


def _run(mapping: dict[str, Any], scale: str) -> RunConfig:
    known = [item.name for item in dataclasses.fields(RunConfig)]
    others = (*_STUDY_KEYS, "sweep", "cluster", "retry", "path")  # path is a short name for data.path
    fields = {key: value for key, value in mapping.items() if key not in others}
    for key in fields:
        if key not in known:
            raise ConfigError(f"unknown key {key}{_inside(key) or closest(key, [*known, *others])}", key)
    check_name("model", scale)
    return build(RunConfig, fields | {"scale": scale})


def _inside(key: str) -> str:
    """Return a hint if a group has a key of this very name, such as sweep.seeds for seeds."""
    named = _keys_of_a_study(key)
    return f" (did you mean {' or '.join(named)}?)" if named else ""


def _keys_of_a_study(name: str) -> list[str]:
    """Return the dotted keys of a study's groups that bear a name."""
    parts = {"sweep": SweepConfig, "cluster": ClusterConfig} | get_type_hints(RunConfig)
    return [
        f"{part}.{key}"
        for part, cls in parts.items()
        if dataclasses.is_dataclass(cls) and isinstance(cls, type)
        for key in keys_named(cls, name)
    ]


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
    if command != "new":
        overrides = [_by_name(text, overrides) for text in overrides]
    _check_keys(command, overrides)
    overrides = with_lists(overrides, LISTS.get(command, ()))
    mapping, _ = _compose(CONF / "table", command, overrides)
    for key, value in mapping.items():
        if value == "???" and command in POSITIONAL:
            raise ConfigError(f"{key} is not set: write loopscale {command} {POSITIONAL[command]}")
        if value == "???":
            raise ConfigError(f"{key} is not set: {key}=...{_launched(mapping) if key == 'sweep' else ''}")
    return build(TABLES[command], mapping)


def _check_keys(command: str, overrides: Sequence[str]) -> None:
    """Refuse keys of a study that a command on finished runs, or `new`, does not take."""
    hints = get_type_hints(TABLES[command])
    for text in overrides:
        key = text.partition("=")[0].lstrip("+~")
        group, dot, _ = key.partition(".")
        if dot and group in hints and get_origin(hints[group]) is not dict:
            raise ConfigError(f"{text}: {command} takes {group}=... alone; {key} is for plan and launch")
        if group in hints or difflib.get_close_matches(group, hints, n=1, cutoff=0.75):
            continue
        meant = [] if group in _GROUPS else _keys_of_a_study(key)
        if group in _GROUPS or meant:
            as_what = f", as {' or '.join(meant)}" if meant else ""
            raise ConfigError(f"{text}: {command} has no key {key}; plan and launch take it{as_what}")


def _by_name(text: str, overrides: Sequence[str]) -> str:
    """Return `sweep=path/to/mine.yaml` as the name of that sweep; anything else stays."""
    key, _, value = text.partition("=")
    if key != "sweep" or not value.endswith(SUFFIXES):
        return text
    searched_too = [other for other in overrides if other.startswith(f"{SEARCH_PATH}=")]
    mapping, _ = _compose(CONF, STUDY, [text, *searched_too])
    return f"sweep={mapping['sweep']['name']}"


def _launched(mapping: Mapping[str, Any]) -> str:
    """Return the names of the sweeps below the root of a command, in words."""
    root = Path(str(mapping.get("root", "runs")))
    names = sorted(path.parent.name for path in root.glob("*/sweep.json"))
    return f", launched below {root}: {', '.join(names)}" if names else ""


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
def _compose(folder: Path, name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        with (
            searched(overrides, groups=folder == CONF) as (folders, texts),
            initialize_config_dir(version_base="1.3", config_dir=str(folder)),
        ):
            check_overrides(texts, folders)
            config = compose(name, forced(folders, with_lists(texts)), return_hydra_config=True)
            chosen = {str(group): str(name) for group, name in config.hydra.runtime.choices.items()}
            if empty := empty_file(chosen, folders):
                check_files(overrides)  # which names a file as the user does
                raise ConfigError(f"{empty} holds no settings")
            OmegaConf.set_struct(config, False)
            config.pop("hydra")
            mapping = OmegaConf.to_container(config, resolve=True)
    except OverrideParseException as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{error.override.lstrip('+')}: {said}; a list is [1,2], text with brackets needs quotes"
        ) from error
    except ConfigError:
        raise
    except MissingConfigException as error:  # in the defaults of a chosen file
        check_files(overrides)
        group, _, missing = str(error.missing_cfg_file).rpartition("/")
        if names := choices(group, folders):
            refuse_name(group, missing, names, folders, overrides)
        raise ConfigError(one_line(str(error))) from error
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, RecursionError) as error:
        check_files(overrides)
        raise ConfigError(one_line(str(error))) from error
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}, chosen
