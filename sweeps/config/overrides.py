"""The grammar of overrides: what a user writes, checked and as Hydra reads it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from harness.data.dataset import DataConfig
from model.config_validation import ConfigError, closest
from sweeps.config.folders import SEARCH_PATH, choices

# Keys whose value is text, a path or the name of a column: taken as it is written, outside Hydra's grammar.
_TEXT_KEYS = (
    *(
        "prompt",
        "scale",
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
            raise ConfigError(f"{text}: {one_line(str(error))}") from error
        if not item.is_sweep_override():
            return [text]
        return [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()]

    return [list(chosen) for chosen in itertools.product(*map(values, overrides))]


def forced(folders: Sequence[Path], overrides: Sequence[str]) -> list[str]:
    """Return the overrides as Hydra takes them: groups are chosen, all other keys are set or added.

    Configuration files show only what differs from a default, so Hydra does not know every key. All keys
    pass here; the dataclasses refuse the unknown ones.
    """
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


def check_overrides(overrides: Sequence[str], folders: Sequence[Path]) -> None:
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
            raise ConfigError(f"{text!r} is not an override: write key=value, as sweep=NAME or seed=1")
        group = key.lstrip("+")
        names = choices(group, folders)
        if names and not value.startswith("{") and value not in names:
            refuse_name(group, value, names, folders, overrides)


def refuse_name(
    group: str, value: str, names: Sequence[str], folders: Sequence[Path], overrides: Sequence[str]
) -> NoReturn:
    """Raise ConfigError for a name that no file of a group has: the closest one, all, and where they are."""
    root = next((text[5:] for text in overrides if text.startswith("root=")), "runs")
    if group == "sweep" and (Path(root) / value / "sweep.json").exists():
        raise ConfigError(
            f"sweep={value} names no file of conf/sweep: repeat the settings with which "
            f"{root}/{value} was launched, sweep.name={value} among them"
        )
    places = ", ".join(str(folder / group) for folder in folders if (folder / group).is_dir())
    near = closest(value, names)
    near = near if "did you mean" in near else ""
    raise ConfigError(
        f"{group}={value} is unknown{near}; there are {', '.join(names)}; looked in {places}", group
    )


def one_line(message: str) -> str:
    """Return the two first lines of Hydra's message as one."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and set(line.strip()) != {"^"}]
    return "; ".join(lines[:2])


def check_path(path: str | None, data: DataConfig, overrides: Sequence[str]) -> None:
    """Refuse a `path` that no run reads, except that of a file whose data the command line replaces."""
    replaced = any(text.startswith("data=") for text in overrides)
    replaced &= not any(text.startswith("path=") for text in overrides)
    if path is not None and data.path is None and not replaced:
        raise ConfigError(
            f"path is the text of data=text, and data={data.name} has its own: add data=text or drop path"
        )
