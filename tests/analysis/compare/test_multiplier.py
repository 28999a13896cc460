"""The size of the transformer of equal quality, against laws whose equal sizes are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from analysis import FitConfig
from analysis.compare.equal_size import gap_share
from analysis.compare.ladder import COUNTINGS
from analysis.compare.multiplier import compare_with_transformers
from analysis.compare.multiplier_comparison import share_text
from analysis.figures.multiplier import multiplier_figures
from analysis.published.comparison import size_equivalents
from analysis.stats.bootstrap import REPLICATES, NoiseLevel
from analysis.tables.schema import TableError
from tests.analysis.figures import extents
from tests.analysis.ladders import Ladder, ladder_runs

QUICK = FitConfig(bootstrap=100)
TRUTH, TOKENS = Ladder(), 1.12e10
NOISE = NoiseLevel(sd_nats=0.01, degrees_of_freedom=4, source=REPLICATES)


def worth(runs, config=QUICK, ladder=None):
    (model,) = compare_with_transformers(runs, config, ladder).models
    return model


def test_the_multiplier_is_that_of_the_law_under_every_counting():
    model = worth(ladder_runs())
    flops = model.flops
    assert flops == pytest.approx(1.7 * TRUTH.flops(768) * TOKENS, rel=1e-6)
    for counting in COUNTINGS:
        # The truth is a power law of the size without embeddings; of other countings it is nearly one.
        close = 1e-4 if counting == "non_embedding" else 4e-3
        row = model.row("loss", counting)
        assert row.multiplier.value == pytest.approx(TRUTH.k(counting, TOKENS), rel=close)
        assert row.params == pytest.approx(TRUTH.size(768, counting), rel=1e-6)
        own = TRUTH.flops(TRUTH.equal_width(TOKENS))
        assert row.flops_ratio.value == pytest.approx(1.7 * TRUTH.flops(768) / own, rel=close)
        # FLOPs per token between two sizes are interpolated, and the curve is flat near its minimum.
        equal = model.row("loss", counting, "FLOPs").multiplier.value
        assert equal == pytest.approx(TRUTH.k(counting, TOKENS, flops), rel=1e-2)
    assert TRUTH.k("non_embedding", TOKENS) == pytest.approx(2.0)


def test_a_score_that_is_linear_in_the_loss_has_the_same_equal():
    model = worth(ladder_runs(scores=True))
    for equal in ("tokens", "FLOPs"):
        loss, core = (model.row(name, "non_embedding", equal).size.value for name in ("loss", "Core"))
        assert core == pytest.approx(loss, rel=1e-3)


def test_the_interval_holds_the_truth_and_widens_with_the_noise():
    widths = []
    for noise in (0.002, 0.006):
        row = worth(ladder_runs(noise_nats=noise, seed=3, seeds=(0, 1))).row("loss", "non_embedding")
        assert row.multiplier.low < 2.0 < row.multiplier.high
        assert row.noise.source == REPLICATES
        widths.append(np.log(row.multiplier.high / row.multiplier.low))
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.15)


def test_without_replicates_the_noise_is_that_of_the_ladder_about_its_law():
    runs = ladder_runs(noise_nats=0.004, seed=1, looped_seeds=(0,), equal_flops=False)
    row = worth(runs).row("loss", "non_embedding")
    assert row.noise.source.startswith("residuals of this fit")
    assert row.noise.degrees_of_freedom == 6 - 3


def test_a_loss_outside_the_ladder_is_refused_with_the_end_that_it_passed():
    below = worth(ladder_runs(replace(TRUTH, worth=9.0))).row("loss", "all")
    assert below.size.value is None and below.multiplier.value is None
    assert "is below the ladder, whose least is 2.7" in below.size.refusal
    above = worth(ladder_runs(replace(TRUTH, worth=0.3))).row("loss", "all")
    assert "is above the ladder, whose smallest model of" in above.size.refusal


def test_an_end_that_the_ladder_does_not_reject_is_open():
    near = worth(ladder_runs(replace(TRUTH, worth=7.05), noise_nats=0.01, seed=1)).row(
        "loss", "non_embedding"
    )
    assert near.size.value is not None and near.size.low is not None
    assert near.size.high is None


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        (ladder_runs(widths=(512, 768, 1024, 1280)), "the ladder has 4 sizes at 1.12e+10 tokens, at least 5"),
        (ladder_runs(equal_flops=False), "trained on one number of tokens: sweep.ladder.equal"),
    ],
)
def test_what_the_ladder_does_not_carry_is_refused(runs, reason):
    refusals = [row.size.refusal or "" for row in worth(runs).rows]
    assert any(reason in refusal for refusal in refusals)


def test_two_recipes_of_one_size_are_refused():
    runs = ladder_runs(seeds=(0, 1))
    second = (runs["kind"] == "transformer") & (runs["seed"] == 1)
    runs.loc[second, "muon_learning_rate"] *= 2
    assert "several recipes of one size" in worth(runs).row("loss", "all").size.refusal


def test_runs_of_other_data_or_batch_are_no_rungs():
    runs = ladder_runs()
    other = (runs["kind"] == "transformer") & (runs["width"] > 1024)
    runs.loc[other, "batch_tokens"] = 65536
    assert "the ladder has 3 sizes" in worth(runs).row("loss", "all").size.refusal


def test_ladders_of_depth_and_width_are_compared_apart():
    deep = ladder_runs()
    wide = deep[deep["kind"] == "transformer"].copy()
    wide["run_id"] += "-w"
    wide["prelude_layers"] = [2 + place // 2 for place in range(len(wide))]
    wide["width"] = 768
    runs = deep.merge(wide, how="outer")
    choices = [model.ladder for model in compare_with_transformers(runs, QUICK).models]
    assert choices == ["depth", "width"]
    assert worth(runs, ladder="width").ladder == "width"


def test_tables_without_a_ladder_are_refused():
    runs = ladder_runs()
    with pytest.raises(TableError, match=r"no run is a plain transformer; sweep\.ladder adds them"):
        compare_with_transformers(runs[runs["kind"] == "looped"], QUICK)
    with pytest.raises(TableError, match="none is looped"):
        compare_with_transformers(runs[runs["kind"] != "looped"], QUICK)


def test_the_share_of_the_gap_is_the_papers():
    """Core of Table 2: transformer, the next larger one, looped; 87.5 % at 770M."""
    for numbers, share in (
        ((13.00, 17.46, 14.04), 0.233),
        ((17.46, 22.42, 20.00), 0.512),
        ((22.42, 25.45, 25.07), 0.875),
    ):
        falling = [100 - score for score in numbers]
        assert gap_share(falling, (1, 1, 1), None, QUICK).value == pytest.approx(share, abs=5e-4)
    published = [item.share for item in size_equivalents() if item.measure == "Core"]
    assert published == pytest.approx([0.233, 0.512, 0.875], abs=5e-4)


def test_the_interval_of_a_share_holds_what_students_test_does_not_reject():
    means, runs = (3.2, 3.0, 3.05), (1, 2, 3)
    found = gap_share(means, runs, NOISE, QUICK)
    shares = np.linspace(-3, 5, 200001)
    gap = (means[0] - means[2]) - shares * (means[0] - means[1])
    error = NOISE.sd_nats * np.sqrt((1 - shares) ** 2 / runs[0] + shares**2 / runs[1] + 1 / runs[2])
    kept = shares[np.abs(gap) <= student.ppf(0.975, 4) * error]
    assert (found.low, found.high) == pytest.approx((kept.min(), kept.max()), abs=1e-4)
    unknown = gap_share((3.01, 3.0, 3.005), runs, NOISE, QUICK)
    assert unknown.low is None and unknown.high is None
    assert share_text(unknown) == "50.0 % [open, open]"
    assert "no better" in gap_share((3.0, 3.1, 3.05), runs, NOISE, QUICK).refusal


def test_the_share_lies_between_the_sizes_that_enclose_the_model():
    (gap,) = worth(ladder_runs()).gaps
    assert (gap.smaller, gap.larger) == ("transformer_6x768", "transformer_6x1024")
    losses = [TRUTH.loss(768, TOKENS), TRUTH.loss(1024, TOKENS), TRUTH.looped_loss(TOKENS)]
    share = (losses[0] - losses[2]) / (losses[0] - losses[1])
    assert gap.share.value == pytest.approx(share)
    (none,) = worth(ladder_runs(widths=(1024, 1280, 1536, 2048, 2560))).gaps
    assert "no two sizes" in none.share.refusal


def test_the_share_is_no_mean_over_recipes():
    runs = ladder_runs(equal_flops=False)
    again = runs[runs["width"] == 768]
    again = again[again["kind"] == "transformer"].assign(
        adamw_learning_rate=0.5, val_loss_nats=9.0, run_id="other-rate"
    )
    (gap,) = worth(pd.concat([runs, again], ignore_index=True)).gaps
    assert gap.smaller == "transformer_6x768" and gap.share.value is None
    assert "several recipes of one size" in gap.share.refusal


def test_a_fixed_depth_model_has_rows_of_its_own():
    runs = ladder_runs(looped_seeds=(0, 1))
    runs.loc[runs["run_id"].str.startswith("looped") & (runs["seed"] == 1), ["kind", "mean_recurrence"]] = (
        "fixed",
        1.0,
    )
    models = compare_with_transformers(runs, QUICK).models
    assert [model.kind for model in models] == ["fixed", "looped"]


def test_shuffled_rows_give_the_same_bytes_and_the_result_prints():
    runs = ladder_runs(noise_nats=0.003)
    found = compare_with_transformers(runs, QUICK)
    shuffled = compare_with_transformers(runs.sample(frac=1, random_state=0), QUICK)
    assert found.to_json() == shuffled.to_json()
    frame = found.to_frame().xs("k", level="number")
    assert (frame["low"] < frame["value"]).all() and (frame["value"] < frame["high"]).all()
    assert "times its parameters (all counted)" in found._repr_html_()
    assert "share of the gap" in found.summary().lower()


def test_the_figure_has_no_overlap_and_its_data():
    (drawn,) = multiplier_figures(compare_with_transformers(ladder_runs(noise_nats=0.003), QUICK))
    assert extents.problems_of([drawn]) == []
    models = drawn.tables["models"].set_index("counting")
    assert models.loc["non_embedding", "multiplier"] == pytest.approx(2.0, rel=0.1)


def test_models_of_two_recipes_are_drawn_beside_their_own_ladders():
    runs = ladder_runs(equal_flops=False)
    other = runs.assign(
        optimizer="another", run_id=runs["run_id"] + "-b", val_loss_nats=runs["val_loss_nats"] + 0.3
    )
    drawn = multiplier_figures(compare_with_transformers(pd.concat([runs, other], ignore_index=True), QUICK))
    assert [one.name for one in drawn] == ["multiplier_1", "multiplier_2"]
    for one in drawn:
        models = one.tables["models"]
        assert len(models) == 2  # in two countings
        assert models["multiplier"].to_numpy() == pytest.approx([TRUTH.k("all"), 2.0], rel=4e-3)
        assert (
            one.tables["ladder"]["loss"].min() < models["loss"].iloc[0] < one.tables["ladder"]["loss"].max()
        )
