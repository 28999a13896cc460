"""config.yaml: a run's whole configuration as text, and back."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from harness.run.config import RunConfig
from harness.storage.memoize import once_per_object
from model.config_validation import ConfigError, build

CONFIG = "config.yaml"
# libyaml's, where it is built in: ten times as fast
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def parse_config(text: str, path: Path) -> RunConfig:
    """Return the configuration in `text`; raises ConfigError, naming `path`, for a damaged one."""
    try:
        fields = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} is damaged: it holds no settings")
    return build(RunConfig, fields)


def config_text(run: RunConfig) -> str:
    """Return `run` as YAML; sections that many runs share are formatted once."""
    lines = []
    for item in dataclasses.fields(run):
        value = getattr(run, item.name)
        lines.append(
            _yaml(item.name, _section(value) if dataclasses.is_dataclass(value) else json.dumps(value))
        )
    return "".join(lines)


@once_per_object
def _section(config: Any) -> str:
    return json.dumps(dataclasses.asdict(config))


@lru_cache(maxsize=4096)
def _yaml(name: str, content: str) -> str:
    return str(yaml.dump({name: json.loads(content)}, Dumper=_Dumper, sort_keys=False))
