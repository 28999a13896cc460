"""The rounds of a pursuit on disk: choose, launch, wait, fit, and choose again.

A round is entered in `pursuit.json` before anything of it is launched, and a launch adds what is missing. A
pursuit that is stopped anywhere therefore continues with the same cells. What it spends is counted from the
plan of the cells, before they run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.format import number
from analysis.pursuit.policy import Cell, Decision, Policy, decide, pilot
from analysis.tables.readers import read_tables
from analysis.tables.selection import select
from harness.storage.files import exclusive
from model.config_validation import ConfigError
from sweeps.backends.registry import open_backend
from sweeps.config.study import StudyConfig
from sweeps.launch.launch import launch, start_missing
from sweeps.planning.design import one_group, planned_runs
from sweeps.planning.design_files import added_cells
from sweeps.pursuit.offer import offer
from sweeps.pursuit.record import (
    FILE,
    Interval,
    Outcome,
    PursuitRecord,
    Round,
    begin,
    interval_of,
    read,
    write,
)
from sweeps.state.collect import collect
from sweeps.state.eta import has_ended
from sweeps.state.ledger import read_ledger
from sweeps.state.status import status

if TYPE_CHECKING:
    import pandas as pd

LOCK = ".pursuit.lock"
POLL_S = {True: 2.0, False: 60.0}  # between two looks at the runs, by whether workers pull them
SLACK = 1e-6  # of the allowance, for rounding

Train = Callable[[StudyConfig], None]  # launch a round's sweep and return when its runs have ended
Ask = Callable[[Round, bool], bool]  # (round, whether it is the first): may it be launched?


def pursue(study: StudyConfig, show: Callable[[str], None], ask: Ask, train: Train) -> PursuitRecord | None:
    """Pursue a question to its end, or continue; return the record, None if `ask` refused a round.

    Raises
    ------
    ConfigError : the folder holds a sweep without a pursuit or a pursuit of another question, or another
        process is at it.
    """
    folder = Path(study.root) / str(study.sweep.name)
    record = opened(folder, study)
    with exclusive(folder / LOCK, wait=False) as held:
        if not held:
            raise ConfigError(f"{folder}: another process pursues it; loopscale status shows its runs")
        while record.outcome is None:
            if not record.rounds or record.rounds[-1].state == "ended":
                record = chosen(folder, study, record)
                show(last_line(record))
                continue
            number_, now = len(record.rounds), record.rounds[-1]
            if now.state == "chosen":
                if not ask(now, number_ == 1):
                    return None
                record = _with_last(folder, record, replace(now, state="launched"))
            train(of_round(study, now.cells))
            record = _with_last(folder, record, _ended(folder, record.rounds[-1]))
    return record


def opened(folder: Path, study: StudyConfig) -> PursuitRecord:
    """Return the record of a folder, or a new one that is written there."""
    record = read(folder)
    if record is None:
        if (folder / "sweep.json").exists():
            raise ConfigError(
                f"{folder} holds a sweep that no pursuit launched: choose another name with sweep.name=..."
            )
        record = begin(offer(study)[0])
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, record)
        return record
    _check_same(folder, record, study)
    return record


def _check_same(folder: Path, record: PursuitRecord, study: StudyConfig) -> None:
    """Raise ConfigError if the command asks for something else than the record."""
    before, now = record.policy, offer(study)[0]
    for name in ("question", "target_width", "allowance_flops"):
        one, other = getattr(before, name), getattr(now, name)
        if one != other and not (name == "allowance_flops" and isinstance(study.allowance, str)):
            raise ConfigError(
                f"{folder / FILE} pursues {name}={one}, the command says {other}: an interval is honest only "
                "for the rule it began with; give the pursuit another sweep.name"
            )


def chosen(folder: Path, study: StudyConfig, record: PursuitRecord) -> PursuitRecord:
    """Choose the next round or end the pursuit, write it down and return the record."""
    policy = record.policy
    decision = pilot(policy) if not record.rounds else _decision(folder, study, record)
    affordable = decision.cells and record.spent_flops + decision.flops <= _most(policy)
    if affordable:
        planned = planned_runs(of_round(study, decision.cells))
        flops = float(planned["nominal_flops"].sum())
        rounds = [*record.rounds, _round(decision, flops)]
        record = replace(record, rounds=rounds)
        assert record.spent_flops <= _most(policy)
    else:
        outcome = Outcome(
            answered=decision.answered,
            reason=decision.reason,
            answer=interval_of(decision.answer) or Interval(refusal=decision.reason),
            spent_flops=record.spent_flops,
        )
        record = replace(record, outcome=outcome)
    write(folder, record)
    return record


def of_round(study: StudyConfig, cells: Sequence[Cell]) -> StudyConfig:
    """Return the study with the cells of a round as its sweep."""
    sweep = added_cells(study.sweep, tuple(cells))
    return replace(study, sweep=replace(sweep, budgets_flops=sorted({flops for _, flops, _ in cells})))


def _most(policy: Policy) -> float:
    return (1 + SLACK) * policy.allowance_flops


def _decision(folder: Path, study: StudyConfig, record: PursuitRecord) -> Decision:
    """Return what the policy makes of the collected runs."""
    runs = finished_runs(folder, study)
    columns = (runs[name] for name in ("mean_recurrence", "target_flops", "seed"))
    done = {(int(mu), float(flops), int(seed)) for mu, flops, seed in zip(*columns, strict=True)}
    without = [cell for cell in record.cells if cell not in done]
    return decide(record.policy, runs, record.spent_flops, without, always_answer=True)


def finished_runs(folder: Path, study: StudyConfig) -> pd.DataFrame:
    """Return the finished looped runs of a pursuit."""
    collect(folder)
    runs = select(read_tables(folder)[0], study.sweep.max_epochs).runs
    return one_group(runs)


def _round(decision: Decision, flops: float) -> Round:
    return Round(
        reason=decision.reason,
        cells=[(int(mu), float(budget), int(seed)) for mu, budget, seed in decision.cells],
        flops=flops,
        before=interval_of(decision.answer),
        linear_width=decision.linear_width,
        noise_nats=decision.noise_nats,
        law=decision.law,
        optima=decision.optima,
        planned_flops=decision.planned_flops,
        expected_width=decision.expected_width,
    )


def _with_last(folder: Path, record: PursuitRecord, last: Round) -> PursuitRecord:
    record = replace(record, rounds=[*record.rounds[:-1], last])
    write(folder, record)
    return record


def _ended(folder: Path, now: Round) -> Round:
    """Return a round that has ended, with the ids of its runs that failed for good."""
    cells = set(now.cells)
    failed = [
        row["run_id"]
        for row in status(folder).rows
        if row["status"] != "done" and (row["mean_recurrence"], row["target_flops"], row["seed"]) in cells
    ]
    return replace(now, state="ended", failed_runs=failed)


def train(study: StudyConfig) -> None:
    """Launch a round's sweep and return when all runs of the ledger have ended."""
    folder, _ = launch(study)
    backend = open_backend(read_ledger(folder).cluster)
    while not all(has_ended(row["status"]) for row in status(folder).rows):
        time.sleep(POLL_S[backend.pulls_runs])
        if not (backend.pulls_runs and backend.workers(folder)):
            start_missing(folder)


def last_line(record: PursuitRecord) -> str:
    """Return the newest round, or the outcome, in a line."""
    spent, most = record.spent_flops, record.allowance_flops
    share = f"{number(spent)} of {number(most)} FLOPs ({spent / most:.0%})"
    if record.outcome is not None:
        return f"end: {record.outcome.reason}; {record.outcome.answer}; spent {share}"
    now = record.rounds[-1]
    known = f"{now.before}; " if now.before else ""
    return f"round {len(record.rounds)}: {known}{now.reason}; with it {share} are spent"


def summary(record: PursuitRecord) -> str:
    """Return a pursuit in words, a line for every round."""
    at = f" at {number(record.target_flops)} FLOPs" if record.target_flops else ""
    name = {"mean_recurrence": "µ*", "tokens": "D*"}[record.quantity]
    lines = [f"pursuit: {record.asked} of {name}{at}, wanted width {record.target_width:g}"]
    for place in range(len(record.rounds)):
        part = replace(record, rounds=record.rounds[: place + 1], outcome=None)
        state = part.rounds[-1].state
        lines.append(f"  {last_line(part)} ({state})")
    if record.outcome is not None:
        lines.append(f"  {last_line(record)}")
    return "\n".join(lines)
