"""docs/study: its tables are what the runs left, and its numbers follow from them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import re
from pathlib import Path

import pytest

import loopscale
from analysis import FitConfig, fit, read_tables
from analysis.result_files import same_json
from docs.study.tables import fill
from sweeps.pursuit.pursue import summary
from sweeps.pursuit.record import read

STUDY = Path(__file__).resolve().parents[1] / "docs" / "study"
SWEEPS = sorted(path.parent.name for path in STUDY.glob("*/runs.csv"))
GRIDS = sorted(path.parent.name for path in STUDY.glob("*/laws.json"))
SMALLEST = min(GRIDS, key=lambda grid: (STUDY / grid / "runs.csv").stat().st_size)


def script():
    spec = importlib.util.spec_from_file_location("summary", STUDY / "summary.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_study_has_sweeps_and_grids():
    assert len(SWEEPS) >= 5 and set(GRIDS) <= set(SWEEPS) and GRIDS


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_run_ended_and_executed_the_flops_expected_of_it(sweep):
    runs, depths = read_tables(STUDY / sweep)
    done = runs[runs["status"] == "done"]
    assert (done["val_loss_nats"] < done["val_unigram_nats"]).all()
    assert (done["executed_flops"] / done["expected_flops"]).between(0.97, 1.03).all()
    assert done["target_flops"].ge(done["nominal_flops"]).all()
    assert set(done["run_id"]) <= set(depths["run_id"])
    assert set(runs["sweep"]) == {sweep}


def test_the_pursuit_trained_what_its_record_chose_and_paid_no_more():
    record = read(STUDY / "pursuit")
    runs, _ = read_tables(STUDY / "pursuit")
    columns = (runs[name] for name in ("mean_recurrence", "target_flops", "seed"))
    assert sorted(zip(*columns, strict=True)) == sorted(record.cells)
    assert runs["nominal_flops"].sum() == pytest.approx(record.outcome.spent_flops)
    assert record.outcome.spent_flops <= record.allowance_flops
    lines = (STUDY / "pursuit" / "log.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [line.strip().removesuffix(" (ended)") for line in summary(record).splitlines()[1:]]


@pytest.mark.parametrize("sweep", [name for name in SWEEPS if "english" not in name and name != "pursuit"])
def test_the_runs_are_those_that_the_configuration_plans(sweep, tmp_path):
    runs, _ = read_tables(STUDY / sweep)
    plan = loopscale.plan([f"sweep={sweep}", f"root={tmp_path}", f"cache={tmp_path}"])
    cell = ["scale", "kind", "mean_recurrence", "target_flops", "seed"]
    planned = plan.set_index(cell)["steps"].to_dict()
    assert runs.set_index(cell)["steps"].to_dict().items() <= planned.items()


def test_the_summary_follows_from_the_tables():
    written, made = json.loads((STUDY / "summary.json").read_text()), script()
    for name in SWEEPS:
        runs, _ = read_tables(STUDY / name)
        assert written["costs"][name] == pytest.approx(made.costs(runs), rel=1e-5)  # six digits
        if "_rates" in name:
            losses = [row["val_loss_nats"] for row in written["rates"][name]]
            assert losses == pytest.approx(sorted(runs["val_loss_nats"]), rel=1e-5), "best first"


def test_the_tables_of_the_page_are_those_of_its_files():
    for path, tables in ((STUDY / "README.md", 8), (STUDY / "headline_tiny" / "README.md", 2)):
        page = path.read_text(encoding="utf-8")
        assert fill(page) == page and page.count("<!-- end -->") >= tables
        blank = re.sub(r"(<!-- \w+ ?\w* -->\n).*?( *<!-- end -->)", r"\1\2", page, flags=re.DOTALL)
        assert fill(blank) == page != blank


def numbers(content):
    """All numbers of a JSON value in its order, an open end as infinity."""
    if isinstance(content, dict | list):
        for item in content.values() if isinstance(content, dict) else content:
            yield from numbers(item)
    elif content is None or isinstance(content, float | int):
        yield math.inf if content is None else float(content)


def test_the_intervals_of_the_page_are_in_its_files():
    """Every [low, high] in words is, rounded, a pair of neighbours in the laws, comparisons or summary."""
    pairs = set()
    for path in [
        STUDY / "summary.json",
        *STUDY.glob("*/laws.json"),
        *STUDY.glob("*/comparison.json"),
        *STUDY.glob("*/multiplier.json"),
    ]:
        values = list(numbers(json.loads(path.read_text(encoding="utf-8"))))
        for each in (values, values[::-1]):  # keys may be sorted
            pairs |= set(itertools.pairwise(each))
            pairs |= {(-a, -b) for a, b in itertools.pairwise(each)}  # lower by, not higher by
    pages = [
        path.read_text(encoding="utf-8") for path in (STUDY / "README.md", STUDY.parents[1] / "README.md")
    ]
    prose = re.sub(r"<!-- \w+ ?\w* -->.*?<!-- end -->", "", "\n".join(pages), flags=re.DOTALL)
    words = " ".join(prose.split())
    assert not re.search(r"@[A-Z]", words), "a number was left open"
    intervals = re.findall(r"\[([-+.\de]+|open), ([-+.\de]+|open)\]", words)
    assert len(intervals) > 20
    for low, high in intervals:
        assert any(rounds(low, a) and rounds(high, b) for a, b in pairs), f"[{low}, {high}] is in no file"


def rounds(text, value):
    """Return True if `value` is `text`, rounded as that is."""
    if text == "open" or math.isinf(value):
        return text == "open" and math.isinf(value)
    digits, _, exponent = text.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return abs(float(text) - value) <= 0.5001 * unit


def same(result, written):
    """Return True if two JSON values agree, numbers to 5e-5: last digits depend on the processor."""
    if isinstance(written, dict):
        return result.keys() == written.keys() and all(same(result[key], written[key]) for key in written)
    if isinstance(written, list):
        return len(result) == len(written) and all(itertools.starmap(same, zip(result, written, strict=True)))
    if isinstance(written, float):
        return result == pytest.approx(written, rel=5e-5, abs=1e-9)
    if isinstance(written, str):  # a fit's note: the gradient where it ended is all rounding
        return re.sub(r"gradient \S+", "", result) == re.sub(r"gradient \S+", "", written)
    return result == written


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid != SMALLEST])
def test_the_isoflop_laws_of_a_grid_come_out_of_its_tables(grid):
    """Without what takes longest: the laws over depths, and validation."""
    runs, depths = read_tables(STUDY / grid)
    fitted = fit(runs, depths.iloc[:0], FitConfig(validation=False)).to_dict()
    written = json.loads((STUDY / grid / "laws.json").read_text(encoding="utf-8"))
    assert same(fitted["groups"], written["groups"]) and same(fitted["noise"], written["noise"])


def test_all_laws_of_the_smallest_grid_come_out_of_its_tables():
    fitted = fit(*read_tables(STUDY / SMALLEST)).to_json()
    written = json.loads((STUDY / SMALLEST / "laws.json").read_text(encoding="utf-8"))
    assert same_json(fitted, json.dumps(written))
    written["groups"][0]["estimators"][0]["parameters"]["a"] *= 1.0001
    assert not same_json(fitted, json.dumps(written))
