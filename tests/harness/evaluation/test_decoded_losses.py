"""`loopscale eval` with kv_budget or exit, against the depth curve of the same run."""

from __future__ import annotations

import json

import pytest

import loopscale
from model.config_validation import ConfigError


@pytest.fixture(scope="module")
def run(tiny_run, cache, tmp_path_factory):
    """Settings that name a finished run of µ = 4 and its data."""
    root = tmp_path_factory.mktemp("trained")
    record = loopscale.train([f"root={root}", *tiny_run, "model.mean_recurrence=4", "tokens=5120"])
    return [f"run={root / 'single' / record['run_id']}", f"cache={cache}"]


def test_budgets_of_keys_and_values(run, capsys):
    curve = loopscale.evaluate(run)
    rows = loopscale.evaluate_decodings([*run, "kv_budget=1,2,4"])
    assert [row.decoding.kept_loops for row in rows] == [1, 2, 4]
    # Width 32 in keys and in values, float32; layers: one of prelude and of coda, the core's per kept loop.
    assert [row.kv_bytes_per_token for row in rows] == [2 * 32 * 4 * (2 + kept) for kept in (1, 2, 4)]
    assert rows[-1].excess_nats == rows[-1].excess_se_nats == 0
    assert rows[-1].loss_nats == pytest.approx(curve.loss_nats[3], abs=1e-5)
    assert rows[-1].loss_se_nats == pytest.approx(curve.loss_se_nats[3], abs=1e-5)
    assert rows[-1].bits_per_byte == pytest.approx(curve.bits_per_byte[3], abs=1e-5)
    for row in rows[:-1]:
        assert row.excess_nats != 0
        assert row.loss_nats == pytest.approx(rows[-1].loss_nats + row.excess_nats)
        assert row.mean_loops == 4
    loopscale.main(["eval", *run, "kv_budget=1,2,4"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[1].split()[:2] == ["1", str(rows[0].kv_bytes_per_token)]


def test_exit_rules_beside_fixed_depths(run, capsys):
    curve = loopscale.evaluate(run)
    for rule in ("convergence", "entropy"):
        never, soon, *fixed = loopscale.evaluate_decodings([*run, f"exit={rule}", "thresholds=0,1000"])
        assert never.loss_nats == fixed[-1].loss_nats and never.excess_nats == 0
        assert never.mean_loops == 4 and never.loops_share == [0, 0, 0, 1]
        assert soon.loss_nats == fixed[0].loss_nats and soon.loops_share == [1, 0, 0, 0]
        assert [row.loss_nats for row in fixed] == pytest.approx(curve.loss_nats[:4], abs=1e-5)
        assert [row.mean_loops for row in fixed] == [1, 2, 3, 4]
    command = ["eval", *run, "exit=convergence", "thresholds=0.2", "depth=3", "format=json"]
    loopscale.main(command)
    first, *fixed = json.loads(capsys.readouterr().out)
    assert first["decoding"] == {"depth": 3, "kv_budget": None, "exit": "convergence", "threshold": 0.2}
    assert len(fixed) == 3 and sum(first["loops_share"]) == pytest.approx(1)
    loopscale.main(command[:-1])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["convergence", "0.2"],
        ["T", "1"],
        ["T", "2"],
        ["T", "3"],
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["exit=entropy"], "exit and thresholds belong together"),
        (["thresholds=0.1"], "exit and thresholds belong together"),
        (["exit=entropy", "thresholds=1", "kv_budget=1"], "kv_budget and exit are two tables"),
        (["kv_budget=1", "tasks=core"], "are for the validation loss"),
        (["depth=3"], "depth is that of kv_budget and exit"),
        (["kv_budget=9"], r"kv_budget=9 must be from 1 to the depth, 4"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(run, settings, message):
    with pytest.raises(ConfigError, match=message):
        loopscale.evaluate_decodings([*run, *settings])


def test_generate_takes_budgets_and_rules(run):
    checkpoint = [run[0].replace("run=", "checkpoint="), run[1], "prompt=lona ran", "tokens=12"]
    full = loopscale.generate(checkpoint)
    assert loopscale.generate([*checkpoint, "kv_budget=4"]) == full
    assert loopscale.generate([*checkpoint, "exit=convergence"]) == full
    one = loopscale.generate([*checkpoint, "depth=1"])
    assert loopscale.generate([*checkpoint, "exit=entropy", "threshold=1000"]) == one
