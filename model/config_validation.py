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
_NO_TEXT = re.compile(r"[-+.\d][-+.\w]*|true|false|null", re.IGNORECASE)  # text only in quotes
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNKNOWN = "unexpected_keyword_argument"  # pydantic's types of complaints
_MISSING, _NO_GROUP, _REFUSED = "missing", "dataclass_type", "value_error"
_EXPECTED = {  # what a type of complaint asks for, and an example where the key has no default
    "int_type": ("a whole number", "2"),
    "int_from_float": ("a whole number", "2"),
    "float_type": ("a number", "0.5 or 1e12"),
    "bool_type": ("true or false", "true"),
    "string_type": ("text", "'123' (a number is text in quotes)"),
    "dict_type": ("keys with values", "{key: value}"),
}


class ConfigError(ValueError):
    """A configuration that the user must correct; the message names the key and what would be right.

    `key` is the dotted key where it is known, from which the file that sets it can be found.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


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
        return ConfigError(
            f"unknown key {key}{_meant(_dataclass_at(cls, location[:-1]), str(location[-1]), group)}", key
        )
    if kind == _MISSING:
        return ConfigError(f"{key} is not set", key)
    value = complaint["input"]
    seen = f"{key} is empty" if value in (None, "") else f"{key}={_shown(value)}"
    return ConfigError(f"{seen}: {_expected(complaint, cls)}", key)


def keys_named(cls: type, name: str) -> list[str]:
    """Return the keys of a dataclass that bear a name, those of its groups too, as dotted keys.

    The names by which users know keys are in its mapping ALSO_CALLED, by name: the dotted key.
    """
    known: Mapping[str, str] = getattr(cls, "ALSO_CALLED", {})
    found = [known[name]] if name in known else []
    for key, hint in get_type_hints(cls).items():
        if key == name:
            found.append(key)
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found += [f"{key}.{inner}" for inner in keys_named(hint, name)]
    return list(dict.fromkeys(found))


def _meant(owner: type, name: str, group: str) -> str:
    """Return a hint on an unknown name: the key that bears it elsewhere, the nearest one, or all of them."""
    names = [item.name for item in dataclasses.fields(owner)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if meant := keys_named(owner, name) or near:
        return f" (did you mean {' or '.join(f'{group}{key}' for key in meant)}?)"
    return f" (choose from {', '.join(f'{group}{key}' for key in sorted(names))})"


def _expected(complaint: ErrorDetails, cls: type) -> str:
    """Return what a value must be, with an example: the key's default, or one of its type."""
    kind, value, location = complaint["type"], complaint["input"], complaint["loc"][1:]
    if kind == _NO_GROUP:
        return "must be a group of keys; write them below it, indented, or remove the line"
    if kind in ("int_type", "int_from_float") and isinstance(value, float) and value.is_integer():
        return f"must be a whole number; write it as {int(value)}"
    if kind != "list_type" and kind not in _EXPECTED:
        return _lower(complaint["msg"]).replace("input should be", "must be", 1)
    hint, default = _field_at(cls, location)
    wanted, example = _listed(hint) if kind == "list_type" else _EXPECTED[kind]
    if kind == "list_type" and value not in (None, "") and not isinstance(value, Mapping):
        example = f"[{_shown(value)}]"
    elif default not in (None, "", [], {}):
        example = _shown(default)
    return f"must be {wanted}, as {example}"


def _listed(hint: Any) -> tuple[str, str]:
    """Return which list a hint stands for, in words, and an example."""
    text = str(hint)
    element = next((kind for kind in ("float", "int") if f"[{kind}" in text), "")
    wanted = {"float": ("a list of numbers", "[1e12,2e12]"), "int": ("a list of whole numbers", "[2,4,8]")}
    return wanted.get(element, ("a list", "[one,two]"))


def _field_at(cls: type, location: Sequence[str | int]) -> tuple[Any, Any]:
    """Return type hint and default of the key at `location`, None for what it has not."""
    try:
        owner = _dataclass_at(cls, location[:-1])
        (item,) = (item for item in dataclasses.fields(owner) if item.name == location[-1])
    except (AssertionError, KeyError, TypeError, IndexError, StopIteration, ValueError):
        return None, None  # inside a list, a mapping or a union
    hint = get_type_hints(owner, include_extras=True)[item.name]
    if item.default_factory is not dataclasses.MISSING:
        return hint, item.default_factory()
    return hint, None if item.default is dataclasses.MISSING else item.default


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
    """Return a value as it is written in YAML, shortened."""
    if isinstance(value, list):
        text = f"[{','.join(map(_shown, value))}]"
    elif isinstance(value, float) and abs(value) >= 1e6:
        text = re.sub(r"e\+0*", "e", f"{value:g}")
    elif isinstance(value, str) and _NO_TEXT.fullmatch(value):
        text = f"'{value}'"
    else:
        text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
