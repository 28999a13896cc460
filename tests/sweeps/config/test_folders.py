"""A user's own configuration files: by path, from a folder that is named, and from ./conf; and the flags."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

import loopscale
from model.config_validation import ConfigError
from sweeps.config.folders import CONF, find, sweep_folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory, an empty folder, with no configuration of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOOPSCALE_CONFIG", raising=False)
    return tmp_path


def write(path: Path, width: int) -> Path:
    """Write a model file of a width that no shipped one has."""
    content = yaml.safe_load((CONF / "model" / "looped_40k.yaml").read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# @package model\n" + yaml.safe_dump(content | {"width": width}))
    return path


def width(*overrides: str) -> int:
    (run,) = loopscale.compose(list(overrides)).runs.values()
    return run.model.width


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    code = 0
    try:
        loopscale.main(list(arguments))
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


def test_a_file_is_chosen_by_its_path_and_its_neighbours_by_name(here):
    write(here / "mine" / "model" / "small.yaml", 48)
    sweep = (CONF / "sweep" / "demo_quick.yaml").read_text().replace("looped_40k", "small")
    (here / "mine" / "sweep").mkdir()
    (here / "mine" / "sweep" / "grid.yaml").write_text(sweep)
    assert width("model=mine/model/small.yaml") == 48
    study = loopscale.compose(["sweep=mine/sweep/grid.yaml"])
    assert list(study.runs) == ["small"] and study.runs["small"].model.width == 48
    (here / "grid.yml").write_text((CONF / "sweep" / "demo_quick.yaml").read_text())
    assert loopscale.compose(["sweep=grid.yml", "sweep.name=x"]).sweep.name == "x"


def test_the_order_is_flag_environment_working_directory_project(here, monkeypatch):
    assert width("model=looped_40k") not in (16, 48, 80)
    write(here / "conf" / "model" / "looped_40k.yaml", 16)
    assert width("model=looped_40k") == 16
    write(here / "env" / "model" / "looped_40k.yaml", 48)
    monkeypatch.setenv("LOOPSCALE_CONFIG", str(here / "env"))
    assert width("model=looped_40k") == 48
    write(here / "flag" / "model" / "looped_40k.yaml", 80)
    assert width("model=looped_40k", "hydra.searchpath=[flag]") == 80
    assert width("model=looped_40k") == 48  # nothing stays behind


def test_a_scale_of_a_sweep_may_be_the_users(here):
    write(here / "conf" / "model" / "own.yaml", 16)
    runs = loopscale.compose(["sweep.scales=[own,looped_40k]"]).runs
    assert list(runs) == ["own", "looped_40k"] and runs["own"].model.width == 16


def test_an_unknown_name_says_where_was_looked(here):
    write(here / "conf" / "model" / "own.yaml", 16)
    with pytest.raises(ConfigError, match="did you mean own") as error:
        loopscale.compose(["model=owm"])
    assert f"looked in {here / 'conf' / 'model'}, {CONF / 'model'}" in str(error.value)
    with pytest.raises(ConfigError, match=r"sweep=absent\.yaml: there is no such file"):
        loopscale.compose(["sweep=absent.yaml"])
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        loopscale.compose(["hydra.searchpath=[nowhere]"])


def test_written_sweeps_go_beside_the_users_own(here):
    own = shutil.copy(CONF / "sweep" / "demo.yaml", here / "mine.yaml")
    assert find("sweep", "demo") == CONF / "sweep" / "demo.yaml" and find("sweep", "nosuch") is None
    assert sweep_folder(Path(own)) == here
    (here / "conf").mkdir()
    assert sweep_folder(CONF / "sweep" / "demo.yaml") == here / "conf" / "sweep"


def test_the_configuration_is_printed_composed_and_a_key_can_be_removed(here, capsys):
    write(here / "files" / "model" / "own.yaml", 16)
    arguments = ("plan", "sweep=demo", "model=own", "~sweep.cells", "--config-dir", "files", "--cfg", "job")
    code, out, _ = command(capsys, *arguments)
    shown = yaml.safe_load(out)
    assert code == 0 and shown["model"]["width"] == 16 and "cells" not in shown["sweep"]
    code, out, _ = command(capsys, "fit", "sweep=demo", "bootstrap=200", "--cfg=job")
    assert code == 0 and yaml.safe_load(out)["bootstrap"] == 200
    _, out, _ = command(capsys, "plan", "--help")
    assert "installed_python_small" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--foo=bar"], "--foo is no flag: write key=value"),
        (["plan", "hydra.run.dir=x"], "hydra.run.dir would change nothing: root=FOLDER"),
        (
            ["plan", "-m", "sweep=demo"],
            "-m works for train; for a sweep write the values as an axis, sweep.axes={KEY:[1,2]}",
        ),
        (["plan", "sweep=demo", "seed=[1"], "seed=[1: no viable alternative"),
        (["plan", "--cfg", "all"], "write --cfg job"),
        (["status", "sweep=x", "--wait"], "--wait is no flag"),
        (["plan", "sweep=demo", "~nosuch"], "'nosuch' does not exist"),
    ],
)
def test_what_hydra_would_take_or_trip_over_is_answered_in_one_line(here, capsys, arguments, said):
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1


def test_the_version_is_that_of_the_project(capsys):
    code, out, _ = command(capsys, "--version")
    text = (CONF.parent / "pyproject.toml").read_text()
    assert code == 0 and f'version = "{out.split()[1]}"' in text


def test_a_file_with_half_a_character_is_named(here):
    (here / "conf" / "sweep").mkdir(parents=True)
    text = '# @package _global_\ndefaults:\n  - override /data: "\\ud800"\nsweep: {name: mine}\n'
    (here / "conf" / "sweep" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"sweep/mine\.yaml cannot be read: .*surrogates not allowed"):
        loopscale.compose(["sweep=mine"])


@pytest.mark.parametrize("group", ["cluster", "model", "optimizer", "schedule"])
def test_an_empty_file_is_refused_however_it_was_chosen(here, group):
    (here / "conf" / group).mkdir(parents=True)
    (here / "conf" / group / "ours.yaml").write_text("# nothing yet\n")
    with pytest.raises(ConfigError, match=f"{group}/ours.yaml cannot be read: it holds no settings"):
        loopscale.compose(["sweep=demo", f"{group}=ours"])
    (here / "conf" / "sweep").mkdir()
    text = f"# @package _global_\ndefaults:\n  - override /{group}: ours\nsweep: {{name: mine}}\n"
    (here / "conf" / "sweep" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"{group}/ours.yaml holds no settings"):
        loopscale.compose(["sweep=mine"])


def test_commands_on_a_launched_sweep_take_the_path_of_its_file(here):
    from sweeps.config.compose import compose_table

    (here / "grids").mkdir()
    (here / "grids" / "larger.yaml").write_text("# @package _global_\nsweep: {name: mine}\n")
    for name in ("status", "collect", "fit", "compare", "report"):
        assert compose_table(name, ["sweep=grids/larger.yaml"]).sweep == "mine"
