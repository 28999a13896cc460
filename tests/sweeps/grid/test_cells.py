"""Grids: which cells there are, what they cost, why some are dropped."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pandas as pd
import pytest

import loopscale
from model.config_validation import ConfigError
from model.flops import parameter_counts
from sweeps.config.study import StudyConfig
from sweeps.grid.cells import DataFacts, cells
from sweeps.planning.plan import plan

FACTS = DataFacts(digest="d" * 16, unique_tokens=10**12)


@functools.cache
def composed(*overrides):
    return loopscale.compose(overrides)


def planned(overrides, facts=FACTS):
    return cells(composed(*overrides), lambda _: facts)


def depths(solved):
    return [(cell.run.model.mean_recurrence, cell.run.model.depth_sampling) for cell in solved]


@pytest.mark.parametrize(("sweep", "looped", "controls"), [("isoflop_140m", 36, 6), ("isoflop_370m", 18, 3)])
def test_the_papers_grids(sweep, looped, controls):
    solved = planned([f"sweep={sweep}"])
    kinds = [cell.run.model.table_kind for cell in solved]
    assert (
        kinds.count("looped") == looped
        and kinds.count("fixed") == controls
        and len(kinds) == looped + controls
    )
    assert all(cell.verdict == "OK" and cell.run.batch_tokens == 524_288 for cell in solved)


# Tokens in units of 1e9 as tabulated for the released accounting.
PUBLISHED_TOKENS = {
    ("isoflop_140m", 1e18): [1.151, 0.968, 0.836, 0.735, 0.656, 0.593, 1.207],
    ("isoflop_140m", 2e18): [2.301, 1.937, 1.672, 1.471, 1.313, 1.185, 2.415],
    ("isoflop_140m", 16e18): [18.41, 15.49, 13.38, 11.77, 10.50, 9.484, 19.32],
    ("isoflop_370m", 64e18): [24.97, 20.65, 17.60, 15.33, 13.59, 12.20, 26.35],
    ("isoflop_140m", 4e18): [4.603, 3.873, 3.344, 2.941, 2.626, 2.371, 4.830],
    ("isoflop_140m", 8e18): [9.205, 7.747, 6.687, 5.883, 5.251, 4.742, 9.660],
    ("isoflop_140m", 64e18): [73.64, 61.97, 53.50, 47.06, 42.01, 37.94, 77.28],
    ("isoflop_370m", 32e18): [12.49, 10.32, 8.799, 7.667, 6.793, 6.098, 13.18],
    ("isoflop_370m", 128e18): [49.94, 41.29, 35.20, 30.67, 27.17, 24.39, 52.70],
}


def test_tokens_equal_the_published_table():
    for (sweep, budget), expected in PUBLISHED_TOKENS.items():
        solved = [
            c for c in planned([f"sweep={sweep}", "accounting=released"]) if c.run.budget_flops == budget
        ]
        tokens = [cell.run.steps * cell.run.batch_tokens / 1e9 for cell in solved]
        # The table rounds the tokens that the budget buys to four digits; a run trains whole steps of them.
        for have, want in zip(tokens, expected, strict=True):
            assert want * (1 - 5e-4) - 524_288 / 1e9 <= have <= want * (1 + 5e-4), (sweep, budget, want)


def test_the_control_is_exactly_one_loop_unless_the_published_one_is_asked_for(tiny_sweep):
    assert depths(planned(tiny_sweep))[:3] == [(2, "poisson"), (4, "poisson"), (1, "fixed")]
    assert depths(planned([*tiny_sweep, "sweep.control=poisson"]))[:3] == [
        (2, "poisson"),
        (4, "poisson"),
        (1, "poisson"),
    ]
    assert len(planned([*tiny_sweep, "sweep.control=none"])) == 4


def test_listed_cells_join_the_product_once(tiny_sweep):
    more = "+sweep.cells.noise={mean_recurrences: [2], lengths: [1280], seeds: [0, 1, 2]}"
    solved = planned([*tiny_sweep, more])
    assert len(solved) == 6 + 2
    assert [(cell.run.seed, cell.run.steps) for cell in solved[6:]] == [(1, 10), (2, 10)]


def test_null_takes_the_listed_cells_away():
    with_cells, without = (loopscale.plan(["sweep=demo", *more]) for more in ([], ["sweep.cells=null"]))
    assert 0 < len(without) < len(with_cells) and set(without["seed"]) == {0} != set(with_cells["seed"])


def test_zipped_cells_go_in_step(tiny_sweep):
    lists = "mean_recurrences: [2, 6, 8], lengths: [1280, 2560, 3840], seeds: [5]"
    more = f"+sweep.cells.line={{zipped: true, {lists}}}"
    solved = planned([*tiny_sweep, more])[6:]
    assert [(c.run.model.mean_recurrence, c.run.steps, c.run.seed) for c in solved] == [
        (2, 10, 5),
        (6, 20, 5),
        (8, 30, 5),
    ]
    uneven = "+sweep.cells.line={zipped: true, mean_recurrences: [2, 6], lengths: [1280, 2560, 3840]}"
    with pytest.raises(ConfigError, match="zipped lists differ in length"):
        planned([*tiny_sweep, uneven])


def test_a_grid_over_scale_and_tokens_per_parameter():
    solved = planned(["sweep=scale_by_tokens"])
    ratios = [
        cell.run.steps * cell.run.batch_tokens / parameter_counts(cell.run.model).total for cell in solved
    ]
    assert len(solved) == 3 * 5 and {cell.run.scale for cell in solved} == {
        "looped_40k",
        "looped_90k",
        "looped_150k",
    }
    assert ratios == pytest.approx([5, 10, 20, 40, 80] * 3, rel=0.05)


def test_plain_transformers_make_one_cell_each():
    grid = ["sweep.name=x", "sweep.scales=[transformer_140m,transformer_370m]", "sweep.tokens=[1e9,2e9]"]
    solved = planned([*grid, "data=fineweb_edu"])
    assert [cell.run.model.table_kind for cell in solved] == ["transformer"] * 4


def test_a_cell_that_does_not_fit_the_device_is_dropped():
    frame = loopscale.plan(["sweep=isoflop_140m", "cluster=slurm_h100", "cluster.device_memory_gb=20"])
    dropped = frame["verdict"] == "DROP"
    assert dropped.any() and (dropped == (frame["memory_bytes"] > 20e9)).all()
    assert frame["reason"][dropped].str.contains("GB, cluster.device_memory_gb=20: lower").all()


def test_a_micro_batch_that_is_not_set_is_judged_at_what_fits():
    def memory(study, micro_batch):
        runs = {
            scale: replace(run, training=replace(run.training, micro_batch=micro_batch))
            for scale, run in study.runs.items()
        }
        return loopscale.plan(replace(study, runs=runs))["memory_bytes"]

    for sweep, world in (("isoflop_140m", 1), ("isoflop_370m", 4)):
        study = loopscale.compose([f"sweep={sweep}", "cluster=slurm_h100", "training.micro_batch=null"])
        frame = loopscale.plan(study)
        assert (frame["verdict"] == "OK").all() and frame["memory_bytes"].between(1e9, 80e9).all()
        # Halved from a device's share of 256 sequences, the next size up would not have fitted.
        sizes = [memory(study, 2**k) for k in range(9)]
        fitting = pd.concat([size.where(size <= 80e9) for size in sizes[: 9 - (world == 4) * 2]], axis=1).max(
            axis=1
        )
        assert (frame["memory_bytes"] == fitting).all()
    frame = loopscale.plan(replace(study, cluster=replace(study.cluster, device_memory_gb=1)))
    assert frame["reason"].str.contains("take more devices").all()


def test_the_papers_grids_are_priced_for_an_h100():
    priced = plan(loopscale.compose(["sweep=isoflop_140m", "cluster=slurm_h100"]))
    frame = priced.frame
    # All cells but the deepest cost their budget, to within one step: FLOPs / (9.89e14 x 0.4) / 3600.
    ideal = frame["target_flops"] / (9.89e14 * 0.4) / 3600
    assert (frame["hours"] <= ideal).all() and (frame["hours"] > 0.99 * ideal).all()
    assert priced.hours_source.startswith("estimated from peak") and (frame["devices"] == 1).all()
    remedy = "; loopscale plan sweep=isoflop_140m cluster=slurm_h100 calibrate=true measures it"
    assert priced.hours_source.endswith(f"not measured{remedy}")
    four = loopscale.plan(["sweep=isoflop_370m", "cluster=slurm_h100"])
    assert (four["devices"] == 4).all() and (four["hours"] <= four["target_flops"] / 3.956e14 / 3600).all()


def test_any_key_is_an_axis(tiny_sweep, capsys):
    solved = planned(
        [
            *tiny_sweep,
            "sweep.axes={optimizer.muon_learning_rate: [0.01, 0.02], model.injection: [diagonal, add]}",
        ]
    )
    assert len(solved) == 6 * 4 and len({cell.run_id for cell in solved}) == 24
    assert {cell.run.optimizer.muon_learning_rate for cell in solved} == {0.01, 0.02}
    axes = "sweep.axes={optimizer.muon_learning_rate: [0.01, 0.02]}"
    frame = loopscale.plan([*tiny_sweep, axes])
    assert frame.groupby("optimizer.muon_learning_rate").size().to_dict() == {0.01: 6, 0.02: 6}
    loopscale.main(["plan", *tiny_sweep, axes])
    assert capsys.readouterr().out.split()[0] == "muon_learning_rate"
    recipes = loopscale.plan([*tiny_sweep, "sweep.axes={training.gradient_clip: [0.5, 1.0]}"])["recipe"]
    (own,) = {text.replace(" training.gradient_clip=0.5", "") for text in recipes}
    assert recipes.value_counts().to_dict() == {own: 6, f"{own} training.gradient_clip=0.5": 6}
    with pytest.raises(ConfigError, match=r"sweep\.axes\.optimizer\.lr: a run has no such key"):
        planned([*tiny_sweep, "sweep.axes={optimizer.lr: [1]}"])


def test_several_scales_with_settings_of_their_own(tiny_sweep):
    solved = planned(
        [
            *tiny_sweep,
            "sweep.scales=[looped_40k,looped_90k]",
            "sweep.per_scale={looped_90k: {optimizer.muon_learning_rate: 0.5}}",
        ]
    )
    rates = {cell.run.scale: cell.run.optimizer.muon_learning_rate for cell in solved}
    assert rates["looped_90k"] == 0.5 and rates["looped_40k"] != 0.5
    widths = {cell.run.model.width for cell in solved}
    assert len(widths) == 2


def test_dropped_cells_keep_their_reason(tiny_sweep):
    solved = planned(
        [*tiny_sweep, "sweep.tokens=[1,640,12800]", "sweep.min_steps=20"],
        DataFacts(digest="d", unique_tokens=9_000),
    )
    reasons = [cell.reason for cell in solved]
    assert all(cell.verdict == "DROP" for cell in solved)
    assert "too small for one step" in reasons[0]
    assert reasons[3] == "5 steps, fewer than sweep.min_steps=20"
    assert reasons[6] == "1.42 epochs of 9e+03 tokens, sweep.max_epochs=1"


def test_a_truncated_curve_is_flagged(tiny_sweep):
    overrides = [
        *[t for t in tiny_sweep if "sweep.tokens" not in t],
        "sweep.budgets_flops=[6e8]",
        "sweep.min_steps=9",
        "sweep.mean_recurrences=[2,4,12]",
    ]
    truncated = plan(loopscale.compose(overrides))
    verdicts = list(truncated.frame["verdict"])
    assert verdicts == ["OK", "OK", "DROP", "OK"], truncated.frame[["steps", "reason"]]
    assert truncated.notes[0] == (
        "looped_40k at 6e+08 FLOPs loses its high recurrences: its minimum will be biased"
    )


def test_a_grid_without_lengths_or_with_two_kinds_is_refused(tiny):
    with pytest.raises(ConfigError, match="no sweep chosen"):
        planned([*tiny])
    with pytest.raises(ConfigError, match="give exactly one of budgets_flops, tokens, tokens_per_param"):
        planned([*tiny, "sweep.name=x", "sweep.mean_recurrences=[2]"])
    with pytest.raises(ConfigError, match="give exactly one of"):
        planned([*tiny, "sweep.name=x", "sweep.tokens=[1e4]", "sweep.budgets_flops=[1e9]"])


def test_plan_prints_machine_readable_json_and_nothing_else(capsys, tiny_sweep):
    loopscale.main(["plan", *tiny_sweep, "format=json"])
    out, err = capsys.readouterr()
    parsed = json.loads(out)
    assert len(parsed["rows"]) == 6 and parsed["totals"]["cells_ok"] == 6 and err == ""
    assert parsed["rows"][0]["verdict"] == "OK"


def test_plan_of_a_composed_study_equals_plan_of_its_overrides(tiny_sweep):
    study = loopscale.compose(tiny_sweep)
    assert isinstance(study, StudyConfig)
    assert loopscale.plan(study).equals(loopscale.plan(tiny_sweep))
