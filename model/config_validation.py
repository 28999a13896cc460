"""Build configuration dataclasses from plain mappings, checked by pydantic; every complaint is one line."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")
# Separators of paths and of a scheduler's lists, its patterns for file names, and what hides a file or looks
# like an option.
_NO_NAME = re.compile(r"[/\\,|%\x00-\x1f\x7f]|^[.\-\s]|\s$|^$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNKNOWN = "unexpected_keyword_argument"  # pydantic's types of complaints
_MISSING, _NO_GROUP, _REFUSED = "missing", "dataclass_type", "value_error"


class ConfigError(ValueError):
    """A configuration that the user must correct; the message names the key and what would be right."""


def closest(word: str, options: Iterable[str]) -> str:
    """Return a hint: the nearest of `options`, or all of them if they are few."""
    names = sorted(options)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f" (did you mean {near[0]}?)"
    return f" (choose from {', '.join(names)})" if len(names) <= 12 else ""


def check_name(key: str, name: str) -> None:
    """Raise ConfigError unless `name` can be a folder, part of a job's name and an item of a list of jobs."""
    if _NO_NAME.search(name):
        raise ConfigError(
            f"{key}={_shown(ascii(name))} becomes a folder and a job's name: it may not be empty, begin with "
            "a dot, a dash or a blank, end with a blank, or hold / \\ , | % or a control character"
        )


def check_line(key: str, text: str) -> None:
    """Raise ConfigError unless `text` can be part of a line of a job file: without control characters."""
    if _CONTROL.search(text):
        raise ConfigError(
            f"{key}={_shown(ascii(text))} is written into a line: it may hold no control character"
        )


def build(cls: type[T], mapping: Mapping[str, Any], path: str = "") -> T:
    """Return the dataclass `cls` with the values of `mapping`, nested dataclasses included.

    Types are checked strictly: a number is not text, a bool is not a number; an int may serve as a float.
    `path` is put before the keys in messages.

    Raises
    ------
    ConfigError : an unknown or missing key, a wrong type, a value out of range, or a combination that the
        dataclass itself refuses.
    """
    from pydantic import ValidationError
    from pydantic_core import PydanticSerializationError, to_json

    try:
        # As JSON: of Python objects, strict validation takes instances of nested dataclasses alone.
        (built,) = _adapter(cls).validate_json(to_json([mapping], fallback=str))  # type: ignore[arg-type]
    except PydanticSerializationError:
        key = next((key for key, value in mapping.items() if not _is_plain(value)), "a setting")
        raise ConfigError(f"{path}{key} holds half a character or is nested too deeply") from None
    except ValidationError as error:
        complaints = error.errors()
    else:
        result: T = built
        return result
    unknown = (complaint for complaint in complaints if complaint["type"] == _UNKNOWN)
    raise _config_error(next(unknown, complaints[0]), cls, mapping, path)


def _is_plain(value: Any) -> bool:
    from pydantic_core import PydanticSerializationError, to_json

    try:
        to_json(value, fallback=str)
    except PydanticSerializationError:
        return False
    return True


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    # A tuple of one: a dataclass by itself takes no settings from outside, one inside a tuple does.
    return TypeAdapter(tuple[cls], config=ConfigDict(extra="forbid", strict=True))  # type: ignore[valid-type]


def _config_error(complaint: ErrorDetails, cls: type, mapping: Mapping[str, Any], path: str) -> ConfigError:
    kind, location = complaint["type"], complaint["loc"][1:]
    if kind == _REFUSED:
        error = complaint["ctx"]["error"]
        where = f"{path}{'.'.join(map(str, location))}".rstrip(".: ")
        if isinstance(error, ConfigError):
            return error
        return ConfigError(f"{where}: {error}" if where else str(error))
    key = f"{path}{'.'.join(_keys(location, mapping, kind in (_UNKNOWN, _MISSING)))}"
    if kind == _UNKNOWN:
        group = key.removesuffix(str(location[-1]))
        options = [f"{group}{item.name}" for item in dataclasses.fields(_dataclass_at(cls, location[:-1]))]
        return ConfigError(f"unknown key {key}{closest(key, options)}")
    if kind == _MISSING:
        return ConfigError(f"{key} is not set")
    message = "must be a group of keys" if kind == _NO_GROUP else _lower(complaint["msg"])
    return ConfigError(f"{key}={_shown(complaint['input'])}: {message}")


def _keys(location: Sequence[str | int], values: Any, last_is_key: bool) -> list[str]:
    """Return the keys of a location, without the type names by which pydantic marks members of unions."""
    keys = []
    for part in location[:-1] if last_is_key else location:
        inside = isinstance(values, Mapping) and part in values
        if not inside and not (isinstance(values, list | tuple) and isinstance(part, int)):
            break
        values = values[part]
        keys.append(str(part))
    return [*keys, str(location[-1])] if last_is_key else keys


def _dataclass_at(cls: type, location: Sequence[str | int]) -> type:
    """Return the dataclass that the group of keys at `location` is for."""
    hint: Any = cls
    for part in location:
        hint = get_type_hints(hint)[str(part)] if dataclasses.is_dataclass(hint) else get_args(hint)[-1]
        if get_origin(hint) in (Union, UnionType):
            hint = next(member for member in get_args(hint) if member is not NoneType)
    assert isinstance(hint, type)
    return hint


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
