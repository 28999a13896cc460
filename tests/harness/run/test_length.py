"""Lengths of runs: the published table, and the one-line refusals."""

from __future__ import annotations

import dataclasses

import pytest

import loopscale
from harness.run.length import BudgetError, solve, solved_steps

# Paper appendix and the released cost.py, tabulated: (scale, budget, mean recurrence) -> optimiser steps.
PUBLISHED_STEPS = {
    ("looped_140m", 1e18, 1): 2303,
    ("looped_140m", 1e18, 2): 2194,
    ("looped_140m", 1e18, 4): 1846,
    ("looped_140m", 1e18, 6): 1594,
    ("looped_140m", 1e18, 8): 1402,
    ("looped_140m", 1e18, 10): 1251,
    ("looped_140m", 1e18, 12): 1130,
    ("looped_140m", 2e18, 1): 4606,
    ("looped_140m", 2e18, 12): 2261,
    ("looped_140m", 16e18, 1): 36848,
    ("looped_140m", 16e18, 8): 22440,
    ("looped_140m", 64e18, 10): 80124,
    ("looped_370m", 32e18, 1): 25130,
    ("looped_370m", 32e18, 8): 14623,
    ("looped_370m", 64e18, 6): 33565,
    ("looped_370m", 128e18, 1): 100523,
    ("looped_370m", 128e18, 12): 46524,
}


@pytest.mark.parametrize("scale", ["looped_140m", "looped_370m"])
def test_steps_equal_the_published_table(scale):
    study = loopscale.compose([f"sweep=isoflop_{scale[-4:]}", "accounting=released"])
    template = study.runs[scale]
    for (name, budget, recurrence), steps in PUBLISHED_STEPS.items():
        if name == scale:
            model = dataclasses.replace(template.model, mean_recurrence=recurrence)
            run = dataclasses.replace(template, model=model, budget_flops=budget)
            assert solved_steps(run) == steps, (name, budget, recurrence)


def test_tokens_per_param_counts_all_parameters(tiny):
    run = next(iter(loopscale.compose([*tiny, "tokens_per_param=0.5"]).runs.values()))
    total = loopscale.plan([*tiny, "sweep.name=x", "sweep.tokens=[1e4]"])["n_params_total"].iloc[0]
    assert solve(run).steps == int(0.5 * total) // (4 * 32)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (["budget_flops=1000"], "budget_flops=1000 is too small for one step"),
        (["tokens=127"], "tokens=127 is too small for one step: a step takes 128 tokens"),
        (["tokens=1e4", "steps=3"], "exactly one of"),
        ([], "exactly one of"),
    ],
)
def test_a_length_that_cannot_be_is_refused(tiny, length, message):
    run = next(iter(loopscale.compose([*tiny, *length]).runs.values()))
    with pytest.raises(BudgetError, match=message):
        solved_steps(run)
