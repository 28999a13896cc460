"""Every shipped configuration composes and passes the checks."""

from __future__ import annotations

import pytest

import loopscale
from model.config_validation import ConfigError
from sweeps.config.compose import compose_table
from tests.shipped import SHIPPED


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={name}"
        for group in ("model", "optimizer", "schedule", "logger", "cluster", "retry")
        for name in SHIPPED[group]
    ],
)
def test_every_choice_of_a_group_composes(override):
    assert len(loopscale.compose([override]).runs) == 1


SWEEPS = [name for name in SHIPPED["sweep"] if name not in ("none", "study_base")]  # which have no name


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_composes_and_has_its_own_name(name):
    assert loopscale.compose([f"sweep={name}", "path=somewhere"]).sweep.name == name


@pytest.mark.parametrize("name", SHIPPED["data"])
def test_every_data_set_composes(name):
    named = ["data.repository=org/set", "data.max_tokens=100_000_000"] if name == "huggingface" else []
    (run,) = loopscale.compose([f"data={name}", "path=somewhere", *named]).runs.values()
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
