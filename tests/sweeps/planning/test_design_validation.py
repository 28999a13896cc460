"""The validation of designs in a reduced form; `validation/design.py` has it in full."""

import json

import numpy as np
import pytest

from validation import design, suggest


def test_a_case_is_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(design, "STUDIES", 100)
    monkeypatch.setattr(design, "RESAMPLES", 100)
    number = design.cases().index(("five budgets by eight", "published law", None))
    bench, law, clean, losses = design.made(tmp_path, number)
    assert len(bench.runs) == 40 and losses.shape == (100, 40)
    assert (losses - clean).std() == pytest.approx(design.NOISE, rel=0.05)
    # The published optima, in the geometric mean, at the budgets of the published grid.
    optima = [law.optimum(bench.shape, flops) for flops in (1e18, 2e18, 4e18, 8e18, 16e18, 64e18)]
    assert np.log(optima).mean() == pytest.approx(np.log([2, 2, 4, 6, 8, 10]).mean(), abs=1e-6)
    interval = design.interval_of(bench, losses[0], 0)
    assert interval["low"] < interval["exponent"] < interval["high"]
    assert design.width({"low": None, "high": 1.0}) is np.nan


def test_one_suggestion_and_its_rival_start_from_the_same_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(design, "RESAMPLES", 100)
    monkeypatch.setattr(suggest, "STUDIES", 1)
    result = suggest.suggestions(tmp_path)
    (record,) = json.loads((tmp_path / "suggest-00000.json").read_text())
    assert 0 < len(record["cells"]) <= 8 and record["flops"] <= 4 * (16e18 + 32e18)
    widths = [design.width(record[kind]) for kind in ("suggested", "uniform")]
    assert np.isfinite(widths).all()
    assert result["ratio_of_widths"] == pytest.approx(widths[0] / widths[1])


def test_an_interrupted_validation_continues(tmp_path, monkeypatch):
    def work(numbers):
        return [{"study": k} for k in numbers]

    assert len(design.kept(tmp_path, "part", 10, work)) == 10
    monkeypatch.setenv("LOOPSCALE_VALIDATION_MINUTES", "0")
    with pytest.raises(SystemExit) as ended:
        design.kept(tmp_path, "part", 20, work)
    assert ended.value.code == 75
    monkeypatch.delenv("LOOPSCALE_VALIDATION_MINUTES")
    kept = design.kept(tmp_path, "part", 20, lambda numbers: work(numbers) if numbers.start else [])
    assert [record["study"] for record in kept] == list(range(20))
