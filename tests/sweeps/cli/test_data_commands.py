"""fit and report on data that is no sweep, from the command line."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import loopscale
from analysis.figures.style import ReportFigure
from tests.analysis.compare.test_score_difference import items_of
from tests.analysis.ladders import ladder_runs
from tests.analysis.stats.test_bootstrap import points
from tests.analysis.synthetic import INSIDE, study

QUICK = ("bootstrap=100", "validation=false")


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "points.csv"
    names = {"compute": "flops", "x": "size", "loss": "val"}
    points().drop(columns="block").rename(columns=names).to_csv(path, index=False)
    return path


MAPPED = ("columns.compute=flops", "columns.x=size", "columns.loss=val")


def test_points_of_any_csv_are_fitted(csv, capsys):
    loopscale.main(["fit", f"data={csv}", *MAPPED, *QUICK, "format=json"])
    printed = json.loads(capsys.readouterr().out)
    laws = {e["name"]: e["laws"]["params"]["exponent"] for e in printed["group"]["estimators"]}
    assert laws["shared shape"] == pytest.approx(0.28 / 0.62, abs=0.03)
    loopscale.main(["fit", f"data={csv}", *MAPPED, "bootstrap=100"])
    text = capsys.readouterr().out
    for part in (
        "72 points at 6 budgets",
        "Prediction of what was left out",
        "Exponents under other choices",
    ):
        assert part in text


def test_one_law_is_chosen_by_name(csv, capsys):
    loopscale.main(["fit", f"data={csv}", "law=surface", *MAPPED, *QUICK, "format=json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["law"] == "surface"
    assert printed["intervals"]["alpha"][0] < 0.34 < printed["intervals"]["alpha"][1]
    loopscale.main(["fit", f"data={csv}", "law=overtraining", *MAPPED, *QUICK])
    assert capsys.readouterr().out.startswith("overtraining: L = E + (a M^eta")


def test_fit_ends_with_its_conclusion_and_shows_the_rest_on_request(tmp_path, capsys):
    runs, depths = study(budgets=INSIDE[:4], noise_nats=0.002)
    runs.to_csv(tmp_path / "runs.csv", index=False)
    depths.to_csv(tmp_path / "depths.csv", index=False)
    loopscale.main(["fit", f"data={tmp_path}", *QUICK])
    *lines, recurrence, tokens, depth, following = capsys.readouterr().out.splitlines()
    assert len(lines) < 20 and following.startswith("next: loopscale compare")
    assert re.search(r"µ\* = .* by shared shape; parabola .*; surface ", recurrence)
    assert tokens.startswith("Optimal tokens, ") and depth.startswith("Test-time depth: ")
    loopscale.main(["fit", f"data={tmp_path}", *QUICK, "details=true"])
    detailed = capsys.readouterr().out.splitlines()
    assert len(detailed) > 2 * len(lines) and detailed[-4:] == [recurrence, tokens, depth, following]


def test_a_runs_csv_alone_is_a_study(tmp_path, capsys):
    runs, depths = study(budgets=INSIDE[:4], noise_nats=0.002)
    runs.to_csv(tmp_path / "runs.csv", index=False)
    depths.to_csv(tmp_path / "depths.csv", index=False)
    for data in (tmp_path / "runs.csv", tmp_path):
        if data.is_dir():
            runs.to_parquet(tmp_path / "runs.parquet")
            depths.to_parquet(tmp_path / "depths.parquet")
        loopscale.main(["fit", f"data={data}", *QUICK, "format=json"])
        printed = json.loads(capsys.readouterr().out)
        assert [g["label"] for g in printed["groups"]] == ["140M, paper FLOPs"]
        assert {law["law"] for law in printed["run_laws"]} == {"iso_depth", "unified"}
    loopscale.main(["compare", f"data={tmp_path / 'runs.csv'}", f"root={tmp_path}", "bootstrap=100"])
    assert "fixed depth needs" in capsys.readouterr().out
    loopscale.main(["fit", f"data={tmp_path}", "law=unified", *QUICK, "format=json"])
    assert json.loads(capsys.readouterr().out)["parameters"]["z"] == pytest.approx(7.0, abs=0.02)


def test_compare_takes_the_runs_that_where_keeps(tmp_path, capsys):
    study(budgets=INSIDE[:2], recurrences=(2, 4, 6))[0].to_csv(tmp_path / "runs.csv", index=False)
    loopscale.main(["compare", "--help"])
    assert 'where="optimizer ==' in capsys.readouterr().out  # as the messages about arms advise
    source = ["compare", f"data={tmp_path / 'runs.csv'}", "bootstrap=100"]
    loopscale.main([*source, "where=mean_recurrence < 5", "format=json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {cell["mean_recurrence"] for row in rows for cell in row["recurrences"]} == {2.0, 4.0}
    with pytest.raises(SystemExit):
        loopscale.main([*source, "where=mean_recurrence > 99"])
    assert "where=mean_recurrence > 99 leaves none of the " in capsys.readouterr().err


def test_reports_of_points_and_of_published_numbers_are_written(csv, tmp_path, capsys, drawn_glyphs):
    loopscale.main(["report", f"data={csv}", *MAPPED, *QUICK, f"root={tmp_path}", "format=json"])
    page = tmp_path / "reports" / "points" / "index.html"
    assert json.loads(capsys.readouterr().out) == {"path": str(page)}
    assert "Optimal parameters: N* = " in page.read_text()
    table = pd.read_csv(page.parent / "figures" / "isoflop_points.csv")
    assert np.isfinite(table["params"]).all()


@pytest.fixture
def blank_curves(monkeypatch):
    """Leave the figures of isoFLOP groups blank, which take most of a report's time."""
    blank = ReportFigure(name="blank", caption="", figure=Figure(figsize=(1, 1)), tables={})
    for name in ("isoflop_figure", "isoflop_by_budget_figure", "power_law_figure", "frontier_figure"):
        monkeypatch.setattr(f"analysis.figures.study.{name}", lambda *_: blank)


@pytest.mark.parametrize(
    ("named", "arm", "gap"),
    [((), "linear", 0.025), (("arms=injection", "reference=linear"), "diagonal", -0.025)],
)
def test_a_report_compares_the_arms_of_its_axes_or_those_that_are_named(
    named, arm, gap, tmp_path, capsys, blank_curves
):
    runs = study(budgets=INSIDE[:2], recurrences=(2, 4), fixed=False)[0]
    other = runs.assign(injection="linear", run_id=runs["run_id"] + "b")
    other["val_loss_nats"] += 0.025
    pd.concat([runs, other]).to_csv(tmp_path / "arms.csv", index=False)
    loopscale.main(["report", f"data={tmp_path / 'arms.csv'}", *named, *QUICK, f"root={tmp_path}"])
    page = Path(capsys.readouterr().out.strip())
    drawn = pd.read_csv(page.parent / "figures" / "arms_differences.csv")
    assert drawn["nats"].tolist() == pytest.approx([gap] * 2)
    text = page.read_text()
    assert ">Arms of injection</h2>" in text and f"<span>injection={arm}</span>" in text
    assert text.count(f"<span>{gap:+.4f} [{gap:+.4f}, {gap:+.4f}]</span>") == 3  # budgets and their mean
    assert 'id="arms"' in text


def test_a_report_over_device_hours_shows_the_laws_of_the_fit(tmp_path, capsys, drawn_glyphs):
    runs = study(budgets=INSIDE, fixed=False)[0]
    seconds = 30 + runs["tokens"] * (2e-6 + 0.9e-6 * runs["mean_recurrence"])
    runs.assign(device_s=seconds, kernels="reference").to_csv(tmp_path / "timed.csv", index=False)
    hours = [f"data={tmp_path / 'timed.csv'}", "cost=device_hours", *QUICK]
    loopscale.main(["fit", *hours, "format=json"])
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    loopscale.main(["report", *hours, f"root={tmp_path}"])
    page = Path(capsys.readouterr().out.strip())
    assert page.parent.name == "timed_device_hours"
    optima = pd.read_csv(page.parent / "figures" / "device_hours_optima.csv")
    expected = [one["value"] for law in group["laws"].values() for one in law["optima"]]
    assert optima["value"].to_numpy() == pytest.approx(np.array(expected, float), nan_ok=True)
    clock = pd.read_csv(page.parent / "figures" / "device_hours_seconds.csv")
    assert clock["us_per_token"].to_numpy() == pytest.approx(2 + 0.9 * clock["mean_recurrence"].to_numpy())
    text = page.read_text()
    for law in group["laws"].values():
        assert f"^{law['exponent']:.3f} [" in text and law["isoflop_exponent"] in text
    line = "law=surface: a report shows the isoFLOP laws"
    with pytest.raises(SystemExit):
        loopscale.main(["report", *hours, "law=surface"])
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["data=none.csv"], "loopscale: no table at none.csv"),
        (
            ["data={csv}"],
            "points need x, loss: say columns.x=NAME columns.loss=NAME (the table has flops, size, val)",
        ),
        (["data={csv}", "columns.compute=flop"], "points.csv has no such column (did you mean flops?)"),
        (
            ["data={csv}", "law=surfac", *MAPPED],
            "law=surfac is unknown: the closest is surface here, of isoflop, power_law",
        ),
        (["data=wandb:here"], "it must be wandb:ENTITY/PROJECT or an existing folder"),
        (["data=parcae_published"], "has tables but no runs: loopscale report or compare"),
        (["data={csv}", "resampling=jackknife", *MAPPED], "resampling=jackknife: "),
        (["data={csv}", "x=size", *MAPPED], "x=size: "),
    ],
)
def test_bad_requests_are_one_line(csv, arguments, line, capsys):
    with pytest.raises(SystemExit) as ended:
        loopscale.main(["fit", *(text.format(csv=csv) for text in arguments)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["compare", "cost=device_hours"],
            "cost=device_hours: runs are compared at equal FLOPs; use loopscale fit",
        ),
        (
            ["compare", "reference=linear"],
            "reference=linear is a value of an axis: set arms=AXIS or against=SWEEP",
        ),
        (
            ["report", "reference=linear"],
            "reference=linear is a value of an axis: set arms=AXIS or against=SWEEP",
        ),
        (
            ["compare", "against=transformer", "arms=injection"],
            "against=transformer compares with a ladder of sizes, which has no arms: leave out arms",
        ),
        (["report", "law=surface"], "law=surface: a report shows the isoFLOP laws; use loopscale fit"),
        (["report", "data={csv}", *MAPPED, "arms=lr"], "arms are compared in a runs table alone"),
    ],
)
def test_settings_that_a_command_does_not_take_are_one_line(csv, arguments, line, capsys):
    with pytest.raises(SystemExit) as ended:
        loopscale.main([text.format(csv=csv) for text in arguments])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and line in error and error.count("\n") == 1


def test_a_ladder_is_compared_and_has_its_section_in_the_report(tmp_path, capsys, drawn_glyphs):
    runs = ladder_runs(noise_nats=0.003)
    depths = study(budgets=INSIDE[:1])[1].iloc[:0]
    runs.to_parquet(tmp_path / "runs.parquet")
    depths.to_parquet(tmp_path / "depths.parquet")
    source = [f"data={tmp_path}", f"out={tmp_path / 'out'}", "bootstrap=100"]
    loopscale.main(["compare", *source, "against=transformer", "ladder=depth"])
    printed = capsys.readouterr().out
    assert "has the loss of a transformer of" in printed and "multiplier.pdf" in printed
    saved = json.loads((tmp_path / "out" / "multiplier.json").read_text())
    (model,) = saved["models"]
    k = next(row["multiplier"]["value"] for row in model["rows"] if row["counting"] == "non_embedding")
    assert k == pytest.approx(2.0, rel=0.1)
    loopscale.main(["report", *source])
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "The plain transformer of equal quality" in page
    assert "Share of the gap from transformer_6x768 to transformer_6x1024" in page
    assert "plain transformers of 6 sizes" in page and page.count('id="multiplier"') == 1


def test_answers_beside_other_peoples_tables_are_compared(tmp_path, capsys):
    runs, depths = study(budgets=INSIDE[:2], recurrences=(2, 4), replicates=((0, 0),))
    runs.to_parquet(tmp_path / "runs.parquet")
    depths.to_parquet(tmp_path / "depths.parquet")
    points = []
    for _ in range(2):
        loopscale.main(["compare", f"data={tmp_path}", "bootstrap=100", "format=json"])
        printed = json.loads(capsys.readouterr().out)
        cells = [cell for row in printed["rows"] for cell in row["recurrences"]]
        points.append([score["points"] for cell in cells for score in cell["scores"]])
        # Looped models answer everything, those of fixed depth nothing: 100 centred points and more apart.
        chances = {run.run_id: float(run.kind == "looped") for run in runs.itertuples()}
        items_of(runs, chances, tasks=(("arc", 0.0, 40),)).to_parquet(tmp_path / "items.parquet")
    assert points == [[], [pytest.approx(100.0)] * 4]


def test_fit_names_its_file_and_the_next_command_and_refuses_in_one_line(tmp_path, capsys):
    folder = tmp_path / "small"
    folder.mkdir()
    runs, depths = study(budgets=INSIDE[:2], recurrences=(2, 4), replicates=((0, 0),))
    runs.to_parquet(folder / "runs.parquet")
    depths.to_parquet(folder / "depths.parquet")
    loopscale.main(["fit", "sweep=small", f"root={tmp_path}", "bootstrap=100", "details=true"])
    out = capsys.readouterr().out
    assert out.count("–") == 1 and "140M, paper FLOPs: no law under any of " in out
    *_, written, following = out.splitlines()
    assert written == f"written: {folder}/laws.json" and (folder / "laws.json").is_file()
    assert following == f"next: loopscale compare sweep=small root={tmp_path}"


def test_a_sweep_gets_its_comparison_with_figures_beside_it_and_other_data_below_root(
    tmp_path, capsys, drawn_glyphs
):
    folder = tmp_path / "small"
    folder.mkdir()
    runs, depths = study(budgets=INSIDE[:2], recurrences=(2, 4), replicates=((0, 0),))
    runs.to_parquet(folder / "runs.parquet")
    depths.to_parquet(folder / "depths.parquet")
    items_of(runs, dict.fromkeys(runs["run_id"], 0.5)).to_parquet(folder / "items.parquet")
    before = sorted(path.name for path in folder.iterdir())
    loopscale.main(["compare", f"data={folder}", f"root={tmp_path / 'runs'}", "bootstrap=100"])
    pages = [tmp_path / "runs" / "reports" / "small" / f"looped_vs_fixed{part}.pdf" for part in ("", "_core")]
    *_, figures, following = capsys.readouterr().out.splitlines()
    assert figures.endswith(f": {pages[0]}, {pages[1]}") and all(page.is_file() for page in pages)
    assert following == f"next: loopscale report data={folder} root={tmp_path / 'runs'}"
    assert sorted(path.name for path in folder.iterdir()) == before
    loopscale.main(["compare", "sweep=small", f"root={tmp_path}", "bootstrap=100"])
    pages = [folder / "looped_vs_fixed.pdf", folder / "looped_vs_fixed_core.pdf"]
    *_, figures, following = capsys.readouterr().out.splitlines()
    assert figures.endswith(f": {pages[0]}, {pages[1]}")
    assert following == f"next: loopscale report sweep=small root={tmp_path}"
    assert all(path.is_file() and path.with_suffix(".png").is_file() for path in pages)
    drawn = pd.read_csv(folder / "looped_vs_fixed_differences.csv")
    written = json.loads((folder / "comparison.json").read_text())
    cells = [cell["difference"]["nats"] for row in written["rows"] for cell in row["recurrences"]]
    assert drawn.query("entry == 'cell'")["difference_nats"].tolist() == pytest.approx(cells)
    loopscale.main(["compare", "sweep=small", f"root={tmp_path}", "bootstrap=100", "format=json"])
    assert json.loads(capsys.readouterr().out) == written
