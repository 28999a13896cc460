"""Every shipped configuration composes and passes the checks."""

from __future__ import annotations

import pytest

import loopscale
from model.config_validation import ConfigError
from sweeps.config.compose import compose_table
from sweeps.config.overrides import multirun
from tests.shipped import SHIPPED

GROUPS = ("model", "optimizer", "schedule", "logger", "cluster", "retry")


@pytest.mark.parametrize("number", range(max(len(SHIPPED[group]) for group in GROUPS)))
def test_every_choice_of_a_group_composes(number):
    choices = [f"{group}={name}" for group in GROUPS for name in SHIPPED[group][number : number + 1]]
    assert len(loopscale.compose(choices).runs) == 1


SWEEPS = [name for name in SHIPPED["sweep"] if name not in ("none", "study_base")]  # which have no name


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_composes_and_has_its_own_name(name):
    text = ["path=somewhere"] if name == "study_30k_english" else []  # which is not in the repository
    assert loopscale.compose([f"sweep={name}", *text]).sweep.name == name


@pytest.mark.parametrize("name", SHIPPED["data"])
def test_every_data_set_composes(name):
    needed = {
        "huggingface": ["data.repository=org/set", "data.max_tokens=100_000_000"],
        "text": ["path=somewhere"],
    }
    (run,) = loopscale.compose([f"data={name}", *needed.get(name, [])]).runs.values()
    shared = {
        "fineweb_edu": "huggingface",
        "installed_python_small": "installed_python",
        "installed_python_tiny": "installed_python",
    }
    assert run.data.source == shared.get(name, name)


def test_a_scale_keeps_the_overrides_of_the_command_line(tiny):
    study = loopscale.compose([*tiny, "sweep.scales=[looped_40k,looped_150k]", "model.injection=add"])
    assert [run.model.injection for run in study.runs.values()] == ["add", "add"]
    assert [run.scale for run in study.runs.values()] == ["looped_40k", "looped_150k"]


def test_a_choice_can_be_overridden_from_the_command_line_after_the_sweep():
    (run,) = loopscale.compose(["sweep=demo", "model=looped_1m", "schedule=cosine"]).runs.values()
    assert run.scale == "looped_1m" and run.schedule.shape == "cosine"


def test_numbers_in_scientific_notation_stay_numbers():
    (run,) = loopscale.compose(["budget_flops=2.5e11", "tokens=null"]).runs.values()
    assert run.budget_flops == 2.5e11


def test_lists_need_no_brackets():
    plain, bracketed = (loopscale.compose(["sweep=demo", f"sweep.seeds={text}"]) for text in ("1,2", "[1,2]"))
    assert plain == bracketed and plain.sweep.seeds == [1, 2]


def test_a_study_is_immutable():
    study = loopscale.compose(["sweep=demo"])
    with pytest.raises(AttributeError):
        study.root = "elsewhere"  # type: ignore[misc]


def test_a_group_where_a_value_belongs_is_refused():
    with pytest.raises(ConfigError, match="training=5: must be a group of keys"):
        loopscale.compose(["training=5"])


@pytest.mark.parametrize("prompt", ["def main(", "x = 1", "it's", "a,b{c}[d]", "${x}", "end\\", "a\\'b"])
def test_a_prompt_is_taken_as_it_is_written(prompt):
    settings = compose_table("generate", ["checkpoint=a", f"prompt={prompt}"])
    assert settings.prompt == prompt


@pytest.mark.parametrize("name", ["points (1).csv", "[x].csv", "~x.csv", "$x ${y}.csv", "1e5"])
def test_a_path_and_a_column_are_taken_as_they_are_written(name):
    settings = compose_table("fit", [f"data={name}", f"root={name}", f"columns.loss={name}"])
    assert [settings.data, settings.root, settings.columns["loss"]] == [name, name, name]


@pytest.mark.parametrize("run", ["8564e968", "39488711", "00012345"])
@pytest.mark.parametrize("command", ["status", "retry", "eval", "sync"])
def test_an_id_that_looks_like_a_number_is_text(command, run):
    assert compose_table(command, ["sweep=a", f"run={run}"]).run == run


def test_a_path_is_taken_as_it_is_written_in_every_command_that_takes_one():
    name = "it's {a}=b (1), c.csv"
    for command in ("report", "compare", "status", "cancel", "retry", "sync"):
        assert compose_table(command, ["sweep=a", f"root={name}"]).root == name
    assert compose_table("collect", ["sweep=a", f"also={name}"]).also == name.split(",")
    exported = compose_table("export", [f"checkpoint={name}", f"folder={name}", f"cache={name}"])
    assert [exported.checkpoint, exported.folder, exported.cache] == [name, name, name]
    assert compose_table("generate", [f"checkpoint={name}", "prompt=x"]).checkpoint == name
    scored = compose_table("eval", [f"run={name}", "tasks=core", f"bundle={name}"])
    assert [scored.run, scored.bundle] == [name, name]
    study = loopscale.compose(["data=text", f"path={name}", f"root={name}", f"cache={name}"])
    assert [study.root, study.cache, study.runs["looped_90k"].data.path] == [name, name, name]
    assert multirun(["path=a (1).txt,b.txt"]) == [["path=a (1).txt"], ["path=b.txt"]]


def test_null_still_means_none_and_a_column_may_hold_any_signs():
    assert compose_table("fit", ["data=null"]).data is None
    column = "val/loss (nats), last = final"
    assert compose_table("fit", [f"columns.loss={column}"]).columns == {"loss": column}


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/absolute",
        "a\\b",
        "a|b",
        "a,b",
        "%j",
        ".hidden",
        "-option",
        " blank",
        "blank ",
        "two\nlines",
        "",
    ],
)
def test_a_sweep_is_not_called_by_what_leads_elsewhere(name):
    with pytest.raises(ConfigError, match=r"^sweep\.name=.* becomes a folder and a job's name: it may not"):
        loopscale.compose(["sweep=demo", f"sweep.name={name}" if name else "sweep.name=''"])


@pytest.mark.parametrize("name", ["a b", "it's", "größe", "x$(id)", "a=b", "v1.2-c", "[1]"])
def test_other_letters_and_signs_are_taken_as_they_are(name):
    assert loopscale.compose(["sweep=demo", f"sweep.name={name}"]).sweep.name == name
