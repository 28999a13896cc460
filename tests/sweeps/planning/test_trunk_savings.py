"""Trunks before anything runs: their segments, their arrays, what a plan says of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loopscale
from harness.run.config import ScheduleConfig
from harness.run.folder import RunFolder, Status
from harness.run.length import stable_steps
from model.config_validation import ConfigError
from sweeps.backends.job_array import (
    JobArray,
    Submitted,
    latest_elements,
    read_arrays,
    write_array,
    write_submitted,
)
from sweeps.backends.simulated import SimulatedCluster
from sweeps.backends.slurm.cluster import Slurm
from sweeps.backends.slurm.states import parse_queue
from sweeps.config.cluster import ClusterConfig, Resources
from sweeps.grid.cells import DataFacts, cells
from sweeps.grid.trunks import grow
from sweeps.launch.arrays import following_arrays, most_followed_first, share_cap
from sweeps.launch.launch import dry_run, register, write_ledger
from sweeps.launch.rehearsal import rehearse_with, stand_in
from sweeps.launch.submit import show_job_files, submit_missing
from sweeps.planning.plan import plan
from sweeps.planning.trunk_savings import time_to_solution, worker_pools
from sweeps.state.ledger import read_ledger

FACTS = DataFacts(digest="d" * 16, unique_tokens=10**15)
LADDER = ["sweep.budgets_flops=[1e18,2e18,4e18,8e18,16e18]"]
GRID = [
    "sweep=isoflop_140m", "schedule=trapezoid", "data.unique_tokens=1_000_000_000_000",
    "sweep.mean_recurrences=[2,4]", "sweep.control=none", *LADDER,
]  # fmt: skip


@pytest.fixture
def study(composed, tmp_path):
    return composed([*GRID, "cluster=fake"], root=str(tmp_path), cache=str(tmp_path))


@pytest.fixture
def entered(study, tmp_path):
    """Ten runs on two trunks in a ledger, and a cluster where nothing fails."""
    ledger = register(study, cells(study, lambda _: FACTS))
    folder = tmp_path / ledger.name
    cluster = SimulatedCluster(
        ClusterConfig(kind="fake"), lambda run, failure: stand_in(folder / run, failure)
    )
    return folder, ledger, cluster


def run_dry(cluster):
    while cluster.step():
        pass


@functools.cache
def one():
    """The study with a single length, composed once."""
    return loopscale.compose([*GRID[:-1], "sweep.budgets_flops=[]", "sweep.tokens=[1e9]"])


@settings(max_examples=30)
@given(
    budgets=st.lists(st.integers(10, 400), min_size=1, max_size=6, unique=True),
    later=st.lists(st.integers(10, 400), max_size=4, unique=True),
    cooldown=st.sampled_from([0.0, 0.2, 0.5, 0.9]),
)
def test_the_segments_below_a_run_are_its_stable_steps_once_each(budgets, later, cooldown):
    def planned(steps):
        lengths = [float(count * 524_288) for count in steps]
        sweep = dataclasses.replace(one().sweep, tokens=lengths, min_steps=1)
        schedule = ScheduleConfig(cooldown_fraction=cooldown)
        runs = {scale: dataclasses.replace(run, schedule=schedule) for scale, run in one().runs.items()}
        return cells(dataclasses.replace(one(), sweep=sweep, runs=runs), lambda _: FACTS)

    first = grow(planned(budgets), "auto")
    known = {cell.run_id for cell in planned(budgets)}
    grown = grow(planned({*budgets, *later}), "auto", before=first.segments, settled=known)
    assert first.segments.items() <= grown.segments.items(), "what was planned before stays"
    grown.parents.update(first.parents)
    runs = {cell.run_id: cell.run for cell in planned({*budgets, *later})}
    for depth in (2, 4):
        old = {name for name in known if runs[name].model.mean_recurrence == depth}
        new = {name for name in runs if runs[name].model.mean_recurrence == depth} - old
        expected = (old if len(old) > 1 else set()) | (new if len(new) > 1 or len(old) > 1 else set())
        assert {name for name in {*old, *new} if name in grown.parents} == expected
    for name in grown.parents:
        chain = list(grown.lineage(name))
        start = grown.first_step(name, runs[name])
        assert start == stable_steps(runs[name].schedule, runs[name].steps)
        for segment in chain:
            own = grown.segments[segment]
            assert own.start < start <= own.end
            start = own.start
        assert start == 0


def test_a_ladder_of_five_saves_what_its_cooldowns_leave(study):
    for cooldown, expected in ((0.5, (8 + 0.5 * 31) / 31), (0.2, (0.8 * 16 + 0.2 * 31) / 31)):
        trunks = plan(loopscale.compose([*GRID, f"schedule.cooldown_fraction={cooldown}"])).trunks
        assert trunks.nominal_flops / trunks.independent_flops == pytest.approx(expected, rel=2e-3)
        assert (trunks.trunks, trunks.segments, trunks.runs) == (2, 10, 10)


def test_the_plan_names_the_saving_both_times_and_the_disk(capsys, tmp_path):
    places = [f"root={tmp_path}", f"cache={tmp_path}"]
    loopscale.main(["plan", *GRID, *places, "cluster=slurm_h100"])
    out = capsys.readouterr().out
    assert "shared trunks: 10 runs on 2 trunks in 10 segments" in out and "24 % saved" in out
    assert "h through trunks (up to 6 jobs in a row)" in out and "h independent" in out
    assert "10 trunk checkpoints stay" in out and "% of the steps trained are cool-down" in out
    loopscale.main(["plan", *GRID, *places, "cluster.device_peak_flops_per_s=null"])
    assert "of independent runs' (up to 6 jobs in a row)" in capsys.readouterr().out


def test_what_depends_on_the_length_is_refused_with_the_reason():
    published = [*GRID, "schedule=published"]
    reason = "schedule.weight_decay=linear falls to 0 over the whole run"
    with pytest.raises(ConfigError, match=f"sweep.trunk=true, but {reason}"):
        loopscale.plan([*published, "sweep.trunk=true"])
    unshared = plan(loopscale.compose(published))
    assert unshared.trunks is None
    note, *refused = unshared.notes  # two recurrences have no law
    assert refused[0].startswith("looped_140m: fit is bound to refuse") and "bound to" in refused[-1]
    assert note.startswith(f"no shared trunks: {reason}") and note.endswith("save 24 % of the FLOPs")
    assert plan(loopscale.compose([*published, "sweep.trunk=false"])).notes == refused
    with pytest.raises(ConfigError, match=r"schedule\.shape=cosine moves the learning rate"):
        loopscale.plan([*GRID, "schedule=cosine", "sweep.trunk=true"])
    with pytest.raises(ConfigError, match="no two runs differ in length alone"):
        loopscale.plan([*GRID, "sweep.budgets_flops=[1e18]", "sweep.trunk=true"])


def test_a_sweep_that_has_its_trunks_is_launched_again(study, tmp_path):
    study = dataclasses.replace(study, sweep=dataclasses.replace(study.sweep, trunk=True))
    first = register(study, cells(study, lambda _: FACTS))
    assert register(study, cells(study, lambda _: FACTS)) == first == read_ledger(tmp_path / first.name)
    other = dataclasses.replace(study, sweep=dataclasses.replace(study.sweep, name="other", trunk=False))
    register(other, cells(other, lambda _: FACTS))
    later = dataclasses.replace(study, sweep=dataclasses.replace(study.sweep, name="other"))
    with pytest.raises(ConfigError, match="its runs were launched without"):
        register(later, cells(later, lambda _: FACTS))


def test_a_demand_for_trunks_is_put_to_the_cells_that_come_in(study):
    register(study, cells(study, lambda _: FACTS))

    def later(**changes):
        sweep = dataclasses.replace(study.sweep, trunk=True, **changes)
        demanding = dataclasses.replace(study, sweep=sweep)
        return register(demanding, cells(demanding, lambda _: FACTS))

    assert len(later(budgets_flops=[1e18, 3e18]).run_ids) == 12
    with pytest.raises(ConfigError, match=r"sweep\.trunk=true, but no two runs differ in length alone"):
        later(mean_recurrences=[2, 8], budgets_flops=[1e18])


def test_a_dry_run_leaves_out_what_is_given_up_and_what_nothing_needs(entered):
    folder, ledger, cluster = entered
    first, *_ = ledger.run_ids
    lineage = ledger.lineage(first)
    needed = {name for run in ledger.run_ids[1:] for name in ledger.lineage(run)}
    assert set(lineage) - needed == {lineage[0]}, "the last segment serves the longest run alone"
    RunFolder(folder / first).set_status(Status(state="planned").failed("diverged", "on purpose"))
    shown = []
    show_job_files(folder, ledger, cluster, shown.append)
    jobs = sum(int(text.split(": ")[1].split()[0]) for text in shown if "simulated jobs" in text)
    assert jobs == 20 - 2


def test_a_dry_run_shows_what_waits_for_what(tmp_path, monkeypatch):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\necho 'MaxArraySize = 50'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    shown = []
    places = [f"root={tmp_path / 'runs'}", f"cache={tmp_path}"]
    dry_run(loopscale.compose([*GRID, "cluster=slurm", *places]), shown.append)
    files = [text for text in shown if text.startswith("#!")]
    waiting = [text for text in files if "#SBATCH --dependency=aftercorr:JOB_OF_" in text]
    assert len(files) == 10 and len(waiting) == 9
    assert not (tmp_path / "runs").exists()


def test_the_papers_ladder_saves_less_for_its_jump():
    ladder = "sweep.budgets_flops=[1e18,2e18,4e18,8e18,16e18,64e18]"
    trunks = plan(loopscale.compose([*GRID, ladder])).trunks
    assert trunks.nominal_flops / trunks.independent_flops == pytest.approx((32 + 47.5) / 95, rel=2e-3)


@pytest.mark.parametrize(
    ("lengths", "parents", "workers", "ends"),
    [
        ({"a": 1.0, "b": 2.0, "c": 3.0}, {}, 1, 6.0),
        ({"c": 3.0, "b": 2.0, "a": 1.0}, {}, 2, 3.0),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, {"b": "a", "c": "b"}, 8, 6.0),
        # A trunk of two segments, each with a branch: 1, then 1 beside the short branch, then the long one.
        (
            {"s1": 1.0, "s2": 1.0, "long": 2.0, "short": 1.0},
            {"s2": "s1", "long": "s2", "short": "s1"},
            2,
            4.0,
        ),
        ({"a": 1.0}, {"a": "done before"}, 1, 1.0),
        ({}, {}, 3, 0.0),
    ],
)
def test_time_to_solution(lengths, parents, workers, ends):
    assert time_to_solution(lengths, parents, workers) == ends


def chained(elements, parents, resources=None):
    """The arrays that follow one of these elements, as (elements, token before, element before)."""
    root = JobArray(
        token="root",
        sweep="s",
        elements=elements,
        resources=resources or Resources(),
        snapshot="",
        array_parallelism=8,
    )
    count = itertools.count()

    def make(elements, before, index):
        return dataclasses.replace(
            before, token=f"t{next(count)}", elements=elements, after=before.token, after_index=index
        )

    return [(b.elements, b.after, b.after_index) for b in following_arrays([root], parents, make)]


def test_one_array_takes_a_generation():
    parents = {"b1": "a1", "b2": "a2", "r1": "a1", "r2": "a2", "c1": "b1", "c2": "b2"}
    assert chained([["a1"], ["a2"]], parents) == [
        ([["b1"], ["b2"]], "root", None),
        ([["r1"], ["r2"]], "root", None),
        ([["c1"], ["c2"]], "t0", None),
    ]


def test_a_gap_makes_an_array_of_its_own_and_jobs_of_several_runs_stay_together():
    assert chained([["a1"], ["a2"], ["a3"]], {"b1": "a1", "b3": "a3"}) == [
        ([["b1"]], "root", None),
        ([["b3"]], "root", 2),
    ]
    packed = chained([["a1", "a2"]], {"b1": "a1", "b2": "a2", "r1": "a1"}, Resources(runs_per_job=2))
    assert packed == [([["b1", "r1"]], "root", None), ([["b2"]], "root", None)]
    assert most_followed_first(["x", "y"], {"c": "y", "d": "c"}) == ["y", "x"]
    assert [b.array_parallelism for b in share_cap([], 8)] == []


def test_generations_follow_each_other_and_each_has_the_whole_cap():
    trunks, budgets = range(300), range(5)
    root = JobArray(
        token="root", sweep="s", elements=[[f"s0-{t}"] for t in trunks], resources=Resources(),
        snapshot="", array_parallelism=256,
    )  # fmt: skip
    parents = {f"s{b + 1}-{t}": f"s{b}-{t}" for b in budgets[:-1] for t in trunks}
    parents |= {f"r{b}-{t}": f"s{b}-{t}" for b in budgets for t in trunks}
    count = itertools.count()

    def make(elements, before, index):
        token = f"t{next(count)}"
        return dataclasses.replace(
            before, token=token, elements=elements, after=before.token, after_index=index
        )

    arrays = share_cap([root, *following_arrays([root], parents, make)], 256)
    caps = {array.elements[0][0].split("-")[0]: array.array_parallelism for array in arrays}
    assert len(arrays) == 10 and caps.pop("s0") == caps.pop("r4") == 256, "alone in their generations"
    assert set(caps.values()) == {128}, "a segment's and a branch's array at a time"


def test_the_plan_counts_the_places_that_each_shape_is_submitted_with():
    packed = {"small": {"runs_per_job": 8, "parallel_runs": 4}}
    cluster = ClusterConfig(kind="slurm", array_parallelism=64, per_scale=packed)
    pools = worker_pools(cluster, ["small", "large", "larger", "small"])
    assert sorted(pools, key=lambda pool: pool[1]) == [({"large", "larger"}, 64), ({"small"}, 256)]


def test_a_job_file_says_what_it_waits_for(tmp_path):
    first = JobArray(
        token="aa", sweep="s", elements=[["a"]], resources=Resources(), snapshot="c", array_parallelism=1
    )
    write_array(tmp_path, first)
    after = dataclasses.replace(first, token="bb", after="aa")
    slurm = Slurm(ClusterConfig(kind="slurm"))
    assert "#SBATCH --dependency=aftercorr:JOB_OF_aa\n" in slurm.job_file(tmp_path, after, "1")
    write_submitted(tmp_path, first, Submitted(cluster="c", job_id="17"))
    text = slurm.job_file(tmp_path, after, "1")
    assert "#SBATCH --dependency=aftercorr:17\n" in text and "#SBATCH --kill-on-invalid-dep=yes\n" in text
    alone = dataclasses.replace(after, after_index=3)
    assert "#SBATCH --dependency=afterok:17_3\n" in slurm.job_file(tmp_path, alone, "1")
    assert "dependency" not in slurm.job_file(tmp_path, first, "1")


def test_a_job_whose_dependency_failed_is_not_waited_for_and_has_not_failed_itself():
    lines = "s-bb|0|PENDING|DependencyNeverSatisfied||1:00|18\ns-bb|1|PENDING|Dependency||1:00|18"
    orphan, waiting = parse_queue(lines).values()
    assert not orphan.is_live and orphan.failure_class == "" and orphan.is_stuck
    assert waiting.is_live and not waiting.is_stuck


def test_every_segment_is_trained_before_what_starts_from_it(entered):
    folder, ledger, cluster = entered
    trained = []
    cluster.train = lambda run, failure: (trained.append(run), stand_in(folder / run, failure))
    assert submit_missing(folder, ledger, cluster).runs == 20
    assert submit_missing(folder, ledger, cluster).runs == 0, "all of it is queued"
    assert cluster.submissions == 10, "one array for each generation of segments and of branches"
    run_dry(cluster)
    assert len(trained) == 20
    for name in trained:
        assert not (parent := ledger.parent_of(name)) or trained.index(parent) < trained.index(name)
    assert {run.status().state for run in ledger.nodes(folder)} == {"done"}


def test_a_segment_that_fails_for_good_holds_back_its_branches_only(entered):
    folder, ledger, cluster = entered
    third = next(name for name in ledger.segments if len(ledger.lineage(name)) == 2)
    end = cluster._end
    cluster._end = lambda batch, index, failure: end(
        batch, index, "diverged" if third in batch.elements[index] else failure
    )
    submit_missing(folder, ledger, cluster)
    run_dry(cluster)
    states = {run.run_id: run.status().state for run in ledger.nodes(folder)}
    above = {name for name in states if third in ledger.lineage(name)}
    assert len(above) == 2 + 3, "two segments further on and three branches"
    assert {states[name] for name in above} == {"planned"} and states[third] == "failed"
    assert {state for name, state in states.items() if name not in {third, *above}} == {"done"}
    assert submit_missing(folder, ledger, cluster).runs == 0, "they are held back"


def test_a_branch_that_was_cancelled_waits_for_the_segment_in_the_queue(entered):
    folder, ledger, cluster = entered
    submit_missing(folder, ledger, cluster)
    places = latest_elements(read_arrays(folder))
    branch = next(name for name in ledger.run_ids if len(ledger.lineage(name)) == 1)
    batch, index = places[branch]
    cluster.cancel([f"{cluster.jobs[batch.name]}_{index}"])
    asking = dataclasses.replace(ledger.cluster, resources=Resources(time_min=77))
    assert submit_missing(folder, dataclasses.replace(ledger, cluster=asking), cluster).runs == 1
    again, _ = latest_elements(read_arrays(folder))[branch]
    first, place = places[ledger.parents[branch]]
    assert (again.after, again.after_index) == (first.token, place)
    assert again.resources.time_min == 77, "as this launch asks"
    run_dry(cluster)
    assert {run.status().state for run in ledger.nodes(folder)} == {"done"}


def test_a_rehearsal_with_failures_ends_complete(study, tmp_path):
    folder, ledger, _, launches = rehearse_with(study)
    assert launches > 1 and len(ledger.segments) == 10
    assert {run.status().state for run in read_ledger(folder).nodes(folder)} == {"done"}


def test_launched_runs_outside_the_grid_are_named(tiny_study):
    write_ledger(tiny_study())
    assert not any("launched runs are not in this grid" in note for note in plan(tiny_study()).notes)
    changed = plan(tiny_study("sweep.tokens=[640,2560]"))  # of six runs, three had 1,280 tokens
    assert any(note.startswith("3 launched runs are not in this grid: they stay") for note in changed.notes)
