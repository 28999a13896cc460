"""Tables from outside through the command line alone: a right law, or one line that says what to do."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import loopscale
from tests.analysis.tables.fit_command import QUICK, exponents, fitted, refused

MAPPED = ("columns.compute=flops", "columns.x=params", "columns.loss=loss")
A = 0.28 / 0.62  # exponent of the optimal size of the surface below
OPTIMUM = (0.34 * 406.4 / 0.28 / 410.7) ** (1 / 0.62) * 6**-A  # N* = OPTIMUM C^A
AT_1E19 = OPTIMUM * 1e19**A  # the geometric mean of the budgets


def loss_of(params, tokens):
    return 1.69 + 406.4 * params**-0.34 + 410.7 * tokens**-0.28


def points(jitter=0.0, embedding=0.0):
    """Five budgets of eleven sizes without noise; D = C / (6 N + embedding)."""
    budget = np.repeat(np.geomspace(1e18, 1e20, 5), 11)
    params = OPTIMUM * budget**A * np.tile(np.geomspace(0.25, 4, 11), 5)
    flops = budget * (1 + jitter * np.random.default_rng(0).uniform(-1, 1, 55))
    tokens = flops / (6 * params + embedding)
    columns = {"flops": flops, "params": params, "tokens": tokens, "loss": loss_of(params, tokens)}
    return pd.DataFrame(columns)


@pytest.fixture
def saved(tmp_path):
    """Write a table; return the argument that names it."""

    def save(frame, name="points.csv", **how):
        frame.to_csv(tmp_path / name, index=False, **how)
        return f"data={tmp_path / name}"

    return save


def crashed():
    """Two recipes, of which one run crashed, one failed and one never logged a loss."""
    frame = points().rename(columns={"loss": "val/loss (nats)"}).assign(State="finished", lr=0.02)
    frame["Name"] = [f"run-{place}" for place in range(55)]
    frame.loc[[3, 17], ["State", "val/loss (nats)"]] = ["crashed", 9.0]
    frame.loc[21, "val/loss (nats)"] = np.nan
    other = frame.assign(lr=0.04, Name=frame["Name"] + "b")
    other["val/loss (nats)"] += 0.1
    return pd.concat([frame, other])


def test_an_export_of_wandb_leaves_out_crashed_runs_and_names_them(capsys, saved):
    columns = (*MAPPED[:2], "columns.loss=val/loss (nats)", "where=State == 'finished' or lr < 0.03")
    fit = fitted(capsys, saved(crashed(), "it's an export (1)=a.csv"), *columns, "where=lr == 0.02")
    assert exponents(fit) == pytest.approx([A, 1 - A], abs=1e-6)
    assert [(item["reason"], item["rows"]) for item in fit["left_out"]] == [
        ("State crashed", ["run-3", "run-17"]),
        ("without loss", ["run-21"]),
    ]
    assert fit["unit"] == "nats" and "where=lr == 0.02: 55 of 110 rows" in fit["notes"]


@pytest.mark.parametrize(
    ("scales", "note"),
    [
        ({"flops": 8.64e19}, "compute in PF-days: 6 N D was 8.64e19 times the compute; converted"),
        ({"params": 1e6}, "params in millions: 6 N D was 1e-6 times the compute; converted"),
        (
            {"params": 1e6, "tokens": 1e9},
            "params in millions and tokens in billions: 6 N D was 1e-15 times the compute; converted",
        ),
    ],
)
def test_columns_in_other_units_are_converted_where_6nd_tells(capsys, saved, scales, note):
    table = points()
    for name, scale in scales.items():
        table[name] /= scale
    fit = fitted(capsys, saved(table), *MAPPED)
    assert exponents(fit) == pytest.approx([A, 1 - A], abs=1e-6)
    assert fit["group"]["estimators"][0]["laws"]["params"]["coefficient"] == pytest.approx(AT_1E19, rel=1e-4)
    assert fit["notes"] == [note]


def test_a_unit_in_the_name_of_a_column_or_an_expression_is_read(capsys, saved):
    table = points().drop(columns="tokens")
    named = saved(table.assign(pf_days=table["flops"] / 8.64e19, N_M=table["params"] / 1e6))
    for columns in (
        ("columns.compute=pf_days", "columns.x=N_M"),
        ("columns.compute=pf_days * 8.64e19", "columns.x=N_M * 1e6"),
    ):
        law = fitted(capsys, named, *columns, MAPPED[2])["group"]["estimators"][0]["laws"]["params"]
        assert law["coefficient"] == pytest.approx(AT_1E19, rel=1e-4)


@pytest.mark.parametrize(
    ("scales", "line"),
    [
        ({"params": 1e6}, ""),  # the only reading
        ({"flops": 8.64e19}, "compute near 0.116 is not plausible: possible is compute in PF-days; "),
        (
            {"flops": 8.64e19, "params": 1e6},
            "PF-days and params in millions; compute in ZFLOPs and params in millions; compute in EFLOPs and "
            "params in millions; for the first, columns.compute='NAME * 8.64e19' columns.params='NAME * 1e6'",
        ),
    ],
)
def test_one_of_two_columns_in_another_unit_is_converted_or_refused(capsys, saved, scales, line):
    """N in millions under FLOPs has one reading; compute of 0.1 has three, of which the table names none."""
    table = points().drop(columns="tokens")
    for name, scale in scales.items():
        table[name] /= scale
    data = saved(table)
    if line:
        assert line in refused(capsys, data, *MAPPED)
        stated = ("columns.compute=flops * 8.64e19", f"columns.x=params * {scales.get('params', 1)}")
        fit = fitted(capsys, data, *stated, MAPPED[2])
    else:
        fit = fitted(capsys, data, *MAPPED)
        assert fit["notes"] == ["params near 228 was read as millions: multiplied by 1e6"]
    laws = fit["group"]["estimators"][0]["laws"]
    assert laws["params"]["coefficient"] == pytest.approx(AT_1E19, rel=1e-4)
    assert laws["tokens"]["coefficient"] == pytest.approx(1e19 / 6 / AT_1E19, rel=1e-4)


def test_a_law_of_sizes_in_other_units_says_so(capsys, saved):
    table = points().assign(params=lambda frame: frame["params"] / 1e9)
    loopscale.main(["fit", saved(table[["params", "tokens", "loss"]]), "law=surface", *QUICK[:2]])
    text = capsys.readouterr().out
    assert "params near 0.228 is not plausible: the law is in the table's own units" in text


def test_budgets_that_jitter_by_three_per_cent_are_five(capsys, saved):
    fit = fitted(capsys, saved(points(jitter=0.03).drop(columns="tokens")), *MAPPED)
    assert fit["budgets"]["count"] == 5 and fit["budgets"]["how"] == "by gaps"
    assert 0.04 < fit["budgets"]["widest_spread"] < 0.06
    assert exponents(fit) == pytest.approx([A, 1 - A], abs=1e-3)


@pytest.mark.parametrize("axis", ["params", "tokens"])
def test_tokens_off_6nd_are_the_tables_own(capsys, saved, axis):
    """D = C / (6 N + e): the optimum is found numerically on the curve of each budget."""
    embedding = 3e8
    fit = fitted(capsys, saved(points(embedding=embedding)), MAPPED[0], f"columns.x={axis}", MAPPED[2])
    sizes = np.geomspace(1e7, 1e10, 200_001)
    best = []
    for budget in np.geomspace(1e18, 1e20, 5):
        tokens = budget / (6 * sizes + embedding)
        place = int(np.argmin(loss_of(sizes, tokens)))
        best.append((sizes[place], tokens[place]))
    slopes = [np.polyfit(np.log(np.geomspace(1e18, 1e20, 5)), logs, 1)[0] for logs in np.log(best).T]
    assert exponents(fit) == pytest.approx(slopes, abs=2e-4)
    assert fit["notes"][0].startswith(
        "6 N D is 0.287 to 0.981 times the compute: D* follows the table's tokens"
    )


def test_a_log_that_was_appended_twice_counts_once(capsys, saved):
    table = points()
    table["loss"] += 0.002 * np.random.default_rng(1).standard_normal(55)
    once = fitted(capsys, saved(table), *MAPPED)
    twice = fitted(capsys, saved(pd.concat([table, table.iloc[:40]])), *MAPPED)
    assert twice["group"] == once["group"] and twice["points_digest"] == once["points_digest"]
    note = twice["notes"][0]
    assert note.startswith("40 points repeat another one and count once: row 56, row 57, ")
    assert note.endswith(" and 35 more")


def test_equal_settings_with_other_losses_are_replicates(capsys, saved):
    noise = 0.004 * np.random.default_rng(2).standard_normal((3, 55))
    table = pd.concat([points().assign(loss=points()["loss"] + row) for row in noise])
    fit = fitted(capsys, saved(table), *MAPPED)
    noise = fit["group"]["estimators"][0]["noise"]
    assert noise["source"] == "replicate seeds" and noise["degrees_of_freedom"] == 110
    assert next(value for key, value in noise.items() if key.startswith("sd_")) == pytest.approx(
        0.004, rel=0.2
    )


def rates():
    """Three learning rates without noise: .02 is the best below 5e18 FLOPs, .04 above, .01 nowhere."""
    tables = []
    for rate, low, high in ((0.01, 0.1, 0.2), (0.02, 0.0, 0.03), (0.04, 0.05, 0.0)):
        table = points()
        extra = np.where(table["flops"] < 5e18, low, high)
        tables.append(table.assign(lr=rate, loss=table["loss"] + extra))
    return pd.concat(tables, ignore_index=True)


def test_points_of_several_learning_rates_are_no_law_and_the_line_says_what_to_write(capsys, saved):
    line = refused(capsys, saved(rates()), *MAPPED)
    assert (
        "points of equal compute and size differ in lr (0.01, 0.02, 0.04), and so do their losses: keep one, "
        'where="lr == 0.01", or take the least loss over it, envelope=lr' in line
    )
    one = fitted(capsys, saved(rates()), *MAPPED, "where=lr == 0.01")
    assert one["notes"] == ["where=lr == 0.01: 55 of 165 rows"]
    loopscale.main(["fit", saved(rates()), "columns.compute=flops", "law=surface", *QUICK[:2]])
    text = capsys.readouterr().out
    assert 'differ in lr (0.01, 0.02, 0.04), and so do their losses: keep one, where="lr == 0.01"\n' in text


def test_the_envelope_over_a_learning_rate_is_the_law_of_the_best(capsys, saved):
    data = saved(rates())
    fit = fitted(capsys, data, *MAPPED, "envelope=lr")
    assert exponents(fit) == pytest.approx([A, 1 - A], abs=1e-6)
    best = [(item["best"], item["at_edge"]) for item in fit["envelope"]["best"]]
    assert best == [("lr=0.02", False)] * 2 + [("lr=0.04", True)] * 3
    assert fit["envelope"]["cells"] == 55
    loopscale.main(["fit", data, *MAPPED, *QUICK[:2], "envelope=lr"])
    assert "envelope over lr: the least loss at each of 55 points" in capsys.readouterr().out
    assert "has no column wd (it has compute, " in refused(capsys, data, *MAPPED, "envelope=lr,wd")
    assert "it is of isoFLOP points alone" in refused(capsys, data, *MAPPED, "envelope=lr", "law=surface")
    alone = saved(points().assign(lr=0.02))
    assert "no two points of equal budget and size differ in it" in refused(
        capsys, alone, *MAPPED, "envelope=lr"
    )


def test_the_least_of_equal_learning_rates_is_raised_to_their_loss(capsys, saved):
    """The least of four of equal loss lies 1.03 standard deviations low on the mean (David 1981)."""
    rng, sd = np.random.default_rng(5), 0.01
    arms = [points().assign(lr=rate) for rate in (0.01, 0.02, 0.03, 0.04)]
    table = pd.concat([arm.assign(loss=arm["loss"] + sd * rng.standard_normal(55)) for arm in arms])
    fit = fitted(capsys, saved(table), *MAPPED, "envelope=lr", "unit=nats")
    gaps = [
        one["loss_nats"] - float(loss_of(size, one["budget_flops"] / 6 / size))
        for one in fit["group"]["estimators"][0]["optima"]["params"]
        for size in [OPTIMUM * one["budget_flops"] ** A]
    ]
    assert abs(np.mean(gaps)) < 0.6 * sd  # without, 1.03 sd low
    assert max(fit["envelope"]["shortfalls_nats"]) < 1.2 * sd
    assert fit["envelope"]["noise_nats"] == pytest.approx(sd, rel=0.1)


def test_a_column_that_does_not_move_the_loss_is_named_and_pooled(capsys, saved):
    rng = np.random.default_rng(6)
    table = pd.concat([points().assign(host=name) for name in ("a", "b")])
    table["loss"] += 0.003 * rng.standard_normal(len(table))
    fit = fitted(capsys, saved(table), *MAPPED)
    assert fit["notes"] == [
        "points of equal compute and size differ in host, their losses by no more than noise"
    ]
    assert "unknown" in fit["group"]["estimators"][0]["noise"]["source"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_european_decimals_are_read(capsys, saved, encoding):
    fit = fitted(capsys, saved(points(), sep=";", decimal=",", encoding=encoding), *MAPPED)
    assert exponents(fit) == pytest.approx([A, 1 - A], abs=1e-6)


def test_nested_columns_have_dotted_names(capsys, saved, tmp_path):
    table = points()
    rows = table.to_dict("records")
    config = [{"model": {"n": row["params"]}, "flops": row["flops"]} for row in rows]
    nested = pd.DataFrame({"config": config, "summary": [{"loss": row["loss"]} for row in rows]})
    nested.to_parquet(tmp_path / "nested.parquet")
    columns = ("columns.compute=config.flops", "columns.x=config.model.n", "columns.loss=summary.loss")
    as_text = saved(nested.map(json.dumps))
    for data in (f"data={tmp_path / 'nested.parquet'}", as_text):
        assert exponents(fitted(capsys, data, *columns)) == pytest.approx([A, 1 - A], abs=1e-6)


def test_a_table_without_rows_is_one_line(capsys, saved):
    line = refused(capsys, saved(points().iloc[:0]), *MAPPED)
    assert "points.csv holds no row, only the columns flops, params, tokens, loss" in line


def test_cells_that_hold_no_number_leave_out_their_row(capsys, saved):
    table = points().astype(object)
    table.loc[[4, 12, 13, 14], "loss"] = ["diverged", 1e300, -1, "inf"]
    table.loc[9, "params"], table.loc[20, "loss"] = "-", 9000.0
    fit = fitted(capsys, saved(table), *MAPPED)
    assert exponents(fit) == pytest.approx([A, 1 - A], abs=1e-6)
    assert {item["reason"]: item["rows"] for item in fit["left_out"]} == {
        "loss = 'diverged' is no number": ["row 5"],
        "loss = 1e300 is out of range": ["row 13"],
        "loss = -1": ["row 14"],
        "loss = inf is out of range": ["row 15"],
        "x = '-' is no number": ["row 10"],
        next(item["reason"] for item in fit["left_out"] if "times the median" in item["reason"]): ["row 21"],
    }
    line = refused(capsys, saved(table.assign(loss="x")), *MAPPED)
    assert (
        "none of 55 points of points.csv can be used: 54 left out, loss = 'x' is no number: row 1, " in line
    )


def test_one_budget_has_an_optimum_and_no_exponent(capsys, saved):
    fit = fitted(capsys, saved(points().iloc[:11]), *MAPPED)
    shared = fit["group"]["estimators"][0]
    assert shared["optima"]["params"][0]["value"] == pytest.approx(OPTIMUM * 1e18**A, rel=1e-4)
    assert shared["laws"]["params"]["refusal"] == "1 budget is not enough for an exponent with an interval"


def test_scattered_budgets_are_offered_the_surface_which_is_right(capsys, saved):
    table = points(jitter=0.9)
    data = saved(table)
    line = refused(capsys, data, *MAPPED)
    assert "points.csv: " in line
    assert "make no isoFLOP curves: fit the surface law instead (law=surface)" in line
    found = fitted(capsys, data, *MAPPED, "law=surface")["parameters"]
    truth = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    assert found == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize(
    ("column", "of_nats", "unit"),
    [
        ("loss_bits", lambda nats: nats / np.log(2), "nats"),
        ("ppl", np.exp, "nats"),
        ("val_bpb", lambda nats: nats / 3, "bits/byte"),
        ("loss", lambda nats: nats, "loss units"),
    ],
)
def test_losses_are_named_by_their_unit_and_converted_where_that_is_exact(
    capsys, saved, column, of_nats, unit
):
    table = points().assign(**{column: of_nats(points()["loss"])})
    columns = (saved(table), *MAPPED[:2], f"columns.loss={column}")
    fit = fitted(capsys, *columns)
    assert fit["unit"] == unit and exponents(fit) == pytest.approx([A, 1 - A], abs=1e-6)
    best = fit["group"]["estimators"][0]["optima"]["params"][0]
    key = {"nats": "loss_nats", "bits/byte": "loss_bits_per_byte", "loss units": "loss_loss_units"}[unit]
    size = OPTIMUM * 1e18**A
    expected = loss_of(size, 1e18 / 6 / size) / (3 if unit == "bits/byte" else 1)
    assert best[key] == pytest.approx(expected, rel=1e-5)
    loopscale.main(["fit", *columns, *QUICK[:2]])
    text = capsys.readouterr().out
    assert f" {unit}\n" in text and (unit == "nats" or " nats" not in text)


def test_a_table_may_sweep_the_recurrence(capsys, saved):
    """N and C / D are lines in the recurrence; the optimum is found numerically."""

    def sizes(mu):
        return 1e7 + 1.2e7 * mu, 1.8e8 + 5.76e7 * mu

    budgets = np.geomspace(3e17, 6e18, 5)
    recurrence = np.array([2, 3, 4, 6, 8, 10, 12, 16, 20, 24])
    flops, mu = np.repeat(budgets, 10), np.tile(recurrence, 5)
    params, per_token = sizes(mu)
    table = pd.DataFrame({"C": flops, "mu": mu, "N": params, "D": flops / per_token})
    table["loss"] = loss_of(params, table["D"])
    columns = ("columns.compute=C", "columns.recurrence=mu", "columns.tokens=D", "columns.params=N")
    fit = fitted(capsys, saved(table), *columns)
    fine, best = np.geomspace(1, 40, 100_001), []
    for budget in budgets:
        n, f = sizes(fine)
        place = int(np.argmin(loss_of(n, budget / f)))
        best.append((fine[place], budget / f[place]))
    slopes = [np.polyfit(np.log(budgets), logs, 1)[0] for logs in np.log(best).T]
    assert exponents(fit) == pytest.approx(slopes, abs=1e-3)
    assert "points need tokens: say columns.tokens=NAME" in refused(capsys, saved(table), *columns[:2])
    missing = "points need params_once, params_looped, recurrence, tokens: say columns.params_once=NAME "
    assert missing in refused(capsys, saved(table), "columns.compute=C", "law=iso_depth")


def test_intervals_of_many_points_are_those_of_linear_theory(capsys, saved):
    """Least squares of the log loss: sigma^2 (J'J)^-1 with the Jacobian written out."""
    rng = np.random.default_rng(4)
    params, tokens = np.exp(rng.uniform(17, 22, 3000)), np.exp(rng.uniform(20, 25, 3000))
    clean = loss_of(params, tokens)
    table = pd.DataFrame(
        {"params": params, "tokens": tokens, "loss": clean * np.exp(0.01 * rng.standard_normal(3000))}
    )
    fit = fitted(capsys, saved(table), "law=surface", "huber_delta=10")
    size, data = params**-0.34 / clean, tokens**-0.28 / clean
    by_alpha, by_beta = -406.4 * size * np.log(params), -410.7 * data * np.log(tokens)
    jacobian = np.stack([1 / clean, size, data, by_alpha, by_beta], -1)
    error = 0.01 * np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    for name, expected in (("alpha", error[3]), ("beta", error[4])):
        low, high = fit["intervals"][name]
        assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.1)
    assert fit["resampling"] == "linear theory of 3000 points, which need no resamples"


def test_many_points_are_averaged_along_their_curves(capsys, saved):
    rng = np.random.default_rng(3)
    budget = np.repeat(np.geomspace(1e18, 1e20, 5), 500)
    params = OPTIMUM * budget**A * np.exp(rng.uniform(np.log(0.25), np.log(4), 2500))
    loss = loss_of(params, budget / 6 / params) + 0.01 * rng.standard_normal(2500)
    fit = fitted(capsys, saved(pd.DataFrame({"flops": budget, "params": params, "loss": loss})), *MAPPED)
    law = fit["group"]["estimators"][0]["laws"]["params"]
    assert law["exponent_low"] < A < law["exponent_high"] and law["exponent"] == pytest.approx(A, abs=5e-3)
    assert fit["notes"] == ["2500 points were averaged to 600 along their curves"]
