"""One damaged file of one run hides nothing of the others."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import loopscale
from harness.run.folder import RunFolder
from model.config_validation import ConfigError
from sweeps.state.collect import collect
from sweeps.state.ended_jobs import add_attempt, attempts_of


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def drop(path, name):
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != name})
    )


DAMAGES = {
    "cut off": ("status.json", lambda path: path.write_text('{"state": "do'), r"status\.json is damaged"),
    "an unknown state": (
        "status.json",
        lambda path: change(path, state="dnoe"),
        r"status\.json: state=dnoe: must be 'planned'",
    ),
    "a wrong type": (
        "status.json",
        lambda path: change(path, attempts="two"),
        r"status\.json: attempts=two: must be a whole number, as",
    ),
    "a negative count": (
        "status.json",
        lambda path: change(path, attempts=-1),
        r"status\.json: attempts=-1: it cannot be negative",
    ),
    "a time that is none": (
        "status.json",
        lambda path: change(path, updated_s=float("nan")),
        r"status\.json: updated_s=nan: it must be a finite number",
    ),
    "a missing field": ("status.json", lambda path: drop(path, "state"), r"status\.json: state is not set"),
    "a list": (
        "record.json",
        lambda path: path.write_text("[]"),
        r"record\.json is damaged: it holds no JSON",
    ),
    "no tokens": (
        "record.json",
        lambda path: change(path, tokens=0),
        r"record\.json: tokens=0 is no positive",
    ),
    "no steps": (
        "record.json",
        lambda path: drop(path, "steps"),
        r"record\.json: steps=None is no positive number",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_run_is_shown_as_unreadable_and_the_others_as_they_are(finished, tmp_path, damage):
    name, harm, message = DAMAGES[damage]
    table = ["sweep=tiny", f"root={tmp_path / 'runs'}"]
    before = loopscale.status(table)
    victim = before["run_id"].iloc[1]
    harm(finished / victim / name)
    after = loopscale.status(table).set_index("run_id")
    assert after.loc[victim, "status"] == "failed:unreadable"
    assert pytest.approx(0) == after.loc[victim, "step"] or name == "status.json"
    assert len(after) == len(before) and (after.drop(victim)["status"] == "done").all()
    with pytest.raises(ConfigError, match=message):
        getattr(RunFolder(finished / victim), name.removesuffix(".json"))()
    with pytest.warns(UserWarning, match=rf"{victim} is left out, it cannot be read: .*{message}"):
        runs, depths = loopscale.collect(table)
    assert set(runs["run_id"]) == set(before["run_id"]) - {victim} == set(depths["run_id"])


def test_an_attempt_is_noted_on_a_line_of_its_own_after_one_that_was_cut_off(tmp_path):
    run = RunFolder(tmp_path)
    for number in (1, 2):
        add_attempt(run, {"attempt": number, "job": f"7_{number}"})
    path = tmp_path / "logs" / "attempts.jsonl"
    os.truncate(path, path.stat().st_size - 5)
    assert [attempt["attempt"] for attempt in attempts_of(run)] == [1]
    add_attempt(run, {"attempt": 3, "job": "7_3"})
    assert [attempt["attempt"] for attempt in attempts_of(run)] == [1, 3]


def test_torn_tables_are_made_anew(finished, tmp_path):
    table = ["sweep=tiny", f"root={tmp_path / 'runs'}"]
    whole, _ = loopscale.collect(table)
    for name in ("runs", "depths"):
        path = finished / f"{name}.parquet"
        path.write_bytes(path.read_bytes()[:1000])
        again, _ = loopscale.collect(table)
        assert again.equals(whole)


def test_a_record_that_changed_is_read_whatever_the_clocks_say(finished, tmp_path):
    """Nodes of a cluster differ by minutes: tables may seem to be from the future."""
    table = ["sweep=tiny", f"root={tmp_path / 'runs'}"]
    runs, _ = loopscale.collect(table)
    ahead = time.time() + 3600
    for name in ("runs.parquet", "depths.parquet"):
        os.utime(finished / name, (ahead, ahead))
    record = finished / runs["run_id"].iloc[0] / "record.json"
    change(record, val_loss_nats=1.25)
    os.utime(record, (1.0, 1.0))
    again, _ = loopscale.collect(table)
    assert again["val_loss_nats"].iloc[0] == 1.25
    change(record, val_loss_nats=1.5)
    assert loopscale.collect(table)[0]["val_loss_nats"].iloc[0] == 1.5


def test_several_may_collect_at_once(finished):
    with ThreadPoolExecutor(4) as pool:
        tables = [collected.runs for collected in pool.map(collect, [finished] * 4)]
    assert all(runs.equals(tables[0]) for runs in tables)
    assert not list(finished.glob(".runs*")) + list(finished.glob(".depths*"))


def test_segments_in_a_circle_are_refused(finished, tmp_path):
    path = finished / "sweep.json"
    ledger = json.loads(path.read_text())
    first, second = list(ledger["segments"])[:2]
    ledger["segments"][first]["parent"], ledger["segments"][second]["parent"] = second, first
    path.write_text(json.dumps(ledger))
    with pytest.raises(ConfigError, match=r"sweep\.json: segments start from each other in a circle: trunk-"):
        loopscale.status(["sweep=tiny", f"root={tmp_path / 'runs'}"])
