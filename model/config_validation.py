"""Build checked configuration dataclasses from plain mappings; every complaint is one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that the user must mend; the message names the key and says what would be right."""


def closest(word: str, options: Iterable[str]) -> str:
    """Return a hint: the nearest of `options`, or all of them where they are few."""
    names = sorted(options)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f" (did you mean {near[0]}?)"
    return f" (choose from {', '.join(names)})" if len(names) <= 12 else ""


def build(cls: type[T], mapping: Mapping[str, Any], path: str = "") -> T:
    """Build dataclass `cls` from `mapping`, nested dataclasses included.

    Types are checked strictly (a number is not text, a bool is not a number; an int may serve as a float).
    Raises ConfigError for an unknown or missing key, a wrong type, a value out of range or a combination
    that the dataclass itself refuses.
    """
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in known:
            options = [f"{path}{name}" for name in known]
            raise ConfigError(f"unknown key {path}{key}{closest(f'{path}{key}', options)}")
    hints = _hints(cls)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name in mapping:
            values[name] = _value(hints[name], mapping[name], f"{path}{name}")
        elif _required(item):
            raise ConfigError(f"{path}{name} is not set")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path.rstrip('.')}: {error}" if path else str(error)) from error


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _value(hint: Any, value: Any, path: str) -> Any:
    if get_origin(hint) is dict and is_dataclass(get_args(hint)[1]) and isinstance(value, Mapping):
        return {key: _value(get_args(hint)[1], item, f"{path}.{key}") for key, item in value.items()}
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={value}: must be a group of keys")
        return build(hint, value, f"{path}.")  # type: ignore[arg-type]
    try:
        return _adapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        # A union reports one complaint per branch; the last one is the most specific for `X | None`.
        complaint = next(e for e in error.errors() if e["type"] != "none_required")
        where = "".join(f".{part}" for part in complaint["loc"] if isinstance(part, int))
        raise ConfigError(f"{path}{where}={_shown(complaint['input'])}: {_lower(complaint['msg'])}") from None


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
