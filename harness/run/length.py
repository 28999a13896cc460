"""The length of a run, and the steps that it shares with runs of other lengths. Imports no torch.

A length is solved from FLOPs, tokens or tokens per parameter. The leading steps of a run, its trunk, do not
depend on its length; runs that differ in length alone can share them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass

from harness.run.config import LoggerConfig, RunConfig, ScheduleConfig
from harness.run.folder import RunFolder
from harness.run.identity import canonical_json, identity
from harness.storage.files import write_json
from model.config_validation import ConfigError
from model.flops import parameter_counts

SEGMENT = "trunk-"  # prefix of a segment's folder, which is beside the folders of its runs
ORIGIN = "trunk.json"  # in the folder of a run or segment that continues another segment

LENGTHS = ("budget_flops", "tokens", "tokens_per_param", "steps")


class BudgetError(ConfigError):
    """A budget below one step, or not exactly one length set."""


def solve(run: RunConfig) -> RunConfig:
    """Return `run` with its length in steps; a FLOP budget is kept for the record."""
    steps = solved_steps(run)
    try:
        return dataclasses.replace(run, steps=steps, tokens=None, tokens_per_param=None)
    except ValueError as error:
        raise BudgetError(str(error)) from None


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
        per_token = run.nominal_flops_per_token
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


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Start of a run or segment: a checkpoint of the segment `parent`, or step 0 if that is "".

    A segment is a part of a trunk. Its last checkpoint is continued by others, and it is not evaluated.
    """

    parent: str = ""
    segment: bool = False


def stable_steps(schedule: ScheduleConfig, steps: int) -> int:
    """Return the number of leading steps whose rates do not depend on `steps`.

    Notes
    -----
    It is 0 unless the schedule is a trapezoid whose weight decay follows the learning rate or is constant.
    The trapezoid's factor falls below 1 at the first step s with steps - s < cooldown + 1.
    """
    if unshared_reason(schedule):
        return 0
    return max(0, steps - round(schedule.cooldown_fraction * steps))


def unshared_reason(schedule: ScheduleConfig) -> str:
    """Return why runs of this schedule share no steps and what to change, "" if they share some."""
    if schedule.shape != "trapezoid":
        return (
            f"schedule.shape={schedule.shape} moves the learning rate over the whole run: "
            "set schedule.shape=trapezoid"
        )
    if schedule.weight_decay == "linear":
        return (
            "schedule.weight_decay=linear falls to 0 over the whole run, so its stable phase depends on the "
            "run's length: set schedule.weight_decay=follow, constant until the cool-down"
        )
    return ""


def trunk_id(run: RunConfig, data_digest: str) -> str:
    """Return the trunk's id, equal for runs that differ only in length and cool-down; "" without a trunk."""
    assert run.steps is not None, "solve the run first"
    if not stable_steps(run.schedule, run.steps):
        return ""
    fields = identity(run, data_digest)
    schedule = {key: value for key, value in fields["schedule"].items() if key != "cooldown_fraction"}
    shared = {key: value for key, value in fields.items() if key != "steps"} | {"schedule": schedule}
    return hashlib.sha256(canonical_json(shared).encode()).hexdigest()[:8]


def segment_run(run: RunConfig, end: int) -> RunConfig:
    """Return the run that trains the trunk of `run` up to step `end`, without a cool-down."""
    schedule = dataclasses.replace(run.schedule, cooldown_fraction=0.0)
    # Its metrics are logged by the runs that continue it.
    return dataclasses.replace(run, schedule=schedule, steps=end, budget_flops=None, logger=LoggerConfig())


def origin(folder: RunFolder) -> Origin:
    """Return the origin of the run in `folder`."""
    try:
        return Origin(**folder.content(ORIGIN))
    except FileNotFoundError:
        return Origin()


def set_origin(folder: RunFolder, begins: Origin, *, sync: bool = True) -> None:
    """Write the origin of the run in `folder`."""
    folder.ensure_created(sync=sync)
    write_json(folder.path / ORIGIN, dataclasses.asdict(begins), sync=sync)
