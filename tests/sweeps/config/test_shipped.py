"""Files that are parsed once: the same as read each time, whoever changes the file or what was made of it."""

from __future__ import annotations

import os

import pytest
import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from omegaconf import OmegaConf

import loopscale
from sweeps.config.folders import CONF
from sweeps.config.shipped import parse_once


@pytest.fixture
def repository(tmp_path):
    """Hydra's repository of the files below tmp_path."""
    search_path = ConfigSearchPathImpl()
    search_path.append("hydra", "pkg://hydra.conf")
    search_path.append("main", f"file://{tmp_path}")
    parse_once(search_path, tmp_path)
    return ConfigRepository(search_path)


def width(repository) -> int:
    return repository.load_config("model").config.width


def test_a_file_that_changes_is_read_again(repository, tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text("width: 16\n")
    assert width(repository) == width(repository) == 16
    path.write_text("width: 32\n")
    assert width(repository) == 32
    (tmp_path / "other").write_text("width: 48\n")
    os.utime(tmp_path / "other", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    (tmp_path / "other").replace(path)  # of the same length and time
    assert width(repository) == 48
    path.write_text("width: [\n")
    for _ in range(2):
        with pytest.raises(yaml.YAMLError):
            width(repository)
    path.unlink()
    assert repository.load_config("model") is None


def test_what_is_made_of_a_file_is_nobody_elses(repository, tmp_path):
    (tmp_path / "model.yaml").write_text("defaults: [_self_]\nwidth: 16\nnested: {depths: [1, 2]}\n")
    first = repository.load_config("model")
    first.config.width = 99
    first.config.nested.depths.append(3)
    first.defaults_list.clear()
    second = repository.load_config("model")
    assert OmegaConf.to_container(second.config) == {"width": 16, "nested": {"depths": [1, 2]}}
    assert len(second.defaults_list) == 1
    study = loopscale.compose(["sweep=demo"])
    study.sweep.mean_recurrences.append(99)
    assert 99 not in loopscale.compose(["sweep=demo"]).sweep.mean_recurrences


def test_every_shipped_file_is_what_yaml_holds():
    search_path = ConfigSearchPathImpl()
    search_path.append("main", str(CONF))
    parse_once(search_path, CONF)
    (source,) = ConfigRepository(search_path).get_sources()
    for path in CONF.rglob("*.yaml"):
        name = str(path.relative_to(CONF))
        for _ in range(2):
            result = source.load_config(name)
            assert OmegaConf.to_container(result.config) == OmegaConf.to_container(OmegaConf.load(path))
            first = path.read_text().partition("\n")[0]
            assert result.header["package"] == (first.removeprefix("# @package ") if "@" in first else None)
