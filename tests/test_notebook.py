"""docs/notebook.ipynb: stored without outputs, runs from first to last cell, and shows results as HTML."""

from __future__ import annotations

import ast
import html
import json
from typing import Any

import pandas as pd
import pytest

import loopscale
from analysis.compare.arm_comparison import ArmComparison
from analysis.design.power import PowerAnalysis
from analysis.serialize import Printed
from harness.run.record import Evaluation
from sweeps.cli.evaluate import TaskScores
from sweeps.planning.suggest import Suggestion
from tests.test_docs import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def executed(sources: list[str], names: dict[str, Any]) -> list[Any]:
    """Run the cells in one namespace, as a notebook does; return the value of each cell's last expression."""
    values = []
    for source in sources:
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
        values.append(value)
    return values


@pytest.fixture(scope="module")
def cells():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def test_results_of_other_functions_show_themselves_too():
    published = loopscale.compare(["data=parcae_published"])
    assert html.escape(published.headline()) in published._repr_html_() and "<td" in published._repr_html_()
    losses = Evaluation(loss_nats=[3.0, 2.5], loss_se_nats=[0.1, 0.2], bits_per_byte=[1.0, 0.9], tokens=10)
    assert "<tr><td>2<td>2.5000<td>0.2000<td>0.9000" in losses._repr_html_()
    scores = TaskScores(frame=pd.DataFrame({"model": ["a"], "task": ["<x>"], "depth": [1]}), notes=("why",))
    assert "&lt;x&gt;" in scores._repr_html_() and repr(scores).endswith("why")
    for cls in (ArmComparison, PowerAnalysis, Suggestion):
        assert issubclass(cls, Printed) and cls.__repr__ is Printed.__repr__


def test_the_notebook_is_stored_without_outputs(cells):
    assert len(cells) >= 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_the_notebook_goes_from_a_plan_to_the_laws_of_the_study(cells, tmp_path, monkeypatch, capsys):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    values = executed(["".join(cell["source"]) for cell in cells], names)
    assert list(tmp_path.iterdir()) == []
    assert len(names["plan"]) == 43 and set(names["plan"]["verdict"]) == {"OK"}
    # docs/study/README.md: 0.348 [0.234, 0.438] by shared shape
    exponent = names["fit"].exponent("recurrence")
    assert exponent.value == pytest.approx(0.348, abs=5e-4)
    assert exponent.low == pytest.approx(0.234, abs=0.03) and exponent.high == pytest.approx(0.438, abs=0.03)
    assert "µ* grows as C^0.35" in capsys.readouterr().out
    assert "Looped minus fixed depth" in values[-1]._repr_html_() and "<pre>" in values[-1]._repr_html_()
    assert repr(values[-1]).startswith("Looped minus fixed depth")
    shown = [value for value in values if hasattr(value, "_repr_html_")]
    assert len(shown) >= 6
    assert all("<table" in value._repr_html_() or "<pre" in value._repr_html_() for value in shown)
