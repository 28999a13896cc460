"""What the documents say of the long studies is what the committed results say."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from validation.children import in_children

ROOT = Path(__file__).resolve().parents[1]
RESULTS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "docs/validation").glob("*.json")}


def test_every_study_has_a_result():
    scripts = [path for path in (ROOT / "validation").glob("*.py") if "__main__" in path.read_text()]
    assert set(RESULTS) == {"scale", "tokenise", *(path.stem for path in scripts)}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_names_the_script_that_made_it(name):
    program, script = RESULTS[name]["command"].split()[:2]
    assert program == "python"
    assert (ROOT / script).is_file()
    assert Path(script).stem == name


def test_robust_results_support_what_is_claimed():
    """Coverage within four standard errors of 0.93 to 0.97, fewer than 5 % refused."""
    rows = RESULTS["coverage_robust"]["rows"]
    assert len(rows) == 4 * 2 * 2
    for row in rows:
        error = (0.95 * 0.05 / row["studies"]) ** 0.5
        assert 0.93 - 4 * error <= row["coverage"] <= 0.97 + 4 * error
        assert row["accepted"] > 0.95 * row["studies"]
        assert row["width_over_spread"] <= 1.3 * (1 + 1 / row["studies"] ** 0.5)


def test_phi_on_one_or_two_sizes_is_open_or_held():
    rows = [row for row in RESULTS["identification"]["rows"] if row["parameter"] in ("phi", "alpha")]
    assert {row["sizes"] for row in rows} == {"1", "1 and 1.1", "1 and 1.3"} and len(rows) == 3 * 2 * 2
    for row in rows:
        error = (0.95 * 0.05 / row["studies"]) ** 0.5
        assert row["coverage"] >= 0.95 - 4 * error
        assert row["open"] == row["not_identified"] == 1 or row["sizes"] != "1"


def test_committed_results_support_what_is_claimed():
    rows = [row for row in RESULTS["coverage"]["rows"] if row["estimator"] in ("shared shape", "surface")]
    assert {row["quantity"] for row in rows} == {"mean_recurrence", "tokens"}
    assert len(rows) == 4
    for row in rows:
        assert 0.935 <= row["coverage"] <= 0.965
        assert row["width_over_spread"] <= 1.25
    assert RESULTS["suggest"]["ratio_of_widths"] <= 0.8
    assert len(RESULTS["design"]["search"]) == 3
    for row in RESULTS["design"]["search"]:
        assert row["interval_ratio"] <= 0.75
        assert row["all_inside"] >= 0.9
    laws = ("published law", "exponents of 370M")
    rows = [row for row in RESULTS["design"]["calibration"] if row["law"] in laws and row["tail"] is None]
    rows = [row for row in rows if row["runs"] > 20]  # twenty leave 6 degrees of freedom for the noise
    assert len(rows) == 6 and len({row["grid"] for row in rows}) == 3
    assert all(0.85 <= row["interval_over_spread"] <= 1.15 for row in rows)
    storms = RESULTS["kill_storm"]["cases"].values()
    assert len(storms) == 4
    for storm in storms:
        assert set(storm) == {"sigkill", "sigterm", "sigusr2", "truncation"}
        assert storm["sigkill"]["landed"] >= 49 and storm["truncation"]["truncations"] == 20
        assert all(part["lost"] == 0 and part["different"] == [] for part in storm.values())
    assert RESULTS["tokenise"]["bytes"] >= 100e6
    assert RESULTS["tokenise"]["rows"]["tiktoken"]["speed_of_ours_by_cpu"] >= 0.8
    chaos = RESULTS["chaos"]["summary"]
    assert chaos["events"] == chaos["survived"] == len(RESULTS["chaos"]["events"]) >= 60
    assert not any(chaos[name] for name in ("lost", "doubled", "bits_differ", "messages_wrong"))
    assert {event["site"] for event in RESULTS["chaos"]["events"]} == {"generous", "strict"}
    compared = {(row["kind"], row["entry"]): row for row in RESULTS["compare"]["rows"]}
    for kind in ("law", "seeds"):
        for entry in ("best recurrence", "each recurrence"):
            assert 0.935 <= compared[kind, entry]["coverage"] <= 0.965
    error = 2 * (0.025 * 0.975 / compared["equal", "best recurrence"]["differences"]) ** 0.5
    assert compared["equal", "best recurrence"]["looped_lower"] <= 0.025 + error
    assert len(RESULTS["core"]["tasks"]) == 12
    assert sum(task["items"] for task in RESULTS["core"]["tasks"]) == 12_478
    assert all(task["other_predictions"] == 0 for task in RESULTS["core"]["tasks"])


def test_the_demo_ends_in_laws_with_every_seed():
    page = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    for seed, result in RESULTS["demo"]["seeds"].items():
        for name, quantities in result["estimators"].items():
            cells = [
                f"{e:.2f} [{low:.2f}, {high:.2f}]"
                for e, low, high in (q["exponent"] for q in quantities.values())
            ]
            optima = quantities["mean_recurrence"]["optima"]
            assert len(optima) == 3 and None not in optima
            row = [seed, name, *cells, ", ".join(f"{value:.1f}" for value in optima)]
            assert f"| {' | '.join(row)} |" in page
        assert len(result["looped_minus_fixed"]) == 3


def test_hostile_inputs_all_ended_well():
    fuzz = RESULTS["fuzz"]
    assert fuzz["wrong"] == []
    assert sum(count for kind in fuzz["kinds"].values() for count in kind.values()) == fuzz["inputs"]
    assert fuzz["longest_s"] <= 20 and fuzz["largest_gb"] <= 2.15


def test_intervals_of_the_parameter_multiplier_cover():
    """Coverage within four standard errors of 0.93 to 0.97 in every counting, none refused."""
    rows = RESULTS["multiplier"]["rows"]
    assert len(rows) == 4 + 4 + 3
    for row in rows:
        error = (0.95 * 0.05 / row["studies"]) ** 0.5
        assert 0.93 - 4 * error <= row["coverage"] <= 0.97 + 4 * error
        assert row["refused"] <= 0.02 * row["studies"]


def test_a_study_waits_for_its_own_processes(tmp_path):
    def slow():
        time.sleep(0.5)
        (tmp_path / "done").touch()

    def failing():
        raise ValueError("no such site")

    with subprocess.Popen(["true"]):  # a child that ends before
        in_children([slow])
    assert (tmp_path / "done").exists()
    with pytest.raises(SystemExit):
        in_children([slow, failing])


def test_the_designed_140m_grid_resolves_what_its_file_says():
    study = RESULTS["designed_140m"]
    flops = study["flops_with_control"]
    assert flops["isoflop_140m_designed"] <= flops["isoflop_140m"]
    assert len(study["rows"]) == 4
    for row in study["rows"]:
        assert row["isoflop_140m_designed"]["three_optima_inside"] >= 0.9
        assert row["isoflop_140m_designed"]["all_inside"] >= 0.95
        assert row["interval_ratio"] is None or row["interval_ratio"] <= 0.75
    assert sum(row["interval_ratio"] is not None for row in study["rows"]) >= 3


def test_pursuits_keep_to_their_allowance_and_their_intervals_hold_the_truth():
    """Coverage within four standard errors of 0.95, in every case and over all of them."""
    rows = RESULTS["pursue"]["rows"]
    assert len(rows) == 3 * 2
    counts = [round(row["pursuits"] * (1 - row["without_interval"])) for row in rows]
    for row, count in zip(rows, counts, strict=True):
        assert row["largest_spent_of_allowance"] <= 1
        assert row["coverage"] >= 0.95 - 4 * (0.95 * 0.05 / count) ** 0.5
        assert row["flops_ratio"]["high"] < 1
    together = sum(row["coverage"] * count for row, count in zip(rows, counts, strict=True)) / sum(counts)
    assert abs(together - 0.95) < 4 * (0.95 * 0.05 / sum(counts)) ** 0.5
