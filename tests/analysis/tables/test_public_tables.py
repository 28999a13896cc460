"""Published tables through the command line alone: their published law, or one line of what is missing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize

import loopscale
from tests.analysis import public_data
from tests.analysis.tables.fit_command import exponents, fitted, refused


def published(name, *arguments):
    public_data.table(name)
    return (f"data={public_data.FOLDER / name}.csv", *arguments)


SURFACE = ("law=surface", "huber_delta=0.001")
LLAMA = ("columns.compute=compute_budget", "columns.x=training_tokens", "columns.loss=validation_loss")
GEMSTONES = ("columns.params=params_active_precise", "columns.loss=final_loss", "law=surface")
DEPTHS = ("columns.depth=test_r", "columns.loss=value", "law=saturating", "unit=bits_per_byte")
NANOCHAT = ("columns.x=budget", "columns.loss=N_opt", "law=power_law", "huber_delta=10")
ISODEPTH = ("columns.params_once=N_once", "columns.params_looped=N_rec", "columns.recurrence=r")


@pytest.mark.parametrize(
    ("name", "arguments", "truth", "within"),
    [
        (
            "chinchilla_epoch_svg",
            (*SURFACE, "where=not epoch_outlier"),
            {"E": 1.81722, "alpha": 0.34731, "beta": 0.36717},
            1e-5,
        ),
        ("chinchilla_epoch_svg", SURFACE, {"E": 1.891, "alpha": 0.349, "beta": 0.453}, 1e-3),
        (
            "cs336_isoflops_curves",
            (*SURFACE, "columns.compute=compute_budget", "columns.x=parameters", "columns.loss=final_loss"),
            {"E": 2.69, "A": 1606.4, "B": 3210.7, "alpha": 0.34, "beta": 0.36},
            1e-3,
        ),
        (
            "nanochat_isoflop_optima",
            (*NANOCHAT, "where=accounting == 'all_params' and model == 'nanochat_jan26'"),
            {"g": 0.37},
            2e-2,
        ),
        ("nanochat_isoflop_optima", (*NANOCHAT, "where=accounting == 'transformer_only'"), {"g": 0.70}, 1e-2),
        (
            "synthetic_isodepth_truth",
            (*ISODEPTH, "columns.loss=loss_true", "law=iso_depth"),
            {"alpha": 0.199, "beta": 0.369, "E": 1.57, "phi": 0.459},
            1e-5,
        ),
    ],
)
def test_published_points_give_their_published_law(capsys, name, arguments, truth, within):
    found = fitted(capsys, *published(name, *arguments))["parameters"]
    assert {key: found[key] for key in truth} == pytest.approx(truth, rel=within)


@pytest.mark.parametrize(
    ("model", "truth"),
    [("S20_r4_sample", {"L_inf": 0.83345, "z": 1.359}), ("S20_r6_sample", {"L_inf": 0.84289, "z": 1.204})],
)
def test_a_depth_curve_gives_its_published_law_in_its_unit(capsys, model, truth):
    arguments = published("looped_testtime_curves", *DEPTHS, f"where=model == '{model}'")
    found = fitted(capsys, *arguments)["curves"][0]["parameters"]
    assert {key: found[key] for key in truth} == pytest.approx(truth, rel=5e-4)
    loopscale.main(["fit", *arguments])
    assert "bits/byte" in (text := capsys.readouterr().out) and "nats" not in text


def test_a_model_of_fixed_depth_is_refused_the_exponential(capsys):
    where = "where=model == 'S20_r4_fixed'"
    curve = fitted(capsys, *published("looped_testtime_curves", *DEPTHS, where))["curves"][0]
    assert curve["refusal"]


@pytest.mark.parametrize(("name", "share"), [("gemstones_hot_100b", 0.7134), ("gemstones_cooldown", 0.6609)])
def test_the_gemstones_give_the_better_of_the_published_optima(capsys, name, share):
    found = fitted(capsys, *published(name, *GEMSTONES, "huber_delta=0.0001"))["parameters"]
    assert found["beta"] / (found["alpha"] + found["beta"]) == pytest.approx(share, abs=5e-5)


def test_llama3_sweeps_the_tokens_that_its_column_is_named_after(capsys):
    fit = fitted(capsys, *published("llama3_isoflop_points", *LLAMA))
    assert exponents(fit)[1] == pytest.approx(0.537, abs=5e-4)
    assert fit["budgets"]["count"] == 10 and fit["unit"] == "loss units"


def test_cs336_gives_the_optimum_of_its_surface(capsys):
    columns = ("columns.compute=compute_budget", "columns.x=parameters", "columns.loss=final_loss")
    fit = fitted(capsys, *published("cs336_isoflops_curves", *columns))
    assert exponents(fit) == pytest.approx([0.36 / 0.70, 0.34 / 0.70], abs=2e-4)
    # Without noise the joint scatter is rounding: 0.514 and 0.514 do not disagree.
    assert not [flag for flag in fit["group"]["flags"] if "disagree" in flag]


def test_overtrained_models_give_the_law_that_scipy_finds(capsys):
    arguments = ("columns.loss=loss_c4_val", "law=overtraining", "huber_delta=10")
    found = fitted(capsys, *published("gadre2024_overtraining", *arguments, "where=train_set == 'rpj'"))
    rows = public_data.table("gadre2024_overtraining").query("train_set == 'rpj'").astype({"params": float})
    flops, ratio = 6 * rows["params"] * rows["tokens"], rows["tokens"] / rows["params"]

    def residual(theta):
        floor, a, b, eta = theta
        term = (np.exp(a) * ratio**eta + np.exp(b) * ratio**-eta) * flops**-eta
        return np.log(floor + term) - np.log(rows["loss_c4_val"])

    peer = scipy.optimize.least_squares(residual, [2.0, 5.0, 6.0, 0.15], x_scale=[1, 1, 1, 0.1], xtol=1e-14)
    assert found["parameters"]["E"] == pytest.approx(peer.x[0], rel=1e-4)
    assert found["parameters"]["eta"] == pytest.approx(peer.x[3], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        (
            "chinchilla_epoch_svg",
            ("columns.loss=loss",),
            "make no isoFLOP curves: fit the surface law instead",
        ),
        (
            "isodepth_design_116",
            ("columns.compute=budget", "columns.x=N"),
            "points need loss: say columns.loss=NAME",
        ),
        (
            "synthetic_isodepth_truth",  # four recurrences in one
            ("columns.compute=budget", "columns.params=N", "columns.loss=loss_true"),
            "FLOPs per token are no line in the size, they scatter by 34 %: of several families take one",
        ),
        ("gemstones_published_fits", (), "points need compute, x: say columns.compute=NAME columns.x=NAME"),
        ("MANIFEST", (), "(the table has file, rows, columns, source, license, note)"),
    ],
)
def test_published_tables_without_isoflop_points_say_what_is_missing(capsys, name, arguments, line):
    assert line in refused(capsys, *published(name, *arguments))


def test_a_power_law_of_sizes_has_no_loss_unit(capsys):
    loopscale.main(["fit", *published("nanochat_isoflop_optima", *NANOCHAT, "bootstrap=100")])
    text = capsys.readouterr().out
    assert re.search(r" points, rms [\d.]+e\d+ units of N_opt$", text, re.MULTILINE)
    assert "loss units" not in text and "nats" not in text
    assert "next:" not in text  # a report is made of isoFLOP curves


def test_every_published_table_is_among_these():
    text = Path(__file__).read_text()
    tables = [path.stem for path in public_data.FOLDER.glob("*.csv")]
    assert [name for name in tables if f'"{name}"' not in text] == []
