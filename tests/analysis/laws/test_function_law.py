"""A function of the user's own as a law, and the result that a fit returns."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import FitConfig, TableError, as_law, fit_law, isoflop

DOCS = Path(__file__).resolve().parents[3] / "docs" / "laws.md"


def table(noise=0.0):
    params, tokens = (m.ravel() for m in np.meshgrid(np.geomspace(1e7, 3e9, 6), np.geomspace(1e9, 1e12, 6)))
    loss = 1.7 + 406.0 * params**-0.34 + 411.0 * tokens**-0.28
    loss = loss * np.exp(noise * np.random.default_rng(0).standard_normal(36))
    return pd.DataFrame({"params": params, "tokens": tokens, "loss": loss})


def own(params, tokens, *, E, A, alpha, B, beta):
    return E + A * params**-alpha + B * tokens**-beta


def test_an_own_surface_is_the_registered_one():
    frame = table(noise=0.01)
    fit, peer = fit_law(own, frame, frame["loss"]), fit_law("surface", frame, frame["loss"])
    assert fit.parameters == pytest.approx(peer.parameters, rel=1e-4)
    assert fit.objective == pytest.approx(peer.objective, rel=1e-7)
    law = as_law(own)
    assert {p.name for p in law.parameters if p.kind == "amplitude"} == {"E", "A", "B"}


def test_the_example_of_the_docs_runs():
    block = re.search(r"```python\n(def law.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {"table": table(), "print": lambda text: None}
    exec(block[1], names)
    assert names["fit"].parameters == pytest.approx(
        {"E": 1.7, "A": 406.0, "alpha": 0.34, "B": 411.0, "beta": 0.28}, rel=1e-6
    )


def test_functions_of_real_numbers_and_of_single_points_are_fitted_too():
    def kink(x, *, floor, slope, knee=3.0):
        return floor + slope * np.maximum(x - knee, 0.0)  # no complex step passes a maximum

    x = np.linspace(0.0, 10.0, 40)
    found = fit_law(kink, {"x": x}, 2.0 + 0.5 * np.maximum(x - 4.2, 0.0)).parameters
    assert found == pytest.approx({"floor": 2.0, "slope": 0.5, "knee": 4.2}, rel=1e-6)


def test_options_name_parameters_and_a_law_is_named():
    with pytest.raises(
        ValueError, match=r"^bounds names gamma; the parameters of own are E, A, alpha, B, beta$"
    ):
        as_law(own, bounds={"gamma": (0, 1)})
    with pytest.raises(ValueError, match=r"^f needs columns before a star and parameters after it"):
        exec("def f(x): return x", names := {})
        as_law(names["f"])
    bounded = as_law(own, bounds={"alpha": (0.0, 1.0)}, starts={"alpha": 0.3}, units={"E": "nats"})
    assert bounded.parameters[2].log and bounded.parameters[0].unit == "nats"
    for name, hint in (("surfcae", "the closest is surface"), ("chinchilla", "it is surface")):
        with pytest.raises(TableError, match=rf"^law={name} is unknown: {hint} here, of isoflop, power_law"):
            fit_law(name, table(), table()["loss"])


def test_a_result_has_frames_and_prints_itself():
    frame = table(noise=0.01)
    fit = fit_law("surface", frame, frame["loss"])
    params = fit.params
    assert list(params.columns) == ["value", "low", "high", "standard_error", "unit", "identified"]
    assert (params["low"] < params["value"]).all() and (params["value"] < params["high"]).all()
    assert params["standard_error"].to_numpy() == pytest.approx(np.sqrt(np.diagonal(fit.cov)))
    np.testing.assert_allclose(fit.resid, frame["loss"] - fit.predict(frame))
    assert (fit.conf_int(0.5)["high"] < fit.conf_int(0.99)["high"]).all()
    assert len(repr(fit).split("\n")) < 30 and repr(fit) == fit.summary()
    assert "<table" in fit._repr_html_() and "alpha" in fit._repr_html_()
    assert fit.to_latex().startswith(r"\begin{tabular}{lllllll}") and r"standard\_error" in fit.to_latex()
    again = pickle.loads(pickle.dumps(fit))
    assert again == fit and again.predict(frame) == pytest.approx(fit.predict(frame))
    assert fit != fit_law("surface", frame, frame["loss"], delta=1e-3)


def test_what_is_not_identified_is_not_printed_as_a_number():
    frame = table()
    frame["loss"] = 1.7 + 406.0 * frame["params"] ** -0.34
    fit = fit_law(
        "surface", frame, frame["loss"] * np.exp(0.01 * np.sin(np.arange(36.0) ** 2)), bootstrap=100
    )
    assert fit.params.loc["beta", "identified"] is not True
    line = next(line for line in fit.summary().split("\n") if line.strip().startswith("beta ="))
    assert line.strip().startswith("beta = not identified: ")
    assert fit.to_dict()["not_identified"]["beta"]


def test_an_exponent_of_isoflop_laws_is_one_call():
    budgets = np.repeat(np.geomspace(1e18, 1e20, 4), 8)
    params = np.sqrt(budgets / 120) * np.tile(np.geomspace(0.2, 5, 8), 4)
    loss = 1.69 + 400.0 * params**-0.31 + 400.0 * (budgets / 6 / params) ** -0.31
    frame = pd.DataFrame({"compute": budgets, "x": params, "loss": loss})
    fit = isoflop(frame, config=FitConfig(bootstrap=100, validation=False, profiles=False))
    found = fit.exponent("params")  # .5 by symmetry
    assert found.value == pytest.approx(0.5, abs=1e-6) and found.low <= 0.5 + 1e-6
    assert fit.to_frame().loc[(fit.group.label, "params", "shared shape"), "value"] == found.value
    assert len(repr(fit).split("\n")) < 30 and "<table" in fit._repr_html_()
    with pytest.raises(ValueError, match="quantity='depth' is unknown: choose params or tokens"):
        fit.exponent("depth")
