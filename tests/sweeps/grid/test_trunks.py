"""Runs of one trunk: the same bits as independent ones, for fewer FLOPs, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

import loopscale
from harness.run.folder import RunFolder
from harness.run.metrics import read_metrics
from harness.storage.files import read_json
from harness.training.checkpoint import checkpoint_folders
from sweeps.launch.launch import write_ledger
from sweeps.planning.plan import plan
from sweeps.planning.trunk_savings import checkpoint_bytes
from sweeps.state.ledger import read_ledger
from sweeps.state.retry import reopen
from sweeps.state.status import status
from sweeps.workers.local_pool import work
from sweeps.workers.run_process import start_child
from tests.harness.runs import assert_same_bits
from tests.waiting import wait_for

pytestmark = pytest.mark.xdist_group("trunks")  # what they share is made once

TOKENS = [640, 1280, 2560, 5120, 10240]  # 5, 10, 20, 40 and 80 steps
OF_A_TRUNK = {"trunk_id": "", "trunk_steps": 0, "trunk_flops": 0.0}


@pytest.fixture(scope="module")
def overrides(corpus, cache, tmp_path_factory):
    """A group of five budgets of one model and seed, all below one root."""
    return [
        f"root={tmp_path_factory.mktemp('trunks')}", f"cache={cache}", "data=text", f"path={corpus}",
        "data.vocabulary_size=300", "data.validation_fraction=0.2", "model=looped_40k",
        "model.sequence_length=32", "training.batch_sequences=4", "training.threads=1",
        "training.log_every=3", "training.peak_flops_per_s=1e11", "evaluation.blocks=4",
        "evaluation.max_depth=2",
        "sweep.mean_recurrences=[2]", "sweep.control=none", "sweep.min_steps=5", f"sweep.tokens={TOKENS}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def grid(overrides):
    """The composed study of those."""
    return loopscale.compose(overrides)


def named(study, name, **changes):
    """Return the study with another name, and with changed fields of its sweep."""
    return dataclasses.replace(study, sweep=dataclasses.replace(study.sweep, name=name, **changes))


def enter(study, name, **changes):
    """Enter a sweep into its ledger; returns its folder."""
    ledger = write_ledger(named(study, name, **changes))
    return Path(study.root) / ledger.name


def trained(study, name, **changes):
    folder = enter(study, name, **changes)
    work(folder, stop=lambda: False)
    return folder


@pytest.fixture(scope="module")
def independent(grid):
    return trained(grid, "independent", trunk=False)


@pytest.fixture(scope="module")
def shared(grid):
    return trained(grid, "shared")


def runs(folder):
    return {run.run_id: run for run in read_ledger(folder).runs(folder)}


def segments(folder):
    ledger = read_ledger(folder)
    return [
        RunFolder(folder / name) for name in sorted(ledger.segments, key=lambda n: ledger.segments[n].end)
    ]


def assert_equal_runs(ours, theirs):
    """Compare finished runs of two sweeps, but for what says that one had a trunk."""
    for run_id, run in ours.items():
        record = run.record()
        run.set_record(record | OF_A_TRUNK)
        try:
            assert_same_bits(theirs[run_id], run)
        finally:
            run.set_record(record)


def executed(folder):
    """Return what all jobs of a sweep executed, each counted from where it started."""
    rows = [run.record() for run in [*segments(folder), *runs(folder).values()]]
    return sum(row["executed_flops"] - row["trunk_flops"] for row in rows)


def test_a_segment_leaves_one_checkpoint_that_its_followers_link_to(shared):
    first, second = segments(shared)[:2]
    ends = [read_ledger(shared).segments[folder.run_id].end for folder in (first, second)]
    assert [path.name for path in checkpoint_folders(second.checkpoints)] == [f"step_{ends[1]:08d}"]
    (mine,) = first.checkpoints.glob("*/model.safetensors")
    branch = next(run for run in runs(shared).values() if run.record()["trunk_steps"] == ends[0])
    (theirs,) = branch.checkpoints.glob(f"step_{ends[0]:08d}/model.safetensors")
    assert mine.stat().st_ino == theirs.stat().st_ino
    assert not first.depth_curve.exists() and first.record()["val_loss_nats"] is None


def test_five_budgets_through_a_trunk_end_with_the_bits_of_independent_runs(shared, independent):
    assert len(segments(shared)) == 5 and segments(independent) == []
    assert runs(shared).keys() == runs(independent).keys()
    assert_equal_runs(runs(shared), runs(independent))
    assert all(run.record()["trunk_id"] for run in runs(shared).values())


def test_the_group_executes_the_flops_that_were_planned(shared, independent, grid):
    ratio = executed(shared) / executed(independent)
    assert ratio <= 0.77
    trunks = plan(named(grid, "fresh")).trunks
    # Depths are drawn, so what is executed scatters about what is nominal.
    assert ratio == pytest.approx(trunks.nominal_flops / trunks.independent_flops, rel=0.03)
    assert trunks.nominal_flops / trunks.independent_flops == pytest.approx((40 + 2 + 5 + 10 + 20 + 40) / 155)


def test_a_shorter_cooldown_shares_more(overrides):
    folder = trained(loopscale.compose([*overrides, "schedule.cooldown_fraction=0.2"]), "fifth")
    alone = sum(run.record()["executed_flops"] for run in runs(folder).values())
    assert executed(folder) / alone <= 0.63


def test_the_planned_size_of_a_checkpoint_is_that_on_disk(shared):
    (newest,) = checkpoint_folders(segments(shared)[-1].checkpoints)
    size = sum(path.stat().st_size for path in newest.iterdir())
    assert checkpoint_bytes(segments(shared)[-1].config()) == pytest.approx(size, rel=0.1)


def test_collect_divides_the_trunk_among_its_runs(shared, independent):
    table, _ = loopscale.collect([f"root={shared.parent}", "sweep=shared"])
    paid = table["executed_flops"] - table["trunk_flops"] + table["trunk_share_flops"]
    assert paid.sum() == pytest.approx(executed(shared), rel=1e-12)
    assert (paid < table["executed_flops"]).all() and table["trunk_id"].nunique() == 1
    first = read_json(segments(shared)[0].path / "record.json")["executed_flops"]
    shortest = table.sort_values("steps").iloc[0]
    assert shortest["trunk_share_flops"] == pytest.approx(first / 5)
    again, _ = loopscale.collect([f"root={shared.parent}", "sweep=shared"])
    assert again.equals(table)
    alone, _ = loopscale.collect([f"root={shared.parent}", "sweep=independent"])
    assert (alone["trunk_share_flops"] == 0).all() and (alone["trunk_id"] == "").all()


def test_status_shows_runs_and_segments(shared):
    state = status(shared)
    frame = state.frame
    assert (
        len(frame) == 5
        and frame["trunk_id"].nunique() == 1
        and list(frame["first_step"]) == [40, 20, 10, 5, 3]
    )
    assert [row["status"] for row in state.trunks] == ["done"] * 5
    assert state.forecast.remaining_flops == 0


def test_budgets_added_later_start_at_the_nearest_checkpoint(grid, independent):
    folder = trained(grid, "later", tokens=[640.0, 2560.0])
    parts = read_ledger(folder).segments.values()
    assert {(part.start, part.end) for part in parts} == {(0, 3), (3, 10)}
    trained(grid, "later", tokens=[640.0, 1280.0, 2560.0, 5120.0])
    parts = read_ledger(folder).segments.values()
    assert {(part.start, part.end) for part in parts} == {(0, 3), (3, 10), (3, 5), (10, 20)}
    starts = {run.record()["steps"]: run.record()["trunk_steps"] for run in runs(folder).values()}
    assert starts == {5: 3, 10: 5, 20: 10, 40: 20}
    assert_equal_runs(runs(folder), runs(independent))


def test_deleted_segments_come_back_for_what_needs_them_alone(grid):
    folder = trained(grid, "freed", tokens=[640.0, 1280.0])
    table = [f"root={folder.parent}", "sweep=freed"]
    before, _ = loopscale.collect(table)
    for segment in segments(folder):
        shutil.rmtree(segment.path)
    enter(grid, "freed", tokens=[640.0, 1280.0])
    assert not list(folder.glob("trunk-*")), "all is done"
    enter(grid, "freed", tokens=[640.0, 1024.0, 1280.0])  # 8 steps, the first 4 of them stable
    parts = read_ledger(folder).segments
    there = {(parts[path.name].start, parts[path.name].end) for path in folder.glob("trunk-*")}
    assert there == {(0, 3), (3, 4)}, "not the one from 3 to 5"
    runs_table, _ = loopscale.collect(table)
    kept = runs_table.set_index("run_id").loc[before["run_id"], "trunk_share_flops"]
    assert list(kept) == list(before["trunk_share_flops"]) and (kept > 0).all()
    work(folder, stop=lambda: False)
    assert set(loopscale.status(table)["status"]) == {"done"} and len(list(folder.glob("trunk-*"))) == 2


def test_segments_that_nothing_waits_for_are_no_work_left(grid):
    folder = enter(grid, "begun", tokens=[640.0, 1280.0])  # 5 and 10 steps, 3 and 5 of them shared
    step = status(folder).frame["nominal_flops"].max() / 10

    def planned():
        return plan(named(grid, "begun", tokens=[640.0, 1280.0])).trunks.remaining_flops

    assert status(folder).forecast.remaining_flops == pytest.approx(12 * step, rel=1e-6)
    assert planned() == pytest.approx(12 * step, rel=1e-6)
    for run in runs(folder).values():
        (run.checkpoints / "step_00000006").mkdir(parents=True)
        run.set_status(dataclasses.replace(run.status(), attempts=1))
    state = status(folder)
    assert [row["status"] for row in state.trunks] == ["unneeded", "unneeded"]
    assert state.forecast.remaining_flops == pytest.approx(7 * step, rel=1e-6)
    assert planned() == pytest.approx(7 * step, rel=1e-6)


def test_a_marked_checkpoint_inside_a_segment_serves_too(overrides, grid):
    marked = loopscale.compose([*overrides, "training.checkpoint_at=[4]"])
    folder = trained(marked, "marked", tokens=[1280.0, 2560.0])
    assert [path.name for path in checkpoint_folders(segments(folder)[0].checkpoints)] == [
        "step_00000004",
        "step_00000005",
    ]
    trained(marked, "marked", tokens=[1024.0, 1280.0, 2560.0])  # 8 steps, the last 4 of them cool-down
    assert len(segments(folder)) == 2, "nothing is left to train below the branch point"
    (short,) = [run for run in runs(folder).values() if run.record()["steps"] == 8]
    assert short.record()["trunk_steps"] == 4
    alone = trained(grid, "unmarked", tokens=[1024.0], trunk=False)
    assert_equal_runs({short.run_id: short}, runs(alone))


def test_a_failed_segment_holds_back_its_branches_only(grid, independent):
    folder = enter(grid, "broken", tokens=[640.0, 1280.0, 2560.0])
    last = segments(folder)[-1]
    config = last.path / "config.yaml"
    good = config.read_text()
    config.write_text(good.replace("seed: 0", "seed: 9"))
    work(folder, stop=lambda: False)
    state = status(folder)
    frame = state.frame
    assert list(frame["status"]) == ["planned", "done", "done"]
    assert frame.loc[0, "message"] == f"held back: {last.run_id} has failed"
    assert [row["status"] for row in state.trunks] == ["done", "done", "failed:bad_config"]
    config.write_text(good)
    reopen(last)
    work(folder, stop=lambda: False)
    assert_equal_runs(runs(folder), runs(independent))


def test_a_trunk_killed_in_the_middle_goes_on_from_its_checkpoint(overrides, independent):
    often = loopscale.compose([*overrides, "training.checkpoint_every_s=0.05"])
    folder = enter(often, "killed", tokens=[640.0, 5120.0])
    first, last = segments(folder)
    cache = folder / read_ledger(folder).cache
    start_child(first, cache).join()
    child = start_child(last, cache)
    wait_for(lambda: last.metrics.exists() and read_metrics(last.metrics)[-1]["step"] >= 6)
    child.kill()
    child.join()
    assert last.status().state == "running" and not last.is_held()
    work(folder, stop=lambda: False)
    assert last.status().attempts == 2 and last.status().state == "done"
    assert_equal_runs(runs(folder), runs(independent))
