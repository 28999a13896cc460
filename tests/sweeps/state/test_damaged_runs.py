"""One damaged file of one run hides nothing of the others."""

from __future__ import annotations

import json

import pytest

import loopscale
from harness.run.folder import RunFolder
from model.config_validation import ConfigError


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
        r"status\.json: state=dnoe: input should be 'planned'",
    ),
    "a wrong type": (
        "status.json",
        lambda path: change(path, attempts="two"),
        r"status\.json: attempts=two: input should be a valid integer",
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
