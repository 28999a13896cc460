"""What does and does not make two runs the same."""

from __future__ import annotations

import dataclasses
import re

import loopscale
from harness.run.identity import difference, identity, run_id
from harness.run.length import solve


def run(tiny, *more):
    return solve(next(iter(loopscale.compose([*tiny, "tokens=1280", *more]).runs.values())))


def test_the_name_is_readable_and_ends_in_eight_hex_digits(tiny):
    assert re.fullmatch(r"looped_40k-mu2-steps10-seed0-[0-9a-f]{8}", run_id(run(tiny), "d"))


def test_science_changes_the_id(tiny):
    plain = run_id(run(tiny), "d")
    for change in (
        "seed=1",
        "model.width=64",
        "model.injection=add",
        "optimizer.muon_learning_rate=0.01",
        "schedule.cooldown_fraction=0.2",
        "training.batch_sequences=5",
        "training.precision=bfloat16",
    ):
        assert run_id(run(tiny, change), "d") != plain, change
    assert run_id(run(tiny), "other data") != plain


def test_paths_machine_logging_and_evaluation_do_not_change_the_id(tiny):
    plain = run_id(run(tiny), "d")
    for change in (
        "root=elsewhere",
        "cluster.parallel_runs=7",
        "logger=wandb",
        "training.threads=2",
        "training.micro_batch=2",
        "training.device=cpu",
        "training.checkpoint_every_s=1.0",
        "evaluation.blocks=4",
        "accounting=released",
    ):
        assert run_id(run(tiny, change), "d") == plain, change


def test_the_same_steps_from_a_budget_are_the_same_run(tiny):
    by_tokens = run(tiny)
    by_steps = dataclasses.replace(by_tokens, budget_flops=123.0)
    assert run_id(by_steps, "d") == run_id(by_tokens, "d")


def test_whole_floats_and_ints_hash_alike(tiny):
    whole, real = (run(tiny, f"model.mean_recurrence={depth}") for depth in ("4", "4.0"))
    assert run_id(whole, "d") == run_id(real, "d")


def test_fields_at_their_default_are_left_out_and_a_difference_is_named(tiny):
    ours, theirs = identity(run(tiny), "d"), identity(run(tiny, "seed=3", "model.width=64"), "d")
    assert "injection" not in ours["model"]
    assert difference(ours, theirs) == "model.width: 32 / 64, seed: 0 / 3"
