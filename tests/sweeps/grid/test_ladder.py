"""The ladder of a sweep: plain transformers beside looped runs, at their tokens and at their FLOPs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import loopscale
from harness.training.job import run_job
from model.config import ModelConfig
from model.config_validation import ConfigError
from model.flops import parameter_counts
from sweeps.config.study import LadderConfig
from sweeps.grid.cells import DataFacts, cells
from sweeps.grid.ladder import ladder_models
from sweeps.launch.launch import write_ledger
from sweeps.planning.bound_refusals import ladder_refusals
from sweeps.planning.design import one_group
from sweeps.planning.plan import plan

FACTS = DataFacts(digest="d" * 16, unique_tokens=10**12)
TINY_LADDER = "{at: width, sizes: [1, 2, 3, 4, 5]}"
SUMMARY = Path(__file__).resolve().parents[3] / "docs" / "study" / "summary.json"


def planned(*overrides):
    return cells(loopscale.compose(overrides), lambda _: FACTS)


def rungs(solved):
    return [cell.run for cell in solved if cell.run.model.kind == "transformer"]


def test_the_sizes_at_the_papers_depth_hold_its_transformers():
    for sweep, scale, printed in (
        ("headline_140m", "transformer_6x768", 143_141_184),
        ("headline_770m", "transformer_18x1280", 773_375_040),
    ):
        solved = planned(f"sweep={sweep}")
        assert all(cell.verdict == "OK" for cell in solved)
        counts = {run.scale: parameter_counts(run.model).total for run in rungs(solved)}
        assert counts[scale] == printed and len(counts) == 6
        own = {f"transformer_{sweep.removeprefix('headline_')}"}
        named = loopscale.compose([f"model={own.pop()}"])
        assert next(iter(named.runs.values())).model in {run.model for run in rungs(solved)}


def test_a_transformer_is_trained_at_the_tokens_and_at_the_flops_of_each_looped_run():
    solved = planned("sweep=headline_tiny")
    looped = [cell.run for cell in solved if cell.run.model.table_kind == "looped"]
    spent = {run.steps * run.batch_tokens * run.nominal_flops_per_token for run in looped}
    tokens = {run.steps * run.batch_tokens for run in looped}
    assert len(spent) == 3 and len(tokens) == 1
    by_name = {}
    for run in rungs(solved):
        by_name.setdefault(run.scale, []).append(run)
    assert list(by_name) == [f"transformer_{layers}x32" for layers in (1, 2, 3, 4, 6, 8)]
    for runs in by_name.values():
        of_a_seed = [run for run in runs if run.seed == 0]
        assert len(of_a_seed) == 4 and len(runs) == 4 * 4
        equal = [run for run in of_a_seed if run.budget_flops is None]
        assert [run.steps * run.batch_tokens for run in equal] == list(tokens)
        budgets = {run.budget_flops for run in of_a_seed} - {None}
        assert sorted(budgets) == pytest.approx(sorted(spent))
        for run in of_a_seed:
            if run.budget_flops:
                step = run.batch_tokens * run.nominal_flops_per_token
                assert 0 <= run.budget_flops - run.steps * step < step + run.nominal_flops_per_token


def test_the_tiny_headline_takes_at_most_three_core_hours():
    found = plan(loopscale.compose(["sweep=headline_tiny"])).totals()
    took = json.loads(SUMMARY.read_text(encoding="utf-8"))["costs"]["headline_tiny"]
    assert found["cells_dropped"] == 0 and took["runs"] == found["cells_ok"]
    assert took["paid_flops"] == pytest.approx(found["remaining_flops"], rel=1e-3)
    assert took["core_hours"] <= 3


def test_a_budget_is_the_ladders_and_seeds_and_rates_of_a_size_are_its_own(tiny):
    grid = ["sweep.name=x", "sweep.mean_recurrences=[2]", "sweep.budgets_flops=[1e9]", "sweep.min_steps=1"]
    solved = planned(
        *tiny,
        *grid,
        "sweep.ladder={at: depth, sizes: [32, 64, 96, 128, 160], equal: [flops], seeds: [4, 5]}",
        "sweep.per_scale={transformer_3x64: {optimizer.muon_learning_rate: 0.5}}",
    )
    found = rungs(solved)
    assert {run.budget_flops for run in found} == {1e9} and len(found) == 10
    assert {run.seed for run in found} == {4, 5}
    assert {run.scale for run in found if run.optimizer.muon_learning_rate == 0.5} == {"transformer_3x64"}
    assert {run.model.width: run.model.heads for run in found}[96] == 3  # heads keep their dimension
    with pytest.raises(ConfigError, match=r"per_scale\.transformer_3x64\.optimizer\.lr: a run has no such"):
        planned(
            *tiny,
            *grid,
            "sweep.ladder={at: depth, sizes: [32, 64, 96, 128, 160]}",
            "sweep.per_scale={transformer_3x64: {optimizer.lr: 0.5}}",
        )


@pytest.mark.parametrize(
    ("ladder", "line"),
    [
        ("{at: depth, sizes: [32, 64, 96]}", r"sweep\.ladder\.sizes"),
        ("{at: height, sizes: [1, 2, 3, 4, 5]}", r"sweep\.ladder\.at=height"),
        ("{at: depth, sizes: [32, 48, 64, 96, 128]}", r"a width of 48 is no multiple of .* 32; try 64"),
    ],
)
def test_a_ladder_that_cannot_be_built_is_refused(tiny_sweep, ladder, line):
    with pytest.raises(ConfigError, match=line):
        planned(*tiny_sweep, f"sweep.ladder={ladder}")


def test_a_ladder_that_loses_sizes_is_said_before_it_is_paid_for(tiny_sweep):
    study = loopscale.compose([*tiny_sweep, f"sweep.ladder={TINY_LADDER}"])
    assert "against=transformer" not in plan(study).summary()
    rows = plan(study).frame.to_dict("records")
    for row in rows:
        if row["scale"] in ("transformer_4x32", "transformer_5x32") and row["tokens"] == 1280:
            row["verdict"] = "DROP"
    (line,) = ladder_refusals(rows, 5)
    assert "It needs 5 sizes of transformers there; 3 of 5 are not dropped" in line


def test_a_design_is_that_of_the_looped_runs_alone():
    grid = ["sweep=demo", "sweep.ladder={at: width, sizes: [1, 2, 3, 4, 5], equal: [flops]}"]
    rows = plan(loopscale.compose(grid)).accepted
    kept = one_group(rows)
    assert set(kept["kind"]) == {"looped", "fixed"}
    assert set(rows["kind"]) == {"looped", "fixed", "transformer"}


def test_settings_of_the_loop_are_not_a_transformers():
    looped = {"width": 64, "heads": 4, "prelude_layers": 1, "core_layers": 1, "coda_layers": 1}
    ladder = LadderConfig(at="depth", sizes=[32, 64, 96, 128, 160])
    several = [
        ladder_models(ModelConfig(**looped, vocabulary_size=256, sequence_length=32, **loop), ladder)
        for loop in ({}, {"injection": "add", "mean_recurrence": 4}, {"readout": False})
    ]
    assert several[0] == several[1] == several[2]
    grouped = ModelConfig(
        **looped, kv_heads=2, mlp_width=96, mlp="swiglu", vocabulary_size=256, sequence_length=32
    )
    wide = ladder_models(grouped, ladder)["transformer_3x128"]
    assert (wide.heads, wide.kv_heads, wide.mlp_width, wide.mlp) == (8, 4, 192, "swiglu")


def test_a_trained_ladder_has_its_multiplier_or_the_reason(tiny, tmp_path):
    grid = ["sweep.name=ladder", "sweep.mean_recurrences=[2]", "sweep.tokens=[2560]", "sweep.min_steps=5"]
    loopscale.data(tiny)
    study = loopscale.compose([*tiny, *grid, "sweep.trunk=false", f"sweep.ladder={TINY_LADDER}"])
    for run in write_ledger(study).nodes(tmp_path / "runs" / "ladder"):
        run.ensure_created()
        assert run_job(run.path, Path(study.cache)) == "done"
    runs, _ = loopscale.collect(["sweep=ladder", tiny[0]])
    plain = runs[runs["kind"] == "transformer"]
    assert len(plain) == 5 and set(plain["status"]) == {"done"}
    assert plain["executed_flops"].to_numpy() == pytest.approx(plain["nominal_flops"].to_numpy(), rel=0.01)
    found = loopscale.compare(["sweep=ladder", tiny[0], "against=transformer", "bootstrap=100"])
    assert [model.kind for model in found.models] == ["fixed", "looped"]
    row = found.models[1].row("loss", "all")
    assert (row.multiplier.value is None) == (row.size.refusal is not None)
    assert found.models[1].ladder == "width" and len(found.models[1].sizes) == 5
