"""What the report of a launched sweep names as the next command."""

from __future__ import annotations

import json
import shlex

import pytest

import loopscale
from sweeps.cli.after_report import after_report
from sweeps.config.commands import CompareConfig
from sweeps.launch.launch import write_ledger


def laws(exponent, refusal):
    optima = [{"refusal": refusal}] * 2
    estimator = {"laws": {"mean_recurrence": {"exponent": exponent}}, "optima": {"mean_recurrence": optima}}
    return json.dumps({"groups": [{"budgets_flops": [1e12, 2e12], "estimators": [estimator]}]})


@pytest.mark.parametrize(
    ("exponent", "refusal", "more"),
    [
        (0.5, "", "suggest=8"),
        (
            None,
            "the minimum lies below the swept range, which starts at 2",
            "sweep.budgets_flops=[4e12,8e12]",
        ),
        (
            None,
            "the minimum lies above the swept range, which ends at 8",
            "sweep.budgets_flops=[2.5e11,5e11]",
        ),
    ],
)
def test_a_law_is_narrowed_and_optima_outside_the_grid_are_brought_inside(
    tiny_study, tmp_path, exponent, refusal, more
):
    study = tiny_study()
    folder = tmp_path / "runs" / write_ledger(study).name
    (folder / "laws.json").write_text(laws(exponent, refusal))
    *_, line = after_report(CompareConfig(sweep="tiny", root=str(tmp_path / "runs")))
    words = shlex.split(line)
    assert words[:3] == ["next:", "loopscale", "plan"] and more in words
    assert f"root={tmp_path / 'runs'}" in words
    assert loopscale.compose(words[3:]).sweep.name == "tiny"


def test_other_data_have_no_next_run(tmp_path):
    assert after_report(CompareConfig(sweep="tiny", root=str(tmp_path), data="points.csv")) == []
