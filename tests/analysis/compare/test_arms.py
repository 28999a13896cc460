"""Arms whose differences are known: losses of a law, of the same law at other FLOPs, and of another phi."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from analysis import FitConfig, TableError
from analysis.compare.arm_differences import mean_difference, paired_cells, phi_difference
from analysis.compare.arms import compare_arms
from analysis.figures.arms import arms_figure
from analysis.tables import arms
from analysis.tables.arms import axes, axis_values, without_axis
from analysis.tables.selection import groups
from tests.analysis.figures import extents
from tests.analysis.synthetic import INSIDE, Truth, study

QUICK = FitConfig(bootstrap=100, validation=False)
SAVED = 1.3
REPLICATES = ((0, 1), (2, 2), (3, 4))


class Saving(Truth):
    """The truth at 1.3 times the tokens: the loss of the reference with 1.3 times the FLOPs."""

    def loss(self, mu, tokens):
        return super().loss(mu, SAVED * np.asarray(tokens, float))


def arms_of(truths, column="injection", noise_nats=0.0, seed=0, **kwargs):
    """The runs of one study per arm, drawn from its truth."""
    tables = []
    for name, truth in truths.items():
        runs = study(truth, **kwargs)[0]
        tables.append(runs.assign(**{column: name, "run_id": runs["run_id"] + f"-{name}"}))
    runs = pd.concat(tables, ignore_index=True)
    runs["val_loss_nats"] += noise_nats * np.random.default_rng(seed).standard_normal(len(runs))
    return runs


TWO = {"diagonal": Truth(), "linear": Saving()}


def test_the_differences_of_noise_free_arms_are_those_of_their_laws():
    comparison = compare_arms(arms_of(TWO), "injection", QUICK, "diagonal")
    (pair,) = comparison.pairs
    (group,) = pair.groups
    assert (pair.arm, pair.reference) == ("injection=linear", "injection=diagonal")
    one, other, gaps = Truth(), Saving(), []
    for row in group.budgets:
        tokens = {mu: row.budget_flops / one.flops(mu, np.ceil(mu / 2)) for mu in (1, 2, 4, 6, 8, 10, 12)}
        mine = [float(other.loss(mu, d) - one.loss(mu, d)) for mu, d in tokens.items()]
        assert row.cells == 7 and row.nats.value == pytest.approx(np.mean(mine), abs=1e-8)
        best = [
            float(truth.loss(mu, row.budget_flops / truth.flops(mu)))
            for truth in (other, one)
            for mu in (truth.optimum(row.budget_flops),)
        ]
        assert row.optimum_nats.value == pytest.approx(best[0] - best[1], abs=2e-6)
        gaps += mine
    assert group.nats.value == pytest.approx(np.mean(gaps), abs=1e-8)
    assert group.multiplier.value == pytest.approx(SAVED, rel=3e-3)
    assert group.budgets[-1].multiplier.refusal.endswith("lies below the reference's at its budgets")
    logs = np.log(INSIDE)
    slopes = [np.polyfit(logs, np.log([truth.optimum(c) for c in INSIDE]), 1)[0] for truth in (other, one)]
    assert group.exponents["mean_recurrence"].value == pytest.approx(slopes[0] - slopes[1], abs=1e-4)


def test_an_arm_that_differs_by_a_constant_has_that_difference_everywhere():
    runs = arms_of({"diagonal": Truth(), "add": Truth(e=2.662 + 0.018)}, noise_nats=0.0)
    (group,) = compare_arms(runs, "model.injection", QUICK, "diagonal").pairs[0].groups
    for row in group.budgets:
        assert row.nats.value == pytest.approx(0.018, abs=1e-9)
        assert row.optimum_nats.value == pytest.approx(0.018, abs=1e-6)
    assert group.exponents["mean_recurrence"].value == pytest.approx(0, abs=1e-6)
    assert group.multiplier.value < 1


def test_intervals_of_a_noisy_study_hold_the_truth_and_exclude_none_where_it_is_large():
    runs = arms_of(TWO, noise_nats=0.003, seed=4, replicates=REPLICATES)
    (group,) = compare_arms(runs, "injection", QUICK, "diagonal").pairs[0].groups
    assert group.noise.source == "replicate seeds" and group.noise.degrees_of_freedom == 12
    assert group.nats.high < 0
    assert 1 < group.multiplier.low <= SAVED <= group.multiplier.high
    assert group.exponents["mean_recurrence"].low < 0 < group.exponents["mean_recurrence"].high


def test_the_mean_over_cells_has_students_interval_at_the_noise_of_seeds():
    runs = arms_of(TWO, noise_nats=0.003, seed=4, replicates=REPLICATES)
    comparison = compare_arms(runs, "injection", QUICK, "diagonal")
    (group,) = comparison.pairs[0].groups
    sizes = np.array([3] * 3 + [1] * 32)  # seeds of the 35 cells, alike in both arms
    error = group.noise.sd_nats * np.sqrt(2 * (1 / sizes).sum()) / 35
    assert group.nats.high - group.nats.value == pytest.approx(student.ppf(0.975, 12) * error)


def test_runs_of_one_trunk_have_their_noise_in_common():
    runs = arms_of(TWO, noise_nats=0.003, fixed=False)
    runs["trunk_id"] = runs["injection"] + runs["mean_recurrence"].astype(str)
    arm, base = (runs[runs["injection"] == name] for name in ("linear", "diagonal"))
    (group,) = compare_arms(runs, "injection", QUICK, "diagonal").pairs[0].groups
    both = paired_cells(arm, base)
    assert both["block"].nunique() == 6 and len(both) == 30
    found = mean_difference(both, group.noise, QUICK)
    # Six blocks of five cells that move together: as six independent cells.
    error = group.noise.sd_nats * np.sqrt(2 / 6)
    half = student.ppf(0.975, group.noise.degrees_of_freedom) * error
    assert found.high - found.value == pytest.approx(half)


def test_two_sweeps_are_arms_whatever_else_differs():
    runs = arms_of({"first": Truth(), "second": Saving()}, column="sweep")
    runs.loc[runs["sweep"] == "second", ["injection", "adamw_learning_rate"]] = ["linear", 4e-3]
    (pair,) = compare_arms(runs, "sweep", QUICK, "first").pairs
    assert pair.groups[0].multiplier.value == pytest.approx(SAVED, rel=3e-3)
    mixed = runs.copy()
    mixed.loc[mixed.index[::2], "cooldown_fraction"] = 0.2
    with pytest.raises(TableError, match="arms=sweep: first has 2 recipes of 140M"):
        compare_arms(mixed, "sweep", QUICK)


def test_a_setting_of_the_recipe_is_an_axis():
    runs = arms_of({"a": Truth(), "b": Saving()}, column="code_version")
    runs["recipe"] = np.where(runs["code_version"] == "b", "model.heads=2 model.lanes=4", "model.heads=2")
    assert axes(runs) == ["model.lanes"]
    assert set(axis_values(runs, "lanes")) == {"4", "default"}
    assert len(groups(runs)) == 2 and len(groups(without_axis(runs, "lanes"))) == 1
    (pair,) = compare_arms(runs, "lanes", QUICK, "default").pairs
    assert pair.arm == "lanes=4" and pair.groups[0].nats.value < 0


def test_the_axes_of_many_runs_cost_no_more_readings_of_a_recipe_than_those_of_few(monkeypatch):
    """A sweep of ten thousand runs has few recipes."""
    runs = arms_of({"a": Truth(), "b": Saving()}, column="code_version")
    runs["recipe"] = np.where(runs["code_version"] == "b", "model.heads=2 model.lanes=4", "model.heads=2")
    read = []
    settings = arms._settings
    monkeypatch.setattr(arms, "_settings", lambda text: read.append(text) or settings(text))
    counts = []
    for repeats in (1, 20):
        many = pd.concat([runs.assign(seed=seed) for seed in range(repeats)])
        read.clear()
        assert axes(many) == ["model.lanes"]
        counts.append(len(read))
    assert counts[0] == counts[1] < 50


@pytest.mark.parametrize(
    ("axis", "reference", "reason"),
    [
        (
            "lanes",
            None,
            "arms=lanes: neither a column nor a setting of these runs; axes that vary: injection",
        ),
        ("optimizer", None, "arms=optimizer: all runs have optimizer=muon_adamw; two arms are needed"),
        ("injection", "add", "reference=add: injection has the values diagonal, linear"),
    ],
)
def test_what_is_no_axis_is_refused_in_one_line(axis, reference, reason):
    with pytest.raises(TableError, match=reason):
        compare_arms(arms_of(TWO, budgets=INSIDE[:1]), axis, QUICK, reference)


def test_what_the_runs_do_not_carry_is_refused_with_the_reason():
    runs = arms_of(TWO, budgets=INSIDE[:2])
    apart = runs[(runs["injection"] == "diagonal") == (runs["target_flops"] == INSIDE[0])]
    (group,) = compare_arms(apart, "injection", QUICK, "diagonal").pairs[0].groups
    assert group.nats.refusal.startswith("the arms share no cell")
    assert group.exponents["tokens"].refusal.startswith("the arm has no law: 1 budget is not enough")
    assert "the reference has 1 accepted optima" in group.budgets[-1].multiplier.refusal
    alone = compare_arms(runs, "injection", QUICK, "diagonal")
    assert alone.pairs[0].phi["paper"].refusal.endswith("one size alone, in which phi and alpha trade off")


def iso_depth(phi, noise_nats=0.0, seed=0):
    """Points of the iso-depth law: three widths by four recurrences of 16 layers, five budgets."""
    rows = []
    for width in (384, 640, 1024):
        for r in (1, 2, 4, 8):
            once, looped = 12 * width**2 * 4, 12 * width**2 * 16 / r
            for budget in np.geomspace(4.64e17, 2.15e19, 5):
                tokens = budget / (6 * (once + r * looped))
                size = once + r**phi * looped
                loss = 1.57 + 30 * size**-0.199 + 1100 * tokens**-0.369
                rows.append((f"w{width}-r{r}", r, budget, once, looped, tokens, loss))
    names = ["group", "recurrence", "budget_flops", "params_once", "params_looped", "tokens", "loss"]
    points = pd.DataFrame(rows, columns=names)
    points["loss"] += noise_nats * np.random.default_rng(seed).standard_normal(len(points))
    return points


def test_the_difference_of_phi_is_that_of_the_laws():
    config = replace(QUICK, bootstrap=100)
    found = phi_difference(iso_depth(0.65), iso_depth(0.46), config)
    assert found.value == pytest.approx(0.19, abs=1e-6)
    noisy = phi_difference(iso_depth(0.65, 0.005, 1), iso_depth(0.46, 0.005, 2), config)
    assert 0 < noisy.low < 0.19 < noisy.high
    none = phi_difference(iso_depth(0.46, 0.005, 3), iso_depth(0.46, 0.005, 4), config)
    assert none.low < 0 < none.high


def test_shuffled_rows_give_the_same_bytes():
    runs = arms_of(TWO, noise_nats=0.003, budgets=INSIDE[:3], fixed=False)
    config = replace(QUICK, bootstrap=100)
    shuffled = compare_arms(runs.sample(frac=1, random_state=0), "injection", config)
    assert shuffled.to_json() == compare_arms(runs, "injection", config).to_json()


def test_the_figure_of_arms_has_no_overlap():
    drawn = arms_figure(compare_arms(arms_of(TWO, budgets=INSIDE[:3]), "injection", QUICK))
    assert extents.problems_of([drawn]) == []
    assert len(drawn.tables["differences"]) == 3
