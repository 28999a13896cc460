"""`plan design=true`, `design=search` and `suggest=N`, from the command line to a sweep that launch takes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import loopscale
from analysis.config import FitConfig
from analysis.design.fisher_information import fisher_information
from analysis.design.simulate import Noise, grid
from analysis.tables.schema import DEPTHS, RUNS, conform
from harness.run.folder import Status
from model.config_validation import ConfigError
from sweeps.grid.cells import DataFacts, cells
from sweeps.launch.launch import register
from sweeps.planning import design_search as search
from sweeps.planning.design import (
    allowance_flops,
    assumed_laws,
    assumed_noise,
    design_config,
    narrowed_target,
    planned_runs,
)
from sweeps.planning.design_files import added_cells
from sweeps.planning.suggest import suggest

QUICK = [
    "assume.studies=100",
    "assume.analysts=2",
    "assume.bootstrap=100",
    "assume.law=paper_optima",
    "assume.parameter_count=non_embedding",
]
SMALL = ["sweep.budgets_flops=[2e18,4e18,8e18,16e18]", "sweep.mean_recurrences=[2,4,8,12]"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Overrides under tmp_path, where the user's own configuration files are too."""
    (tmp_path / "conf").mkdir()
    monkeypatch.setenv("LOOPSCALE_CONFIG", str(tmp_path / "conf"))
    return ["sweep=isoflop_140m", f"root={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}"]


def run(capsys, *arguments):
    """Run a command; return its exit code, stdout and stderr."""
    code = 0
    try:
        loopscale.main(list(arguments))
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    return code, out, err


def collected(place, budgets, recurrences, noise_nats=0.004, seeds=(0,)):
    """Write the runs and depth tables of finished runs as collect does; losses are of the published law."""
    study = loopscale.compose(
        [
            *place,
            f"sweep.budgets_flops={budgets}",
            f"sweep.mean_recurrences={recurrences}",
            f"sweep.seeds={list(seeds)}",
        ]
    )
    frame = planned_runs(study)
    frame["run_id"] = [f"run-{k}" for k in range(len(frame))]
    frame["data_digest"], frame["unique_tokens"], frame["epochs"] = "0123abcd", 10**12, 0.1
    tokens, depth = frame["tokens"].astype(float), frame["mean_recurrence"].astype(float)
    params = 29_507_328 + 14_158_848 * depth
    loss = 2.662 + 0.213 * 522733.307 * params**-0.771 + 25420.102 * tokens**-0.525
    frame["val_loss_nats"] = loss + noise_nats * np.random.default_rng(0).standard_normal(len(frame))
    frame["status"], frame["schema_version"], frame["sweep"] = "done", 2, "isoflop_140m"
    empty = {"string": "", "float64": np.nan, "int64": 1}
    for column in RUNS:
        if column.name not in frame or frame[column.name].isna().all():
            frame[column.name] = empty[column.kind]
    folder = Path(study.root) / "isoflop_140m"
    folder.mkdir(parents=True)
    names = [column.name for column in RUNS]
    conform(frame[names], RUNS).to_parquet(folder / "runs.parquet")
    depths = frame[["run_id", "val_loss_nats"]].assign(depth=4, val_loss_se_nats=0.003)
    conform(depths, DEPTHS).to_parquet(folder / "depths.parquet")
    return folder


def test_a_design_says_what_the_grid_resolves_and_writes_its_figure(place, capsys, tmp_path, drawn_glyphs):
    code, out, _ = run(capsys, "plan", *place, *SMALL, *QUICK, "design=true")
    assert code == 0
    assert "16 looped runs and 4 controls" in out and "an analyst's 95 % interval" in out
    assert "for the published optima" in out and "training noise unknown" in out
    folder = tmp_path / "runs" / "isoflop_140m" / "design"
    names = {path.name for path in folder.iterdir()}
    assert names == {"design.json", "design.pdf", "design.png", "design_optima.csv", "design_exponents.csv"}
    (result,) = json.loads((folder / "design.json").read_text())
    assert [item["budget_flops"] for item in result["outlooks"]] == [2e18, 4e18, 8e18, 16e18]


def test_a_plain_plan_writes_nothing_and_its_help_says_what_does(place, capsys, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert run(capsys, "plan", *place)[0] == 0
    assert sorted(tmp_path.rglob("*")) == before
    _, out, _ = run(capsys, "plan", "--help")
    for written in ("<root>/<sweep>/design/", "NAME_design1.yaml", "NAME_next1.yaml", "<root>/.calibration"):
        assert written in out
    assert "no side effect" not in out


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are not written."""
    monkeypatch.setattr("analysis.figures.style.save_figure", lambda drawn, folder: b"")


def test_a_design_in_json_holds_every_law(place, capsys, undrawn):
    assumed_laws = "assume.law=[paper,paper_optima]"
    code, out, _ = run(capsys, "plan", *place, *SMALL, *QUICK, assumed_laws, "design=true", "format=json")
    result = json.loads(out)["results"]
    assert code == 0 and len(result) == 2
    # Under the printed coefficients with N non-embedding the optima are 11.3, 15.4, 20.8 and 27.9.
    assert [round(item["true"], 1) for item in result[0]["outlooks"]] == [11.3, 15.4, 20.8, 27.9]
    assert result[0]["resolved"]["shared shape"][0]["true"] is None


def test_a_search_writes_a_sweep_within_the_allowance(place, capsys, tmp_path, monkeypatch, undrawn):
    monkeypatch.setattr("sweeps.planning.design_search.FINALISTS", 2)
    monkeypatch.setattr("sweeps.planning.design_search.FINAL_STUDIES", 100)
    monkeypatch.setattr("analysis.design.grid_search.PROMISING", 2)
    few = ["assume.recurrences=[2,4,6,10,16,24]", "assume.max_runs=30", "allowance=3e20"]
    code, out, _ = run(capsys, "plan", *place, *SMALL, *QUICK, *few, "design=search")
    assert code == 0 and "loopscale launch sweep=isoflop_140m_design1 root=" in out
    assert "no simulated grid keeps all minima inside in 90 %" in out
    launch = out.splitlines()[-1].partition("loopscale launch ")[2].split()
    assert launch == ["sweep=isoflop_140m_design1", *place[1:]]  # the grid is the file's alone
    frame = loopscale.plan(launch)
    assert (frame["verdict"] == "OK").all() and frame["nominal_flops"].sum() <= 3e20
    looped = frame[frame["kind"] == "looped"]
    assert looped["target_flops"].nunique() >= 4 and len(looped) <= 30
    assert (looped.groupby("target_flops")["mean_recurrence"].nunique() >= 4).all()
    assert set(frame.loc[frame["kind"] == "fixed", "target_flops"]) == set(looped["target_flops"])
    study = loopscale.compose([place[1], place[2], "sweep=isoflop_140m_design1"])
    assert study.sweep.name == "isoflop_140m_design1"
    assert study.runs["looped_140m"].training.micro_batch == 32  # everything else is the parent's


@pytest.mark.parametrize("quantity", ["exponent", "optimum"])
def test_finalists_are_compared_by_the_quantity_asked_for(place, quantity):
    """At low noise the simulated width is the first-order one, of the exponent or of the target's optimum."""
    study = loopscale.compose([*place, *SMALL, *QUICK, f"assume.quantity={quantity}", "sweep.control=none"])
    bench = grid(planned_runs(study), FitConfig().parameter_count)
    (law,), config, sd = assumed_laws(study, bench), design_config(study, bench), 2e-4
    target = narrowed_target(study, config)
    assert target == (4 * 16e18 if quantity == "optimum" else None)
    result, _ = search._simulate_briefly(bench, law, Noise(seed_nats=sd), config, target)
    depths = np.array(study.sweep.mean_recurrences, float)
    known = fisher_information([law], bench.shape, bench.cells.budgets_flops, depths, sd, target)
    assert result == pytest.approx(known.widths(np.ones((4, len(depths)), int), penalised=False)[0], abs=0.15)


def test_a_search_for_the_optimum_tells_the_width_of_the_optimum(place, monkeypatch):
    monkeypatch.setattr(search, "FINALISTS", 1)
    monkeypatch.setattr(search, "FINAL_STUDIES", 100)
    monkeypatch.setattr("analysis.design.grid_search.PROMISING", 1)
    few = ["assume.recurrences=[2,4,6,10,16]", "assume.max_runs=20", "assume.seed_nats=0.001"]
    asked = ["assume.quantity=optimum", "assume.target_flops=1e20", "assume.analysts=1", "assume.max_seeds=1"]
    result = search.search(loopscale.compose([*place, *SMALL, *QUICK, *few, *asked, "allowance=3e20"]))
    resolved = result.searched[0].resolved["shared shape"]
    (other,) = (i for i in resolved if i.at_flops == 1e20 and i.quantity == "mean_recurrence")
    assert f"interval of µ* at 1e20 FLOPs a factor of {np.exp(other.interval):.3g}" in result.summary()


def test_suggested_runs_join_the_sweep_they_come_from(place, capsys, tmp_path):
    collected(place, [2e18, 4e18, 8e18], [2, 4, 8, 12])
    few = ["assume.recurrences=[2,4,6,8,10,12,16,20]", "suggest=4", "allowance=6e19"]
    code, out, _ = run(capsys, "plan", *place, *few)
    assert code == 0 and "4 runs to do next" in out and "sweep=isoflop_140m_next1" in out
    frame = loopscale.plan([*place[1:], "sweep=isoflop_140m_next1"])
    assert len(frame) == 4 and set(frame["kind"]) == {"looped"} and (frame["verdict"] == "OK").all()
    assert frame["nominal_flops"].sum() <= 6e19
    study = loopscale.compose([*place[1:], "sweep=isoflop_140m_next1"])
    assert study.sweep.name == "isoflop_140m" and study.runs["looped_140m"].data.source == "huggingface"
    listed = [line.split() for line in out.splitlines() if line.startswith("  µ =")]
    rows = zip(frame["mean_recurrence"], frame["target_flops"], frame["seed"], strict=True)
    assert sorted((float(row[2]), float(row[4]), int(row[7])) for row in listed) == sorted(rows)
    code, out, _ = run(capsys, "plan", *place, *few, "format=json")
    assert code == 0 and len(json.loads(out)["suggestion"]["cells"]) == 4
    assert (tmp_path / "conf/sweep/isoflop_140m_next2.yaml").exists()  # the first one is not overwritten


def test_runs_under_way_are_counted_and_not_suggested_again(place):
    collected(place, [2e18, 4e18, 8e18], [2, 4, 8, 12])
    few = ["assume.recurrences=[2,4,6,8,10,12,16,20]", "suggest=4", "allowance=6e19"]
    study = loopscale.compose([*place, *few])
    alone = suggest(study)
    sweep = added_cells(study.sweep, alone.cells)
    facts = DataFacts(digest="0123abcd" * 2, unique_tokens=10**12)
    under_way = cells(replace(study, sweep=sweep), lambda _: facts)
    ledger = register(replace(study, sweep=sweep), under_way)
    runs = ledger.runs(Path(study.root) / "isoflop_140m")
    assert len(runs) == 4
    runs[0].set_status(Status(state="running"))
    after = suggest(study)
    assert not set(after.cells) & set(alone.cells) and len(after.cells) > 0
    assert (alone.runs, alone.under_way, after.runs, after.under_way) == (
        15,
        0,
        15,
        4,
    )  # 3 controls among them
    assert after.width_before == pytest.approx(alone.width_after), "the law is that of the finished runs"
    assert "from 15 finished runs" in after.summary() and "beside 4 under way" in after.summary()
    for run in runs:  # a class that is not tried again
        run.set_status(Status(state="failed", failure_class="diverged", failures={"diverged": 1}))
    again = suggest(study)
    assert again.under_way == 0 and again.width_before == pytest.approx(alone.width_before)
    assert not set(again.cells) & set(alone.cells), "launch would not start a failed run again"


def test_noise_comes_from_replicate_seeds(place):
    folder = collected(place, [2e18, 4e18], [2, 4], seeds=(0, 1))
    runs = pd.read_parquet(folder / "runs.parquet").set_index(["kind", "target_flops", "mean_recurrence"])
    first, second = (runs.loc[runs["seed"] == seed, "val_loss_nats"] for seed in (0, 1))
    study = loopscale.compose([*place, f"assume.noise_from={folder}", "assume.trunk_nats=0.001"])
    result = assumed_noise(study, planned_runs(study))
    assert result.seed_nats == pytest.approx(np.sqrt(np.mean((first - second) ** 2 / 2)), rel=1e-9)
    assert result.trunk_nats == 0.001


def test_trunk_noise_is_that_of_equal_first_steps_however_they_are_computed(place):
    """Independent runs of one recurrence and seed follow one trajectory: sharing changes no statistics."""
    grid_of = [*place, *SMALL, "sweep.control=none", "assume.seed_nats=1e-9", "assume.trunk_nats=0.002"]
    drawn = {}
    for mode in ("auto", "false"):
        study = loopscale.compose([*grid_of, "schedule=trapezoid", f"sweep.trunk={mode}"])
        frame = planned_runs(study)
        assert (frame["trunk_id"] != "").all() == (mode == "auto")
        drawn[mode] = assumed_noise(study, frame).draw(frame, 50, 0)
    assert np.array_equal(drawn["auto"], drawn["false"])
    for recurrence in (2, 4, 8, 12):
        same = drawn["false"][:, frame["mean_recurrence"] == recurrence]
        assert same.shape == (50, 4) and np.ptp(same, axis=1).max() < 1e-7 < same.std(0).min()
    apart = planned_runs(loopscale.compose([*grid_of, "schedule=published"]))  # decays over the whole run
    assert (apart["trajectory"] == "").all()


def test_a_table_without_replicates_gives_no_noise(place, capsys):
    folder = collected(place, [2e18, 4e18, 8e18], [2, 4, 8, 12])
    code, _, err = run(capsys, "plan", *place, *SMALL, *QUICK, "design=true", f"assume.noise_from={folder}")
    assert code == 2 and "training noise unknown: no cell was trained with more than one seed" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["design=serach"], "design=serach: must be False, True or 'search'"),
        (["design=true", "suggest=8"], "design and suggest cannot be combined"),
        (["design=true", "assume.law=mine"], "assume.law=mine: choose paper, paper_optima, or a laws.json"),
        (["design=true", "assume.studies=5"], "assume.studies=5"),
        (["design=true", "assume.tail=2"], "assume.tail=2: must be greater than 2"),
        (["suggest=4"], "no runs table in"),
        (["design=search", "allowance=300", *QUICK], "allowance=300 FLOPs pays for no grid of four budgets"),
        (
            ["design=search", "assume.recurrences=[2,4,6,8]", "assume.parameter_count=non_embedding"],
            "fewer than 3 budgets have their optimum within µ = 2 to 8: at 1e18 FLOPs the law has it at 8.2",
        ),
        (["design=search", "allowance=ten"], "allowance=ten: give FLOPs, as 5e20, or device-hours, as 300h"),
        (["design=search", "allowance=30h", "cluster=slurm"], "the speed of the plan's runs is unknown"),
        (
            ["design=true", "sweep.scales=[looped_140m,looped_370m]"],
            "the sweep has 2 groups of runs and a design is for one",
        ),
        (["design=true", "sweep.mean_recurrences=[2,4]"], "2 recurrences, at least 4 are needed"),
        (["design=true", "model=looped_1m"], "no law is published for looped_1m, only for 140M and 370M"),
    ],
)
def test_a_mistake_ends_in_one_line(place, capsys, given, message):
    code, out, err = run(capsys, "plan", *place, *given)
    assert code == 2 and out == "" and message in err and len(err.splitlines()) == 1


def test_hours_are_flops_at_the_price_of_the_plan(place):
    study = loopscale.compose([*place, "cluster=slurm_h100", "allowance=100h"])
    frame = planned_runs(study)
    rate = frame["nominal_flops"].sum() / frame["hours"].sum()
    assert allowance_flops(study, frame, 1.0) == pytest.approx(100 * rate)
    assert allowance_flops(loopscale.compose([*place, "allowance=5e20"]), frame, 1.0) == 5e20
    assert allowance_flops(loopscale.compose(place), frame, 7.0) == 7.0


def test_a_chosen_grid_needs_a_sweep_file_to_come_from(place):
    from sweeps.planning.design_files import write_sweep

    study = loopscale.compose(place)
    with pytest.raises(ConfigError, match="add sweep=NAME"):
        write_sweep(study.sweep, None, "next", [], rename=False)


def test_a_written_sweep_shows_its_budgets_as_a_person_would_write_them(place, tmp_path):
    from sweeps.planning.design_files import write_sweep

    parent = tmp_path / "mine.yaml"
    parent.write_text("# @package _global_\nsweep:\n  name: mine\n")
    study = loopscale.compose([*place, "sweep.budgets_flops=[3.4e11,4e11]"])
    path = write_sweep(study.sweep, parent, "next", [], rename=False)
    assert "budgets_flops: [3.4e+11, 4.0e+11]" in path.read_text()
    assert yaml.safe_load(path.read_text())["sweep"]["budgets_flops"] == [3.4e11, 4e11]


def test_planning_a_sweep_without_cells_is_refused_and_listed_cells_suffice(place):
    with pytest.raises(ConfigError, match="give at least one mean recurrence, a control, or cells"):
        loopscale.plan([*place, "sweep.mean_recurrences=[]", "sweep.control=none"])
    cells = "+sweep.cells={one: {mean_recurrences: [4], lengths: [2e18]}}"
    frame = loopscale.plan([*place, "sweep.mean_recurrences=[]", "sweep.control=none", cells])
    assert len(frame) == 1
