"""Pursuits on disk: each round is a sweep's, a stop anywhere continues with the same cells."""

import io
import json
import zlib
from dataclasses import asdict

import numpy as np
import pytest

import loopscale
from harness.run.folder import RunFolder
from harness.storage.files import exclusive, write_json
from model.config_validation import ConfigError
from sweeps.grid.cells import DataFacts, cells
from sweeps.launch.launch import register
from sweeps.pursuit import pursue as rounds
from sweeps.pursuit import record as records
from sweeps.pursuit.offer import named
from sweeps.state.ledger import read_ledger

FACTS = DataFacts(digest="standin", unique_tokens=10**12)
LAW = {"E": 2.964, "A": 208.1, "alpha": 0.651, "B": 3865.0, "beta": 0.662}  # about that of study_15k
CALLS = 10  # that write or train, of the pursuit below
GRID = [
    "model=looped_15k",
    "data=installed_prose",
    "data.unique_tokens=1_000_000_000_000",
    "allowance=2e14",
    "assume.recurrences=[2,4,6,8,12,16,24]",
    "target_width=0.3",
    "confirm=false",
]


def study(folder, *more):
    return named(loopscale.compose([*GRID, f"root={folder}", f"cache={folder}/cache", *more]))


def loss(record):
    """The law's loss with noise of 0.002 nats that depends on the run alone."""
    params = record["n_params_other"] + record["n_params_core"] * record["mean_recurrence"]
    noise = np.random.default_rng(zlib.crc32(record["run_id"].encode())).standard_normal()
    by_size = LAW["A"] * params ** -LAW["alpha"]
    return LAW["E"] + by_size + LAW["B"] * record["tokens"] ** -LAW["beta"] + 0.002 * noise


def train(study, fails=lambda run: False):
    """End all runs of a round as trained ones end, at the law's losses; what is done stays."""
    ledger = register(study, cells(study, lambda _: FACTS))
    folder = loopscale_folder(study)
    for run in ledger.runs(folder):
        if run.status().state == "done":
            continue
        run.ensure_created(sync=False)
        status = run.status()
        if fails(run):
            run.set_status(status.failed("diverged", "stand-in"), sync=False)
            continue
        record = run.record()
        run.set_record(record | {"status": "done", "val_loss_nats": loss(record)}, sync=False)
        write_json(run.depth_curve, [], sync=False)
        run.set_status(status.__class__(**(asdict(status) | {"state": "done", "step": status.steps})))


def loopscale_folder(study):
    from pathlib import Path

    return Path(study.root) / str(study.sweep.name)


def pursued(folder, *more, ask=lambda now, first: True, train=train, show=lambda line: None):
    return rounds.pursue(study(folder, *more), show, ask, train)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pursuit from its beginning to its end, its folder and what it showed."""
    folder, shown = tmp_path_factory.mktemp("whole"), []
    return pursued(folder, show=shown.append), folder / "pursuit", shown


def test_a_pursuit_answers_within_its_allowance(whole):
    record, folder, shown = whole
    assert record.outcome.answered
    assert record.outcome.answer.width <= 0.3
    assert record.outcome.spent_flops <= 2e14
    assert len(shown) == len(record.rounds) + 1
    runs, _ = loopscale.collect([f"sweep={folder.name}", f"root={folder.parent}"])
    assert len(runs) == len(record.cells)
    assert runs["nominal_flops"].sum() == pytest.approx(record.outcome.spent_flops)
    chosen = {(mu, flops, seed) for mu, flops, seed in record.cells}
    columns = runs[["mean_recurrence", "target_flops", "seed"]].itertuples(index=False, name=None)
    assert {(int(mu), flops, seed) for mu, flops, seed in columns} == chosen


def test_the_file_says_what_was_known_chosen_and_paid(whole):
    record, folder, _ = whole
    assert records.read(folder) == record
    content = json.loads((folder / records.FILE).read_text())
    assert content["schema_version"] == records.VERSION
    for number, one in enumerate(content["rounds"]):
        assert one["state"] == "ended"
        assert one["reason"]
        assert one["cells"]
        assert (one["before"] is not None) == (number > 0)
        assert (one["law"] is not None) == (number > 0)


def test_the_same_command_after_the_end_trains_nothing(whole):
    record, folder, _ = whole

    def never(study):
        raise AssertionError("trained again")

    assert pursued(folder.parent, train=never) == record


class Killed(Exception):
    """The process is gone."""


def killed_at(number):
    """A function that counts the calls of several functions; the one of this number is never made."""
    calls = iter(range(100))

    def at(function):
        def wrapped(*given):
            if next(calls) == number:
                raise Killed
            return function(*given)

        return wrapped

    return at


@pytest.mark.parametrize("number", range(CALLS))
def test_a_kill_between_any_two_writes_continues_with_the_same_cells(whole, tmp_path, monkeypatch, number):
    """Before every write of pursuit.json and every round's training."""
    at = killed_at(number)
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "write", at(records.write))
        with pytest.raises(Killed):
            pursued(tmp_path, train=at(train))
    record = pursued(tmp_path)
    expected, folder, _ = whole
    assert record == expected
    assert set(read_ledger(tmp_path / "pursuit").run_ids) == set(read_ledger(folder).run_ids)


def test_those_are_all_kill_points(whole):
    record, _, _ = whole
    assert 1 + 4 * len(record.rounds) + 1 == CALLS  # begin; chosen, launched, trained, ended; the outcome


def test_a_round_that_is_half_trained_is_finished(whole, tmp_path):
    def half(study):
        register(study, cells(study, lambda _: FACTS))
        raise Killed

    with pytest.raises(Killed):
        pursued(tmp_path, train=half)
    assert pursued(tmp_path) == whole[0]


def test_runs_that_fail_are_paid_and_named(tmp_path):
    failing = []

    def fails(run):
        record = run.record()
        bad = record["seed"] == 2 or (record["mean_recurrence"], record["target_flops"]) == (24, 2.5e12)
        failing.extend([run.run_id] if bad else [])
        return bad

    record = pursued(tmp_path, train=lambda study: train(study, fails))
    assert {name for one in record.rounds for name in one.failed_runs} == set(failing)
    assert record.outcome.spent_flops == pytest.approx(sum(one.flops for one in record.rounds))
    assert len(set(record.cells)) == len(record.cells)


def test_a_person_is_asked_before_the_first_launch_and_may_refuse(tmp_path):
    asked = []

    def refuse(now, first):
        asked.append((now.state, first))
        return False

    assert pursued(tmp_path, ask=refuse) is None
    assert asked == [("chosen", True)]
    assert not (tmp_path / "pursuit" / "sweep.json").exists()


def test_another_question_does_not_continue_a_pursuit(whole):
    _, folder, _ = whole
    with pytest.raises(ConfigError, match=r"target_width=0\.3, the command says 0\.2: an interval is honest"):
        pursued(folder.parent, "target_width=0.2")


def test_two_processes_do_not_pursue_at_once(whole):
    _, folder, _ = whole
    with exclusive(folder / rounds.LOCK, wait=False), pytest.raises(ConfigError, match="another process"):
        pursued(folder.parent)


def test_a_sweep_without_a_pursuit_is_left_alone(tmp_path):
    train(study(tmp_path, "sweep.mean_recurrences=[2]", "sweep.budgets_flops=[1e12]"))
    with pytest.raises(ConfigError, match="holds a sweep that no pursuit launched"):
        pursued(tmp_path)


def test_a_later_file_is_refused(tmp_path):
    write_json(tmp_path / records.FILE, {"schema_version": 99})
    with pytest.raises(ConfigError, match="schema_version=99, this version reads 1"):
        records.read(tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["allowance=null"], "how much may it spend"),
        (["allowance=1e9"], "offers . budgets, a pursuit needs 4"),
        (["question=optimum"], "at which budget"),
        (["question=multiplier"], "question=multiplier is not pursued yet"),
        (["question=rate"], "question=rate is not pursued yet"),
        (["sweep.axes={seed: [1, 2]}"], "has no axes"),
    ],
)
def test_what_cannot_be_pursued_is_said_in_a_line(tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        pursued(tmp_path, *more)


def test_device_hours_are_converted_by_the_speed_of_the_plan(tmp_path):
    record = rounds.opened(tmp_path / "p", study(tmp_path, "allowance=1h"))
    assert record.allowance_flops == pytest.approx(3600 * 0.4 * 4e10, rel=1e-6)  # conf/cluster/local.yaml


def test_the_run_folders_are_those_of_any_sweep(whole):
    _, folder, _ = whole
    for run_id in read_ledger(folder).run_ids:
        assert RunFolder(folder / run_id).status().state == "done"


def test_status_shows_the_rounds(whole, capsys):
    record, folder, _ = whole
    loopscale.main(["status", f"sweep={folder.name}", f"root={folder.parent}"])
    out = capsys.readouterr().out
    assert "pursuit: exponent of µ*, wanted width 0.3" in out
    assert out.count("(ended)") == len(record.rounds)
    assert "end: the interval is as narrow as wanted" in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["detach=true"], "detach=true is not there yet"),
        (["confirm=true"], "there is no terminal to ask"),
    ],
)
def test_the_command_refuses_in_a_line(tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SystemExit):
        loopscale.main(["pursue", *GRID, f"root={tmp_path}", *more])
    assert message in capsys.readouterr().err


def test_a_dry_run_simulates_pursuits_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sweeps.pursuit.dry_run.PURSUITS", 1)
    loopscale.main(["pursue", *GRID, f"root={tmp_path}", "dry_run=true"])
    out = capsys.readouterr().out
    assert "1 simulated pursuits under the law of" in out
    assert "docs/study/study_15k/laws.json" in out
    assert "pilot: 5 recurrences" in out
    assert list(tmp_path.iterdir()) == []
