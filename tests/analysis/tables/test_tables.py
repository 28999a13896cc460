import numpy as np
import pandas as pd
import pytest

from analysis import LAWS, FitConfig, TableError, fit, read_tables
from analysis.tables.points import ROLES
from analysis.tables.readers import read_source
from analysis.tables.schema import SCHEMA_VERSION
from analysis.tables.selection import digest, groups, select
from tests.analysis.synthetic import study


def test_absent_tables_are_named_with_the_command_that_writes_them(tmp_path):
    command = f"loopscale collect sweep={tmp_path.name} root={tmp_path.parent}"
    with pytest.raises(TableError, match=f"^no runs table in .*: run {command}$"):
        read_tables(tmp_path)
    runs, _ = study(budgets=(1e18,))
    runs.to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(TableError, match=r"^no depths table in "):
        read_tables(tmp_path)


def test_tables_come_back_as_written(tmp_path):
    runs, depths = study(budgets=(1e18,))
    runs.to_parquet(tmp_path / "runs.parquet")
    depths.to_parquet(tmp_path / "depths.parquet")
    read_runs, read_depths = read_tables(tmp_path)
    assert read_runs.equals(runs)
    assert read_depths.equals(depths)


def test_csv_alone_gives_the_same_tables_to_the_last_digit(tmp_path):
    runs, depths = study(budgets=(1e18,))
    runs.loc[0, ["trunk_id", "core", "muon_learning_rate"]] = ["looped-trunk", np.nan, 0.1 + 0.2]
    runs.to_csv(tmp_path / "runs.csv", index=False)
    depths.to_csv(tmp_path / "depths.csv", index=False)
    read_runs, read_depths = read_tables(tmp_path)
    pd.testing.assert_frame_equal(read_runs, runs, check_exact=True)
    pd.testing.assert_frame_equal(read_depths, depths, check_exact=True)


def test_a_damaged_table_is_one_line(tmp_path):
    (tmp_path / "runs.parquet").write_bytes(b"not parquet")
    with pytest.raises(TableError, match=r"^cannot read .*runs.parquet: [^\n]*$"):
        read_tables(tmp_path)


def test_runs_of_two_data_sets_are_not_mixed():
    runs, depths = study(budgets=(1e18,))
    runs.loc[0, "data_digest"] = "feedbeef"
    with pytest.raises(TableError, match=r"data_digest 0123abcd \(6 runs\) and feedbeef \(1 run\)"):
        fit(runs, depths)


def test_unusable_runs_are_left_out_with_their_reason():
    runs, _ = study(budgets=(1e18,))
    runs.loc[0, "status"] = "failed:oom"
    runs.loc[1, "epochs"] = 2.5
    runs.loc[2, "val_loss_nats"] = np.nan
    kept = select(runs, max_epochs=1.0)
    assert len(kept.runs) == 4
    assert {item.run_id: item.reason for item in kept.left_out} == {
        runs.loc[0, "run_id"]: "not done (status failed:oom)",
        runs.loc[1, "run_id"]: "on repeated data (2.5 epochs, at most 1)",
        runs.loc[2, "run_id"]: "without a usable loss (val_loss_nats = nan)",
    }


def test_empty_and_hopeless_tables_are_refused():
    runs, depths = study(budgets=(1e18,))
    with pytest.raises(TableError, match="the runs table is empty"):
        fit(runs.iloc[:0], depths)
    runs["status"] = "running"
    said = r"none of 7 runs can be used: .* is not done \(status running\); collect the sweep again once"
    with pytest.raises(TableError, match=said):
        fit(runs, depths)


def test_runs_of_another_recipe_are_another_group():
    runs, _ = study(budgets=(1e18,))
    other = runs.assign(run_id=runs["run_id"] + "b", recipe="model.heads=2 training.gradient_clip=0.5")
    both = pd.concat([runs.assign(recipe="model.heads=2"), other])
    labels = [label for label, _ in groups(both)]
    assert len(labels) == 2 and labels[1] == f"{labels[0]}, training.gradient_clip=0.5"


def test_a_run_listed_twice_is_refused():
    runs, depths = study(budgets=(1e18,))
    runs.loc[1, "run_id"] = runs.loc[0, "run_id"]
    with pytest.raises(TableError, match="is listed twice"):
        fit(runs, depths)


def test_large_integer_columns_do_not_overflow():
    """6 N D passes 2^63 for integer columns of a large model (a trap in other tools)."""
    runs, depths = study(budgets=(1e22, 4e22, 16e22, 64e22))
    assert runs["tokens"].dtype == runs["n_params_core"].dtype == "int64"
    assert runs["tokens"].max() * 6.0 * 1e9 > 2**63
    runs["epochs"] = 1.0
    values = fit(runs, depths.iloc[:0], FitConfig(validation=False)).groups[0].estimator("surface").parameters
    assert all(np.isfinite(value) for value in values.values())


def test_the_columns_of_every_law_can_be_mapped():
    beside = {"loss", "loss_se", "run_id", "score", "compute", "budget", "block"}
    assert beside.union(*(law.columns for law in LAWS.values())) == set(ROLES)
    assert list(ROLES) == sorted(ROLES)


def test_a_csv_of_an_earlier_version_is_read_as_a_runs_table(tmp_path):
    runs, depths = study(budgets=(1e18,))
    path = tmp_path / "runs.csv"
    runs.drop(columns=["kernels", "recipe"]).assign(schema_version=3).to_csv(path, index=False)
    depths.to_csv(tmp_path / "depths.csv", index=False)
    read_runs, read_depths = read_source(str(path))
    assert (read_runs["schema_version"] == SCHEMA_VERSION).all() and (read_runs["recipe"] == "").all()
    assert len(read_runs) == len(runs) and len(read_depths) == len(depths)


def test_a_column_added_to_the_schema_leaves_the_digest_of_older_tables():
    runs, _ = study(budgets=(1e18,))
    older = runs.assign(kernels="")
    assert digest(older) == digest(older.drop(columns="kernels").assign(schema_version=4))
    assert digest(runs.assign(kernels="cpu")) != digest(older)


def test_a_damaged_cell_leaves_out_its_run_and_names_it(tmp_path):
    runs, depths = study(budgets=(1e18,))
    damaged = runs.astype(object)
    damaged.loc[2, "tokens"], damaged.loc[3, "val_loss_nats"] = "many", "diverged"
    damaged.to_csv(tmp_path / "runs.csv", index=False)
    depths.to_csv(tmp_path / "depths.csv", index=False)
    kept = select(read_source(str(tmp_path / "runs.csv"))[0], max_epochs=1.0)
    assert {item.run_id: item.reason for item in kept.left_out} == {
        runs.loc[2, "run_id"]: "not done (status damaged: tokens = many)",
        runs.loc[3, "run_id"]: "not done (status damaged: val_loss_nats = diverged)",
    }
    assert kept.runs["tokens"].dtype == "int64" and len(kept.runs) == len(runs) - 2
