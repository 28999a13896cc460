"""`loopscale completion`: scripts for bash, zsh and fish, and the candidates that they ask for at every Tab.

Only light modules are imported: an answer must take less than 0.3 s.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sweeps.cli.help import GROUPS, Command, group_class
from sweeps.config.folders import CONF, choices, user_folders

FLAGS = ("--help ", "--cfg ", "--config-dir ")
_FILES_OF_NEW = {"scale": "model", "data": "data", "cluster": "cluster"}  # keys of `new` that name a file
_LISTED = re.compile(r"[\w.]+(?: *\| *[\w.]+)+")  # `a | b` in the comment of a key

SCRIPTS = {
    "bash": """_loopscale() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\\n'
    local word=${line##*[[:space:]]}
    COMPREPLY=($("$1" --complete "$line" 2>/dev/null))
    if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then # bash replaces only what follows the "="
        COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
    fi
}
complete -o nospace -o default -F _loopscale loopscale""",
    "zsh": """#compdef loopscale
_loopscale() {
    local -a found
    found=("${(@f)$("${words[1]}" --complete "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    found=(${found:#})
    if (( ! $#found )); then
        compset -P '*='
        _files
        return
    fi
    compadd -- ${${(M)found:#* }% }
    compadd -S '' -- ${found:#* }
}
compdef _loopscale loopscale""",
    "fish": """function __loopscale
    loopscale --complete (commandline -cp) 2>/dev/null | string trim --right
end
complete -c loopscale -f -a '(__loopscale)'""",
}


def _completion(overrides: list[str]) -> str:
    from sweeps.config.compose import compose_table

    return SCRIPTS[compose_table("completion", overrides).shell]


def candidates(line: str, commands: Sequence[str]) -> list[str]:
    """Return what may stand in place of the last word of a command line; a finished word ends in a space.

    Parameters
    ----------
    line : the command line up to the cursor.
    commands : the names of all commands.
    """
    words = line.split()[1:]
    word = words.pop() if words and not line[-1:].isspace() else ""
    if not words:
        found = [f"{name} " for name in commands] + ["--help ", "--version "]
    elif words[0] not in commands:
        found = []
    elif words[-1] in ("--cfg", "-c"):
        found = ["job "]
    elif words[-1] in ("--help", "-h"):
        found = ["all "]
    elif words[0] == "completion":
        found = [f"{shell} " for shell in SCRIPTS]
    elif "=" in word:
        key = word.partition("=")[0]
        found = [f"{key}={value} " for value in _values(words, key.lstrip("+"))]
    else:
        sign = word[: len(word) - len(word.lstrip("+~"))]
        found = [sign + key for key in _keys(words[0], word[len(sign) :])]
        found += [*FLAGS, "-m "] if words[0] == "train" else FLAGS
    return sorted({one for one in found if one.startswith(word)})


def _keys(command: str, word: str) -> Iterator[str]:
    """Yield the keys of a command, those below a dot only once the word has reached it."""
    if not _is_study(command):
        yield from (f"{key}=" for key in _settings(command))
        return
    parent, dot, _ = word.rpartition(".")
    if not dot:
        for key, value in _settings(command).items():
            yield f"{key}." if isinstance(value, dict) else f"{key}="
        for group in GROUPS:
            yield from (f"{group}=", f"{group}.")
        return
    inside: Any = _settings(command).get(parent) or _fields(parent)
    yield from (f"{parent}.{key}{'.' if nested else '='}" for key, nested in _flags(inside))


def _flags(inside: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(key, isinstance(value, dict)) for key, value in inside.items()]


def _fields(parent: str) -> dict[str, Any]:
    """Return the keys of a group, or of a part of one such as retry.oom, with a dict for a further part."""
    group, *parts = parent.split(".")
    if group not in GROUPS:
        return {}
    configuration: Any = group_class(group)
    for part in parts:
        configuration = _default(configuration, part)
    if not dataclasses.is_dataclass(configuration):
        return {}
    names = [item.name for item in dataclasses.fields(configuration)]
    return {name: {} if dataclasses.is_dataclass(_default(configuration, name)) else None for name in names}


def _default(configuration: Any, name: str) -> Any:
    for item in dataclasses.fields(configuration) if dataclasses.is_dataclass(configuration) else ():
        if item.name == name:
            return item.default_factory() if callable(item.default_factory) else item.default
    return None


def _values(words: Sequence[str], key: str) -> list[str]:
    """Return the known values of a key."""
    command = words[0]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    group = key if _is_study(command) else _FILES_OF_NEW.get(key, "") if command == "new" else ""
    if group and (names := choices(group, [*user_folders(), CONF])):
        return names
    root = Path(given.get("root", "runs"))
    if key == "sweep" and command != "new":
        return [path.parent.name for path in root.glob("*/sweep.json")]
    if key == "run" and "sweep" in given:
        return [path.parent.name for path in (root / given["sweep"]).glob("*/status.json")]
    return _written_values(command, key)


def _written_values(command: str, key: str) -> list[str]:
    """Return the values that the configuration file lists beside a key, or those of a switch."""
    parent, _, name = key.rpartition(".")
    text = _file(command).read_text(encoding="utf-8")
    if parent:
        text = text.partition(f"\n{parent}:")[2]
    line = next((line for line in text.splitlines() if line.strip().startswith(f"{name}:")), "")
    value, _, comment = line.partition("#")
    listed = _LISTED.search(re.sub(r"\([^)]*\)", "", comment))
    if listed:
        return [one.strip() for one in listed[0].split("|")]
    return ["true", "false"] if value.partition(":")[2].strip() in ("true", "false") else []


def _settings(command: str) -> dict[str, Any]:
    import yaml

    content = yaml.safe_load(_file(command).read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key != "defaults"}


def _is_study(command: str) -> bool:
    return not (CONF / "table" / f"{command}.yaml").exists()


def _file(command: str) -> Path:
    return CONF / ("loopscale.yaml" if _is_study(command) else f"table/{command}.yaml")


COMMANDS = {
    "completion": Command(
        run=_completion,
        summary="print the script with which bash, zsh or fish complete commands and keys",
        example="loopscale completion bash >> ~/.bashrc",
        settings="table/completion",
        positional="shell",
    )
}
