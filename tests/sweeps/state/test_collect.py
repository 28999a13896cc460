"""Tables: incremental, merged, migrated, guarded, explained."""

from __future__ import annotations

import hashlib
import json

import pandas as pd
import pytest

import loopscale
from analysis.tables.schema import DEPTHS, RUNS, SCHEMA_VERSION, TableError, conform
from model.config_validation import ConfigError
from sweeps.launch.launch import write_ledger
from sweeps.state.collect import collect


def tables(*folders):
    collected = collect(*folders)
    return collected.runs, collected.depths


def test_collecting_again_reads_only_what_changed(finished, tiny_study, monkeypatch):
    runs, depths = tables(finished)
    read = []
    monkeypatch.setattr("sweeps.state.collect._row", lambda run: read.append(run.run_id))
    again, again_depths = tables(finished)
    assert read == [] and again.equals(runs) and again_depths.equals(depths)
    monkeypatch.undo()
    ledger = write_ledger(tiny_study("sweep.tokens=[1280,2560,3840]"))
    record = finished / ledger.run_ids[0] / "record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"core": 0.5}))
    runs, depths = tables(finished)
    assert list(runs["run_id"]) == ledger.run_ids and len(depths) == 24
    assert runs.loc[0, "core"] == 0.5 and list(runs["status"]).count("planned") == 3


def test_a_finished_sweep_is_launched_again_without_a_question(finished, tiny_sweep, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", type("Closed", (), {"isatty": staticmethod(lambda: False)})())
    loopscale.main(["launch", *tiny_sweep, "confirm=true"])
    assert "6 done" in capsys.readouterr().err


def test_sweeps_merge_and_a_run_of_both_appears_once(finished, tiny_study, tmp_path):
    collect(finished)
    write_ledger(tiny_study("sweep.name=more", "sweep.tokens=[2560,3840]"))
    more = tmp_path / "runs" / "more"
    runs, depths = tables(more, [finished])
    assert len(runs) == 3 + 6 and runs["run_id"].is_unique
    assert list(runs["status"]).count("done") == 6 and len(depths) == 24
    assert set(runs.loc[runs["status"] == "planned", "sweep"]) == {"more"}


def test_tables_alone_are_enough_to_join(finished, tiny_study, tmp_path):
    collect(finished)
    copied = tmp_path / "from_another_cluster"
    copied.mkdir()
    for name in ("runs.parquet", "depths.parquet"):
        (copied / name).write_bytes((finished / name).read_bytes())
    write_ledger(tiny_study("sweep.name=more", "sweep.tokens=[3840]"))
    runs, depths = tables(tmp_path / "runs" / "more", [copied])
    assert len(runs) == 3 + 6 and len(depths) == 24
    with pytest.raises(ConfigError, match=r"it holds no sweep\.json"):
        collect(tmp_path / "runs" / "more", [tmp_path])


def test_the_dictionary_explains_every_column(finished):
    runs, depths = tables(finished)
    table = pd.read_csv(finished / "dictionary.csv")
    assert list(table.loc[table["table"] == "runs", "column"]) == list(runs)
    assert list(table.loc[table["table"] == "depths", "column"]) == list(depths)
    assert table["meaning"].str.len().min() > 5


def test_an_older_table_is_migrated_and_a_newer_one_refused(finished):
    runs, _ = tables(finished)
    first = runs.drop(columns="micro_batch_changed").assign(schema_version=1)
    migrated = conform(first, RUNS)
    assert list(migrated) == [column.name for column in RUNS]
    assert (migrated["schema_version"] == SCHEMA_VERSION).all() and (
        migrated["micro_batch_changed"] == 0
    ).all()
    mixed = conform(pd.concat([first.head(2), runs.assign(micro_batch_changed=1).tail(2)]), RUNS)
    assert list(mixed["micro_batch_changed"]) == [0, 0, 1, 1]
    with pytest.raises(TableError, match="newer than"):
        conform(runs.assign(schema_version=SCHEMA_VERSION + 1), RUNS)
    with pytest.raises(TableError, match="columns missing: \\['micro_batch_changed'\\]"):
        conform(runs.drop(columns="micro_batch_changed"), RUNS)


def test_the_schema_is_the_one_of_its_version():
    # A column added, renamed or retyped needs a new SCHEMA_VERSION and an entry in ADDED.
    columns = [(column.name, column.kind) for table in (RUNS, DEPTHS) for column in table]
    digest = hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:8]
    assert (SCHEMA_VERSION, digest) == (5, "271bc32a")


def test_gaps_are_named(finished, tiny_study, tmp_path, capsys):
    write_ledger(tiny_study("sweep.tokens=[1280,2560,3840]"))
    loopscale.main(["collect", "sweep=tiny", f"root={tmp_path / 'runs'}"])
    out = capsys.readouterr().out
    assert "3 of 9 runs are not done: looped_40k-" in out
    assert out.endswith(f"\nnext: loopscale fit sweep=tiny root={tmp_path / 'runs'}\n")
