"""A user's own configuration files: by path, from a folder that is named, and from ./conf; and the flags."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

import loopscale
from model.config_validation import ConfigError
from sweeps.config.folders import CONF, find, sweep_folder
from tests.commands import command


def write(path: Path, width: int) -> Path:
    """Write a model file of a width that no shipped one has."""
    content = yaml.safe_load((CONF / "model" / "looped_40k.yaml").read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# @package model\n" + yaml.safe_dump(content | {"width": width}))
    return path


def width(*overrides: str) -> int:
    (run,) = loopscale.compose(list(overrides)).runs.values()
    return run.model.width


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


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("  budgets_flops:", "sweep.budgets_flops is empty: must be a list of numbers, as [1e12,2e12]"),
        ("  budgets_flops: 3e12", "sweep.budgets_flops=3e12: must be a list of numbers, as [3e12]"),
        ("  budgets_flops: [1e12 2e12]", "sweep.budgets_flops.0=1e12 2e12: must be a number, as"),
        ("  mean_recurrences: [2, 4.5]", "sweep.mean_recurrences.1=4.5: must be a whole number, as 2"),
        (
            "  mean_recurrences: [2, 4.0]",
            "sweep.mean_recurrences.1=4.0: must be a whole number; write it as 4",
        ),
        ("  scales: looped_5k", "sweep.scales=looped_5k: must be a list, as [looped_5k]"),
        (
            "  scales: [looped_5k, looped_7k]",
            "sweep.scales: model=looped_7k is unknown (did you mean looped_5k?)",
        ),
        ("  control:", "sweep.control is empty: must be 'fixed', 'poisson' or 'none'"),
        ("  control: yes", "sweep.control=true: must be 'fixed', 'poisson' or 'none'"),
        ("  min_steps:", "sweep.min_steps is empty: must be a whole number, as 20"),
        ("  budget_flops: [1e12]", "unknown key sweep.budget_flops (did you mean sweep.budgets_flops?)"),
        ("training:", "training is empty: must be a group of keys"),
        (
            "training:\n  batch_sequences: many",
            "training.batch_sequences=many: must be a whole number, as 16",
        ),
        ("training:\n  compile: 1", "training.compile=1: must be true or false, as false"),
        # conf/model/looped_5k.yaml refers to the vocabulary of the data
        (
            "data:\n  vocabulary_size: 5e2",
            "data.vocabulary_size=500.0: must be a whole number; write it as 500",
        ),
    ],
)
def test_a_wrong_value_in_a_file_names_the_file_the_key_and_an_example(here, line, said):
    path = here / "conf" / "sweep" / "mine.yaml"
    path.parent.mkdir(parents=True)
    head = "# @package _global_\ndefaults:\n  - override /model: looped_5k\n"
    path.write_text(f"{head}sweep:\n  name: mine\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        loopscale.compose(["sweep=mine"])
    assert str(caught.value).startswith(f"conf/sweep/mine.yaml: {said}")


def test_the_file_of_a_wrong_value_is_the_one_that_sets_it(here):
    cluster = here / "conf" / "cluster" / "ours.yaml"
    parent, child = here / "conf" / "sweep" / "parent.yaml", here / "conf" / "sweep" / "child.yaml"
    cluster.parent.mkdir(parents=True)
    parent.parent.mkdir(parents=True)
    cluster.write_text("kind: slurm\nresources:\n  time_min: long\n")
    parent.write_text("# @package _global_\nsweep:\n  name: parent\n  min_steps: few\n")
    child.write_text("# @package _global_\ndefaults: [parent, _self_]\nsweep:\n  name: child\n")
    for overrides, said in (
        (
            ["cluster=ours"],
            "conf/cluster/ours.yaml: cluster.resources.time_min=long: must be a whole number, as 60",
        ),
        (["sweep=child"], "conf/sweep/parent.yaml: sweep.min_steps=few: must be a whole number, as 20"),
        (["sweep=conf/sweep/parent.yaml"], "conf/sweep/parent.yaml: sweep.min_steps=few: must be"),
        (["sweep=child", "sweep.min_steps=some"], "sweep.min_steps=some: must be a whole number, as 20"),
    ):
        with pytest.raises(ConfigError) as caught:
            loopscale.compose(overrides)
        assert str(caught.value).startswith(said)


def test_an_unknown_scale_lists_all_that_there_are(here):
    write(here / "conf" / "model" / "mine.yaml", 16)
    path = here / "conf" / "sweep" / "grid.yaml"
    path.parent.mkdir()
    path.write_text("# @package _global_\ndefaults:\n  - override /model: looped_7k\nsweep:\n  name: grid\n")
    for overrides in (["model=looped_7k"], ["sweep=demo", "sweep.scales=[looped_7k]"], ["sweep=grid"]):
        with pytest.raises(ConfigError) as caught:
            loopscale.compose(overrides)
        said = str(caught.value)
        assert "model=looped_7k is unknown (did you mean looped_5k?); there are looped_10m, " in said
        assert all(f" {name}" in said for name in ("mine", "looped_1300m", "transformer_140m")), said
        assert f"looked in {here / 'conf' / 'model'}, {CONF / 'model'}" in said


def test_a_grid_without_a_name_says_where_the_name_goes(here):
    with pytest.raises(ConfigError, match=r"sweep.name is not set: write `name: NAME` below `sweep:`"):
        loopscale.plan(["sweep.mean_recurrences=[2,4]", "sweep.budgets_flops=[1e12]"])
