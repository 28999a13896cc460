"""What the report of a launched sweep names as the next command."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex

import pytest

import loopscale
from harness.storage.files import write_json
from sweeps.cli.after_report import after_report
from sweeps.config.commands import CompareConfig
from sweeps.config.study import ListedCells, SweepConfig
from sweeps.launch.launch import write_ledger
from sweeps.planning.known_optima import on_budgets
from sweeps.planning.plan import plan
from sweeps.state.ledger import Ledger
from tests.commands import command


def laws(exponent, refusal):
    optima = [{"refusal": refusal, "value": None}] * 2
    estimator = {"laws": {"mean_recurrence": {"exponent": exponent}}, "optima": {"mean_recurrence": optima}}
    return json.dumps({"groups": [{"budgets_flops": [1e12, 2e12], "estimators": [estimator]}]})


def test_a_law_is_narrowed(tiny_study, tmp_path):
    folder = tmp_path / "runs" / write_ledger(tiny_study()).name
    (folder / "laws.json").write_text(laws(0.5, ""))
    *_, line = after_report(CompareConfig(sweep="tiny", root=str(tmp_path / "runs")))
    words = shlex.split(line)
    assert words[:3] == ["next:", "loopscale", "plan"] and "suggest=8" in words
    assert f"root={tmp_path / 'runs'}" in words
    assert loopscale.compose(words[3:]).sweep.name == "tiny"


def fitted(tmp_path, scale, budgets, side):
    """A sweep of `new`, launched and fitted without a law, as its most optima lie on a side of the grid."""
    loopscale.new(["sweep=mine", f"scale={scale}", f"budgets_flops={budgets}"])
    study = loopscale.compose(["sweep=mine"])
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    ledger = Ledger(
        name="mine",
        run_ids=[],
        cache=study.cache,
        cluster=study.cluster,
        retry=study.retry,
        scales={},
        overrides=study.overrides,
    )
    write_json(folder / "sweep.json", dataclasses.asdict(ledger))
    (folder / "laws.json").write_text(laws(None, f"the minimum lies {side} the swept range"))
    return after_report(CompareConfig(sweep="mine"))


@pytest.mark.parametrize(("side", "factor"), [("below", 4), ("above", 0.25)])
def test_the_proposed_command_plans_the_whole_grid_at_other_budgets(tmp_path, monkeypatch, side, factor):
    monkeypatch.chdir(tmp_path)
    reason, line = fitted(tmp_path, "looped_10m", "5e15,1e16,2e16", side)  # no law of this scale is shipped
    words = shlex.split(line)[3:]
    assert reason.startswith(f"no law: most optima lie {side} the recurrences")
    before, after = loopscale.plan(["sweep=mine"]), loopscale.plan(words)
    price = float(re.search(r"ones \((\S+) FLOPs, \S+ device-hours\)$", reason)[1])
    assert price == pytest.approx(plan(loopscale.compose(words)).totals()["remaining_flops"], rel=0.01)
    cell = ["kind", "mean_recurrence", "seed"]
    assert after["target_flops"].tolist() == (before["target_flops"] * factor).tolist()
    assert after[cell].equals(before[cell])
    assert not any("control" in note for note in plan(loopscale.compose(words)).notes)


def test_new_plan_and_fit_propose_the_same_budgets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sweeps.cli.new.BRIEF", {"studies": 100, "analysts": 1, "bootstrap": 100})
    code, new, _ = command(capsys, "new", "sweep", "mine", "scale=looped_5k", "budgets_flops=1e11,2e11,4e11")
    inside = re.search(r"Three budgets have it inside, such as (.*), for ", new)[1].split(", ")
    assert code == 0 and len(inside) == 3
    _, planned, _ = command(capsys, "plan", "sweep=mine")
    assert "of 3 budgets have their optimum at an edge of µ = 2 to 12 or beyond" in planned
    proposed = re.search(r"Three budgets have it inside, such as ([^:]*): loopscale (plan .*)", planned)
    assert proposed[1].split(", ") == inside
    (tmp_path / "conf" / "sweep" / "mine.yaml").unlink()
    reason, line = fitted(tmp_path, "looped_5k", "1e11,2e11,4e11", "below")
    assert reason.startswith("no law: most optima lie below") and shlex.split(line)[2:] == shlex.split(
        proposed[2]
    )
    better = loopscale.plan(shlex.split(proposed[2])[1:])
    assert sorted(set(better["target_flops"])) == sorted(map(float, inside))
    _, again, _ = command(capsys, *shlex.split(proposed[2]))
    assert "at an edge of µ" not in again and "control" not in again.split("total")[1].split("design")[0]


def test_listed_cells_move_with_the_budget_that_they_are_next_to():
    lengths = {"low": [1e12], "high": [8e12], "beyond": [9e13], "several": [1e12, 2e12, 8e12]}
    cells = {name: ListedCells(mean_recurrences=[4], lengths=each) for name, each in lengths.items()}
    sweep = SweepConfig(name="x", budgets_flops=[1e12, 2e12, 4e12, 8e12], cells=cells)
    assert on_budgets(sweep, [3e11, 6e11]) == [
        "sweep.budgets_flops=[3e11,6e11]",
        "sweep.cells.low.lengths=[3e11]",
        "sweep.cells.high.lengths=[6e11]",
        "sweep.cells.beyond.lengths=[6e11]",
        "sweep.cells.several.lengths=[3e11,6e11]",
    ]


def test_a_grid_whose_minima_are_hidden_gets_more_seeds_and_one_that_is_too_small_its_plan(
    tmp_path, tiny_study
):
    folder = tmp_path / "runs" / write_ledger(tiny_study()).name
    settings = CompareConfig(sweep="tiny", root=str(tmp_path / "runs"))
    hidden = json.loads(laws(None, "the noise leaves open whether there is a minimum"))
    (folder / "laws.json").write_text(json.dumps(hidden))
    assert "the grid is too small" in after_report(settings)[0]  # two budgets
    hidden["groups"][0]["estimators"][0]["optima"]["mean_recurrence"] *= 2
    (folder / "laws.json").write_text(json.dumps(hidden))
    reason, line = after_report(settings)
    assert "try more seeds" in reason and loopscale.compose(shlex.split(line)[3:]).sweep.seeds == [0, 1, 2]


def test_other_data_have_no_next_run(tmp_path):
    assert after_report(CompareConfig(sweep="tiny", root=str(tmp_path), data="points.csv")) == []
