"""What earlier code left behind is read as before: run folders, a launched sweep, tables, an export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest

import loopscale
from analysis import FitConfig, TableError, fit, read_tables
from analysis.result_files import same_json
from tests.golden import cases
from tests.golden.cases import GOLDEN, OLD, ROOT, SWEEP, same

PINNED = json.loads((GOLDEN / "old.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A copy of the old folders: commands write beside what they read."""
    folder = tmp_path_factory.mktemp("golden") / "old"
    shutil.copytree(OLD, folder)
    return folder


@pytest.fixture(scope="module")
def numbers(old):
    return json.loads(json.dumps(cases.old_numbers(old)))


@pytest.mark.parametrize("what", PINNED)
def test_the_old_folders_give_the_same_numbers(what, numbers):
    assert same(numbers[what], PINNED[what])


def test_an_old_sweep_has_the_laws_that_it_had(old):
    """Under the cost of its time; what a law does not identify has other words today and is not compared."""
    settings = [f"sweep={SWEEP}", f"root={old / 'runs'}", "huber_delta=0.001"]
    fitted = json.loads(loopscale.fit(settings).to_json())
    pinned = json.loads((OLD / "runs" / SWEEP / "laws.json").read_text(encoding="utf-8"))
    laws = list(zip(fitted.pop("run_laws"), pinned.pop("run_laws"), strict=True))
    assert len(laws) == 2
    for ours, theirs in laws:
        assert ours["law"] == theirs["law"] and (ours["fit"] is None) == (theirs["fit"] is None)
        if ours["fit"]:
            known = set(ours["fit"]["parameters"]) - set(ours["fit"]["not_identified"])
            assert known
            for name in known:
                assert ours["fit"]["parameters"][name] == pytest.approx(
                    theirs["fit"]["parameters"][name], rel=5e-5
                )
    assert same_json(json.dumps(fitted), json.dumps(pinned))


def test_a_launched_sweep_has_nothing_left_to_do_on_the_command_line(old):
    command = [sys.executable, "-m", "loopscale", "status", f"sweep={SWEEP}", f"root={old / 'runs'}"]
    done = subprocess.run([*command, "format=json"], cwd=ROOT, capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout)
    assert [row["run_id"] for row in shown["rows"]] == [row.split()[0] for row in PINNED["status"]]
    assert {row["status"] for row in shown["rows"]} == {"done"}


def test_csv_and_parquet_of_an_old_sweep_agree(tmp_path):
    for name in ("runs.csv", "depths.csv"):
        shutil.copy(OLD / "runs" / SWEEP / name, tmp_path)
    for ours, theirs in zip(read_tables(OLD / "runs" / SWEEP), read_tables(tmp_path), strict=True):
        pd.testing.assert_frame_equal(ours, theirs)


def test_an_export_is_written_as_it_was(old, tmp_path):
    loopscale.export(
        [f"checkpoint={cases.evaluated_run(old)}", f"folder={tmp_path}", f"cache={old / 'cache'}"]
    )
    for path in (OLD / "export").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_tables_of_an_older_schema_are_those_of_today(version):
    """But for what was not recorded then: it has the value that its absence meant."""
    runs, depths = read_tables(OLD / "tables" / f"version_{version}")
    today, _ = read_tables(OLD / "runs" / SWEEP)
    written = pd.read_csv(OLD / "tables" / f"version_{version}" / "runs.csv")
    assert set(written["schema_version"]) == {version} and set(runs["schema_version"]) == {5}
    assert list(runs) == list(today)
    common = [name for name in written if name != "schema_version"]
    pd.testing.assert_frame_equal(runs[common], today[common])
    absent = runs[[name for name in runs if name not in written]]
    expected = {"kernels": ""}
    if version < 4:
        expected |= {"recipe": ""}
    if version < 3:
        expected |= {"trunk_steps": 0, "trunk_flops": 0.0, "trunk_share_flops": 0.0}
        assert absent[["core_tasks", "core_extended_tasks"]].isna().all(axis=None)
    if version < 2:
        expected |= {"lr_scaling": "none", "devices": 1, "skipped_steps": 0, "loss_spikes": 0}
        expected |= {"micro_batch_changed": 0}
        assert absent[["device_s", "mfu", "data_wait_share", "peak_memory_bytes"]].isna().all(axis=None)
    for name, value in expected.items():
        assert (absent[name] == value).all(), name
    assert fit(runs, depths, FitConfig(validation=False, bootstrap=100, profiles=False)).to_json()


def test_a_table_of_a_newer_schema_is_refused(tmp_path):
    runs = pd.read_csv(OLD / "runs" / SWEEP / "runs.csv")
    runs.assign(schema_version=99).to_csv(tmp_path / "runs.csv", index=False)
    shutil.copy(OLD / "runs" / SWEEP / "depths.csv", tmp_path)
    with pytest.raises(TableError, match="newer"):
        read_tables(tmp_path)
