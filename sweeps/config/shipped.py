"""The configuration files of loopscale and of Hydra, parsed once per process and version of the file.

A composition reads fifteen of them, which takes a third of its time. Files of the user's own
folders are few, and are read each time.
"""

from __future__ import annotations

import pickle
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath

_SCHEME = "shipped"


def parse_once(search_path: ConfigSearchPath, conf: Path) -> None:
    """Let Hydra keep what it parses of its own files and of those below `conf`."""
    import hydra

    _register()
    for element in search_path.get_path():
        path = str(element.path).removeprefix("file://")
        if path == "pkg://hydra.conf":
            element.path = f"{_SCHEME}://{Path(hydra.__file__).parent / 'conf'}"
        elif Path(path).is_relative_to(conf):
            element.path = f"{_SCHEME}://{path}"


@lru_cache(maxsize=256)
def _parsed(provider: str, folder: str, name: str, *_version: int) -> bytes:
    """Return what a version of a file holds, pickled: Hydra changes the object that it is given."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource

    return pickle.dumps(FileConfigSource(provider, folder).load_config(name))


@cache
def _register() -> None:
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra.core.plugins import Plugins
    from hydra.plugins.config_source import ConfigResult

    class ShippedFiles(FileConfigSource):
        @staticmethod
        def scheme() -> str:
            return _SCHEME

        def load_config(self, config_path: str) -> ConfigResult:
            file = Path(self.path, self._normalize_file_name(config_path))
            stat = file.stat()
            version = (
                stat.st_ino,
                stat.st_size,
                stat.st_mtime_ns,
                stat.st_ctime_ns,
            )  # a copy may keep its time
            result = pickle.loads(_parsed(self.provider, self.path, config_path, *version))
            assert isinstance(result, ConfigResult)
            return result

    Plugins.instance().register(ShippedFiles)
