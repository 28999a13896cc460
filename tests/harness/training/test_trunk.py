"""Runs of different lengths share a trunk, to the last bit."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.optim.parameter_groups import learning_rate_factor, weight_decay_factor
from harness.run.config import ScheduleConfig
from harness.run.length import stable_steps, trunk_id
from harness.training.branch import branch
from harness.training.checkpoint import checkpoint_folders
from harness.training.job import run_job
from model.config_validation import ConfigError
from tests.harness.runs import assert_same_bits

TRAPEZOID = ScheduleConfig(shape="trapezoid", cooldown_fraction=0.5, weight_decay="follow")


@given(st.integers(2, 300), st.floats(0, 0.99), st.integers(0, 20), st.sampled_from(["follow", "constant"]))
def test_the_stable_phase_depends_on_the_step_alone(steps, cooldown, warmup, decay):
    schedule = ScheduleConfig(warmup_steps=warmup, cooldown_fraction=cooldown, weight_decay=decay)
    stable = stable_steps(schedule, steps)
    for step in range(stable):
        for factor in (learning_rate_factor, weight_decay_factor):
            assert factor(schedule, step, steps) == factor(schedule, step, 10**6)
    if warmup <= stable < steps:
        assert learning_rate_factor(schedule, stable, steps) < 1.0


@pytest.mark.parametrize("change", [{"shape": "cosine"}, {"shape": "linear"}, {"weight_decay": "linear"}])
def test_other_schedules_share_nothing(change):
    assert stable_steps(dataclasses.replace(TRAPEZOID, **change), 100) == 0


@pytest.fixture(scope="module")
def trunk(make_in, tmp_path_factory, cache):
    folder, _ = make_in(tmp_path_factory.mktemp("trunk"), "steps=24", "training.checkpoint_at=[8,12]")
    assert run_job(folder.path, cache) == "done"
    return folder


def test_a_branch_ends_with_the_bits_of_an_independent_run(make, trunk, cache):
    independent, _ = make("steps=16", parent="independent")
    run_job(independent.path, cache)
    branched, _ = make("steps=16", parent="branched")
    assert branch(trunk, branched) == 8  # the last marked step of both stable phases
    assert run_job(branched.path, cache) == "done"
    trunk_name = trunk_id(trunk.config(), trunk.data_digest())
    assert branched.record()["trunk_id"] == trunk_name == trunk_id(branched.config(), trunk.data_digest())
    branched.set_record(branched.record() | {"trunk_id": "", "trunk_steps": 0, "trunk_flops": 0.0})
    assert_same_bits(independent, branched)


def test_marked_checkpoints_outlast_the_newest(make, cache):
    folder, _ = make("steps=16", "training.checkpoint_at=[3,8]", "training.checkpoint_every_s=0.001")
    run_job(folder.path, cache)
    names = [path.name for path in checkpoint_folders(folder.checkpoints)]
    assert names[:2] == ["step_00000003", "step_00000008"] and names[-1] == "step_00000016"
    assert len(names) == 4  # the marked ones and the newest two


def test_runs_that_share_nothing_do_not_branch(make, trunk):
    other, _ = make("steps=24", "seed=1", parent="other")
    with pytest.raises(ConfigError, match="share no steps"):
        branch(trunk, other)
    short, _ = make("steps=12", parent="short")
    with pytest.raises(
        ConfigError, match=r"no checkpoint up to step 6: train it with training.checkpoint_at"
    ):
        branch(trunk, short)
    with pytest.raises(ConfigError, match="has checkpoints of its own"):
        branch(trunk, trunk)
