"""The folders in which configuration files are looked up: the user's before the project's.

A file of the same name in an earlier folder takes the place of a later one. The order is `--config-dir`,
the folders of LOOPSCALE_CONFIG, `conf/` in the working directory, and the project's own `conf/`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config_validation import ConfigError
from sweeps.config.shipped import parse_once

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath

CONF = Path(__file__).resolve().parents[2] / "conf"
STUDY = "loopscale"  # the file of conf/ that holds the keys of a study
VARIABLE = "LOOPSCALE_CONFIG"
SUFFIXES = (".yaml", ".yml")
SEARCH_PATH = "hydra.searchpath"  # an override that names further folders, first
_SEARCHED: list[Path] = []  # by Hydra, while it composes
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")  # of one key to another
NAME = re.compile(r"[\w.-]+")  # of a file, as Hydra's grammar takes it without quotes


def user_folders(overrides: Sequence[str] = ()) -> list[Path]:
    """Return the user's existing configuration folders, first the one that is searched first.

    Raises ConfigError for a folder that is named and does not exist.
    """
    named = [Path(folder) for folder in _named(overrides)]
    named += [Path(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    for folder in named:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder of configuration files (--config-dir, {VARIABLE})")
    folders = dict.fromkeys(folder.resolve() for folder in [*named, Path("conf")] if folder.is_dir())
    return [folder for folder in folders if folder != CONF.resolve()]


def find(group: str, value: str, overrides: Sequence[str] = ()) -> Path | None:
    """Return the file that `group=value` chooses, None if there is none."""
    if value.endswith(SUFFIXES):
        paths = [Path(value).expanduser()]
    else:
        paths = [folder / group / f"{value}.yaml" for folder in [*user_folders(overrides), CONF]]
    return next((path for path in paths if path.is_file()), None)


def check_files(overrides: Sequence[str]) -> None:
    """Raise ConfigError naming the first chosen file that is no configuration; Hydra does not name it."""
    from omegaconf import OmegaConf

    for group, _, value in (text.partition("=") for text in overrides):
        path = find(group.lstrip("+"), value, overrides) if NAME.fullmatch(group.lstrip("+")) else None
        if path is None:
            continue
        try:
            content = OmegaConf.to_container(OmegaConf.load(path))
            if not isinstance(content, dict) or not content:
                raise ValueError("it holds no settings")
            json.dumps(content, ensure_ascii=False, default=str).encode()  # YAML's "\ud800" is no character
        except Exception as error:  # of YAML, of OmegaConf, of the file system
            raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def empty_file(chosen: Mapping[str, str], folders: Sequence[Path]) -> Path | None:
    """Return the first of the chosen files, by group, that holds only comments, None if there is none."""
    for group, name in chosen.items():
        paths = (folder / group / f"{name}.yaml" for folder in folders)
        path = next((path for path in paths if path.is_file()), None)
        lines = path.read_text(encoding="utf-8").splitlines() if path else ["none"]
        if all(line.strip()[:1] in ("", "#") for line in lines):
            return path
    return None


def file_that_sets(key: str, chosen: Mapping[str, str], overrides: Sequence[str]) -> tuple[Path, str] | None:
    """Return the chosen file that sets a dotted key, and the key there: another where a key refers to it.

    None if no file does, or the command line does. `chosen` names a file for each group; one that the command
    line names itself counts first.
    """
    written = {text.partition("=")[0].lstrip("+"): text.partition("=")[2] for text in overrides}
    if any(key == name or key.startswith(f"{name}.") for name in written if name not in chosen):
        return None
    for group, name in sorted(chosen.items(), key=lambda item: item[0] != "sweep"):
        path = find(group, written.get(group, name), overrides)
        while path is not None:
            content = _content(path)
            own = content if _is_global(path) else {group: content}
            if (value := _value(own, key.split("."))) is not None:
                if isinstance(value, str) and (other := _REFERENCE.fullmatch(value)):
                    return file_that_sets(other[1], chosen, overrides)
                return (Path(os.path.relpath(path)) if Path.cwd() in path.resolve().parents else path), key
            parents = [item for item in content.get("defaults") or [] if isinstance(item, str)]
            parent = next((item for item in parents if item != "_self_"), None)
            path = None if parent is None else find(group, parent, overrides)
    return None


def _content(path: Path) -> dict[str, Any]:
    """Return the content of a configuration file as it is written."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _is_global(path: Path) -> bool:
    """Return True if the keys of a file are those of the whole configuration."""
    return "@package _global_" in path.read_text(encoding="utf-8").partition("\n")[0]


def _value(content: Any, parts: Sequence[str]) -> Any:
    """Return the value at nested keys, "" for null, None if they are not set; a list stands for its items."""
    for part in parts:
        if isinstance(content, list):
            return content
        if not isinstance(content, dict) or part not in content:
            return None
        content = content[part]
    return "" if content is None else content


def sweep_folder(parent: Path) -> Path:
    """Return the folder for a sweep derived from the file `parent`: the user's or the project's."""
    folder = (user_folders() or [CONF])[0] / "sweep"
    if CONF.resolve() not in parent.resolve().parents:
        folder = parent.parent
    folder.mkdir(exist_ok=True)
    return folder


def choices(group: str, folders: Sequence[Path]) -> list[str]:
    """Return the names of the files of a group, sorted; empty for a key that is no group."""
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


@contextmanager
def searched(overrides: Sequence[str], *, groups: bool) -> Iterator[tuple[list[Path], list[str]]]:
    """Let Hydra search the user's folders too; yields all folders and the overrides with names alone.

    Without `groups`, the command has none: the folders are left out.

    A value of a group that is a path of a YAML file (sweep=path/to/mine.yaml) becomes the file's name. Its
    neighbours are found where its folder has the name of the group.
    """
    kept = [text for text in overrides if not text.startswith(f"{SEARCH_PATH}=")]
    _register()
    if not groups:
        yield [], kept
        return
    folders = [*user_folders(overrides), CONF]
    with tempfile.TemporaryDirectory(prefix="loopscale-conf-") as own:
        for position, text in enumerate(kept):
            group, _, value = text.partition("=")
            group = group.lstrip("+")
            if not value.endswith(SUFFIXES) or not choices(group, folders):
                continue
            path = Path(value).expanduser()
            kept[position] = f"{group}={_linked(path, group, Path(own))}"
            if path.resolve().parent.name == group:
                folders.insert(0, path.resolve().parents[1])
        folders = list(dict.fromkeys([Path(own), *folders]))
        _SEARCHED[:] = [folder for folder in folders if folder != CONF]
        try:
            yield folders, kept
        finally:
            _SEARCHED.clear()


@cache
def _register() -> None:
    """Make Hydra search the folders of `_SEARCHED` before its own."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class UserFolders(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            parse_once(search_path, CONF)
            for folder in reversed(_SEARCHED):
                search_path.prepend(provider="loopscale", path=f"file://{folder}")

    Plugins.instance().register(UserFolders)


def _named(overrides: Sequence[str]) -> list[str]:
    values = [text.partition("=")[2] for text in overrides if text.startswith(f"{SEARCH_PATH}=")]
    listed = [value[1:-1].split(",") if value.startswith("[") else [value] for value in values]
    return [folder.strip().removeprefix("file://") for folders in listed for folder in folders if folder]


def _linked(path: Path, group: str, folder: Path) -> str:
    """Copy a user's file into `folder` under its group and return its name."""
    if not path.is_file():
        raise ConfigError(f"{group}={path}: there is no such file (seen from {Path.cwd()})")
    if not NAME.fullmatch(path.stem):
        raise ConfigError(f"{group}={path}: name the file with letters, digits, '_', '-' and '.' alone")
    (folder / group).mkdir(exist_ok=True)
    shutil.copyfile(path, folder / group / f"{path.stem}.yaml")
    return path.stem
