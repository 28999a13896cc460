import numpy as np
import pandas as pd
import pytest

from analysis import FitConfig, TableError, isoflop, plot, read_points
from analysis.tables.units import implied
from tests.analysis import public_data

QUICK = FitConfig(bootstrap=200, validation=False)


def points():
    """Five isoFLOP curves of the Chinchilla surface without noise, eleven sizes each."""
    budget = np.repeat(np.geomspace(1e18, 1e20, 5), 11)
    best = (0.34 * 406.4 / 0.28 / 410.7) ** (1 / 0.62) * (budget / 6) ** (0.28 / 0.62)
    params = best * np.tile(np.geomspace(0.25, 4, 11), 5)
    tokens = budget / 6 / params
    return pd.DataFrame(
        {"compute": budget, "x": params, "loss": 1.69 + 406.4 * params**-0.34 + 410.7 * tokens**-0.28}
    )


def test_a_known_surface_gives_its_exponents_by_every_unbiased_estimator():
    fit = isoflop(points(), config=QUICK)
    for name in ("shared shape", "surface"):
        laws = fit.group.estimator(name).laws
        assert laws["params"].exponent == pytest.approx(0.28 / 0.62, abs=1e-6)
        assert laws["tokens"].exponent == pytest.approx(0.34 / 0.62, abs=1e-6)
    found = fit.predict(1e24)
    best = (0.34 * 406.4 / 0.28 / 410.7) ** (1 / 0.62) * (1e24 / 6) ** (0.28 / 0.62)
    assert found["params"].iloc[0] == pytest.approx(best, rel=1e-5)
    assert found["tokens"].iloc[0] == pytest.approx(1e24 / 6 / best, rel=1e-5)
    loss = 1.69 + 406.4 * best**-0.34 + 410.7 * (1e24 / 6 / best) ** -0.28
    assert found["loss"].iloc[0] == pytest.approx(loss, rel=1e-6)


def test_llama3_points_read_from_csv_with_mapped_columns():
    public_data.table("llama3_isoflop_points")
    names = {"compute": "compute_budget", "x": "training_tokens", "loss": "validation_loss"}
    fit = isoflop(
        read_points(public_data.FOLDER / "llama3_isoflop_points.csv", names), x="tokens", config=QUICK
    )
    assert len(fit.group.budgets_flops) == 10
    parabola, shared = (fit.group.estimator(name).laws["tokens"] for name in ("parabola", "shared shape"))
    assert parabola.exponent == pytest.approx(0.537, abs=5e-4)
    assert shared.exponent == pytest.approx(0.537, abs=5e-4)
    assert shared.exponent_low < 0.537 < shared.exponent_high


def test_rows_in_any_order_give_the_same_bytes_and_units_the_same_exponents():
    table = points()
    table["loss"] += 0.002 * np.random.default_rng(0).standard_normal(len(table))
    fit = isoflop(table, config=QUICK)
    assert isoflop(table.sample(frac=1, random_state=1), config=QUICK).to_json() == fit.to_json()
    assert "Infinity" not in fit.to_json()
    text = fit.summary()
    assert "55 points at 5 budgets" in text
    assert "N* = " in text
    # A tenth of N is ten times the D, whatever the unit of C = 6 N D.
    for scale in (0.1, 3.0):
        other = isoflop(table.assign(x=table["x"] * scale), config=QUICK).group
        for estimator in fit.group.estimators:
            for quantity, law in estimator.laws.items():
                found = other.estimator(estimator.name).laws[quantity]
                assert found.exponent == pytest.approx(law.exponent, rel=1e-10)
                factor = scale if quantity == "params" else 1 / scale
                assert found.coefficient == pytest.approx(factor * law.coefficient, rel=1e-8)


def test_integer_columns_do_not_overflow():
    """6 N D passes 9.2e18, the largest int64, from the first frontier model on."""
    whole = pd.DataFrame({"params": [10**10, 7 * 10**9], "tokens": [2 * 10**12, 15 * 10**12]})
    found = implied(whole, "params")
    assert found["compute"].tolist() == pytest.approx([1.2e23, 6.3e23], rel=1e-12)
    assert found["flops"].tolist() == found["compute"].tolist()
    assert found["tokens_per_param"].tolist() == pytest.approx([200.0, 15e12 / 7e9], rel=1e-12)


def test_estimators_that_disagree_are_flagged():
    """Sizes that drift from the optimum bend the parabola's exponent by more than the noise scatters."""
    table = points()
    table["x"] /= np.repeat(np.geomspace(1, 3, 5), 11)
    params, tokens = table["x"], table["compute"] / 6 / table["x"]
    table["loss"] = 1.69 + 406.4 * params**-0.34 + 410.7 * tokens**-0.28
    table["loss"] += 1e-4 * np.random.default_rng(0).standard_normal(len(table))
    budgets = table["compute"].unique()
    minima = []
    for budget in budgets:
        at = table["compute"] == budget
        a, b, _ = np.polyfit(np.log(params[at]), table["loss"][at], 2)
        minima.append(-b / 2 / a)
    biased = np.polyfit(np.log(budgets), minima, 1)[0]
    assert abs(biased - 0.28 / 0.62) > 0.005  # the published bias, here from numpy
    flags = isoflop(table, config=QUICK).group.flags
    said = [
        flag for flag in flags if flag.startswith("shared shape and parabola disagree on the exponent of")
    ]
    assert ["parameters" in said[0], "tokens" in said[1], len(said)] == [True, True, 2]
    assert ": 0.45" in said[0] and f" and {biased:.3f}, joint scatter 0.00" in said[0]
    assert not any(flag.startswith("shared shape and surface") for flag in flags)


def test_plot_and_dict_are_available():
    from matplotlib.figure import Figure

    fit = isoflop(points(), config=QUICK)
    ax = Figure().subplots()
    assert plot(fit, ax=ax) is ax
    assert ax.get_xlabel() == "parameters N"
    assert fit.to_dict()["group"]["budgets_flops"][0] == 1e18


def test_an_estimator_is_named_as_printed_or_with_underscores():
    fit = isoflop(points(), config=QUICK)
    assert fit.predict(1e22, "shared_shape").equals(fit.predict(1e22, "shared shape"))
    message = r"^estimator=shape is unknown: choose from shared shape, parabola, surface$"
    with pytest.raises(ValueError, match=message):
        fit.predict(1e22, estimator="shape")


def test_bad_tables_are_one_line(tmp_path):
    with pytest.raises(TableError, match=r"^no table at "):
        read_points(tmp_path / "none.csv")
    path = tmp_path / "points.csv"
    path.write_text("flops,size,loss\n1e18,1e8,3.1\n1e18,2e8,bad\n")
    with pytest.raises(
        TableError, match=r"^columns.x=sise: points.csv has no such column \(did you mean size\?\)$"
    ):
        read_points(path, {"compute": "flops", "x": "sise"})
    message = r"^1 budget for 1 point make no isoFLOP curves.*; 1 left out, loss = 'bad' is no number: row 2$"
    with pytest.raises(TableError, match=message):
        isoflop(read_points(path, {"compute": "flops", "x": "size"}))
    message = r"points need x: rename columns of the frame \(the table has compute, loss\)"
    with pytest.raises(TableError, match=message):
        isoflop(points().drop(columns="x"))
    scattered = points().iloc[[0, 12, 24, 36, 48]]
    with pytest.raises(TableError, match="make no isoFLOP curves: fit the surface law instead"):
        isoflop(scattered)
    with pytest.raises(
        TableError, match=r"^none of 55 points of the table can be used: 55 left out, loss = -1"
    ):
        isoflop(points().assign(loss=-1.0))


def test_a_frame_is_answered_in_words_of_python_and_a_file_in_those_of_the_command(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]})
    with pytest.raises(
        TableError, match=r"points need compute, x, loss: rename columns of the frame \(the"
    ) as error:
        isoflop(frame)
    assert "columns." not in str(error.value)
    apart = pd.DataFrame({"compute": [1e9, 2e9, 3e9], "params": [1e3, 2e3, 3e3], "loss": [3.0, 2.0, 1.0]})
    with pytest.raises(TableError, match=r'fit_law\("surface", \.\.\.\)\), or .*a column budget\)'):
        isoflop(apart)
    frame.to_csv(tmp_path / "points.csv", index=False)
    with pytest.raises(TableError, match=r"say columns\.compute=NAME"):
        isoflop(read_points(tmp_path / "points.csv"))
