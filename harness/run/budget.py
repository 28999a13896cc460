"""Length of a run: steps from FLOPs, tokens or tokens per parameter. Imports no torch."""

from __future__ import annotations

import dataclasses
import math

from harness.run.config import RunConfig
from model.config_validation import ConfigError
from model.flops import flops_per_token, parameter_counts

LENGTHS = ("budget_flops", "tokens", "tokens_per_param", "steps")


class BudgetError(ConfigError):
    """A budget below one step, or not exactly one length set."""


def solved_steps(run: RunConfig) -> int:
    """Return the optimiser steps of `run`, rounded down as published.

    Raises
    ------
    BudgetError : not exactly one length is set, or it is less than one step.

    Notes
    -----
    For a budget C: floor(floor(C / f) / tokens_per_step), with f the FLOPs per token at the nominal depths
    under the run's accounting. `tokens_per_param` counts all parameters, as the paper does.
    """
    stated = [name for name in LENGTHS if getattr(run, name) is not None]
    if len(stated) != 1:
        seen = ", ".join(f"{name}={getattr(run, name)}" for name in stated) or "none"
        raise BudgetError(f"set exactly one of {', '.join(LENGTHS)} (seen: {seen})")
    if run.steps is not None:
        return run.steps
    if run.budget_flops is not None:
        per_token = nominal_flops_per_token(run)
        tokens = math.floor(run.budget_flops / per_token)
        price = f"{run.batch_tokens * per_token:.3g} FLOPs"
    else:
        asked = run.tokens or (run.tokens_per_param or 0) * parameter_counts(run.model).total
        tokens = math.floor(asked)
        price = f"{run.batch_tokens} tokens"
    steps = tokens // run.batch_tokens
    if steps < 1:
        name = stated[0]
        raise BudgetError(f"{name}={getattr(run, name):.4g} is too small for one step: a step takes {price}")
    return steps


def nominal_flops_per_token(run: RunConfig) -> float:
    """Return FLOPs per token at the mean recurrence and the backprop depth, under the run's accounting."""
    model = run.model
    return flops_per_token(model, run.accounting).at(model.mean_recurrence, model.resolved_backprop_depth)


def solve(run: RunConfig) -> RunConfig:
    """Return `run` with its length in steps; a FLOP budget is kept for the record."""
    steps = solved_steps(run)
    try:
        return dataclasses.replace(run, steps=steps, tokens=None, tokens_per_param=None)
    except ValueError as error:
        raise BudgetError(str(error)) from None


def check_epochs(run: RunConfig, unique_tokens: int) -> None:
    """Raise BudgetError if a solved `run` repeats its training tokens more often than max_epochs."""
    assert run.steps is not None, "solve the run first"
    tokens = run.steps * run.batch_tokens
    if tokens > run.training.max_epochs * unique_tokens:
        epochs = tokens / unique_tokens
        raise BudgetError(
            f"training.max_epochs={run.training.max_epochs:g}: {tokens:.4g} tokens are {epochs:.2f} epochs "
            f"of {unique_tokens:.4g}; shorten the run, give more text or set "
            f"training.max_epochs={math.ceil(epochs)}"
        )
